#!/usr/bin/env bash
# Train on all hosts of a Cloud TPU slice (TPU VM).
#
#   TPU=my-v5e-32 ZONE=us-west4-a \
#     experiments/launch/tpu_vm.sh latent_dit_xl --workdir=/mnt/shared/dit_xl
#
# PROJECT is by default that of gcloud. WORKDIR must be on a file system that all hosts
# mount at the same place (Filestore, Cloud Storage FUSE). The last commit is sent to
# every host and installed; the hosts find each other by themselves. To go on after a
# stop, run the same line again.
set -euo pipefail
config=${1:?usage: TPU=NAME ZONE=ZONE tpu_vm.sh CONFIG [FLAG...]}
shift
tpu=${TPU:?must be the name of the TPU}
zone=${ZONE:?must be the zone of the TPU}
project=${PROJECT:-$(gcloud config get-value project)}
cd "$(dirname "$0")/../.."

all=(--zone="$zone" --project="$project" --worker=all)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
git archive --format=tar.gz --output="$scratch/genlib.tar.gz" HEAD

gcloud compute tpus tpu-vm scp "$scratch/genlib.tar.gz" "$tpu:" "${all[@]}"
gcloud compute tpus tpu-vm ssh "$tpu" "${all[@]}" --command="
  mkdir -p genlib && tar -xzf genlib.tar.gz -C genlib &&
  pip install --quiet 'jax[tpu]' -e 'genlib[experiments]'"
gcloud compute tpus tpu-vm ssh "$tpu" "${all[@]}" --command="
  cd genlib && python3 -m experiments.train $(printf '%q ' "--config=$config" "$@")"
