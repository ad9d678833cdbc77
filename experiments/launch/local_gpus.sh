#!/usr/bin/env bash
# Train on this host with one process, which takes all its GPUs (or CPU cores).
#
#   experiments/launch/local_gpus.sh cifar10_edm --config.batch_size=512
#   CUDA_VISIBLE_DEVICES=0,1 experiments/launch/local_gpus.sh cifar10_edm
set -euo pipefail
config=${1:?usage: local_gpus.sh CONFIG [FLAG...]}
shift
cd "$(dirname "$0")/../.."

exec "${PYTHON:-python}" -m experiments.train --config="$config" "$@"
