#!/usr/bin/env bash
# Train on TPU slices of a GKE cluster, through xpk (pip install xpk).
#
#   CLUSTER=my-cluster IMAGE=gcr.io/my-project/genlib-deps TPU_TYPE=v5litepod-256 \
#     experiments/launch/gke_xpk.sh latent_dit_xl --workdir=/mnt/shared/dit_xl
#
# IMAGE holds Python with jax[tpu] and the requirements of genlib[experiments]; the
# working tree is laid on top of it. NUM_SLICES > 1 takes several slices. PROJECT and
# ZONE are by default those of gcloud. WORKDIR must be on storage that is attached to
# the cluster (xpk storage), for a run that is stopped goes on from there.
set -euo pipefail
config=${1:?usage: CLUSTER=NAME IMAGE=IMAGE gke_xpk.sh CONFIG [FLAG...]}
shift
cluster=${CLUSTER:?must be the name of the cluster}
image=${IMAGE:?must be a container image with the requirements}
project=${PROJECT:-$(gcloud config get-value project)}
zone=${ZONE:-$(gcloud config get-value compute/zone)}
name=${WORKLOAD:-$(echo "$config" | tr -c 'a-z0-9\n' '-')-$(date +%m%d%H%M)}
cd "$(dirname "$0")/../.."

# 143: stopped by SIGTERM, and saved.
xpk workload create \
  --cluster="$cluster" \
  --project="$project" \
  --zone="$zone" \
  --workload="$name" \
  --tpu-type="${TPU_TYPE:-v5litepod-16}" \
  --num-slices="${NUM_SLICES:-1}" \
  --base-docker-image="$image" \
  --script-dir=. \
  --max-restarts=50 \
  --restart-on-exit-codes=143 \
  --command="python -m experiments.train $(printf '%q ' "--config=$config" "$@")"
