#!/usr/bin/env bash
# Train in two processes on this host's CPU: what several hosts do, without them.
#
#   experiments/launch/two_processes_cpu.sh digits_edm:smoke --workdir=runs/pair
#
# Each process has DEVICES devices (4). SIGTERM and Ctrl-C reach both: they save at the
# same step and stop. The status is that of the last process that failed.
set -euo pipefail
config=${1:?usage: two_processes_cpu.sh CONFIG [FLAG...]}
shift
cd "$(dirname "$0")/../.."

export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES="${DEVICES:-4}"
export JAX_COORDINATOR_ADDRESS="127.0.0.1:${PORT:-$((20000 + RANDOM % 10000))}"
export JAX_NUM_PROCESSES=2

pids=()
trap 'kill -TERM "${pids[@]}" 2>/dev/null' TERM INT
for index in 0 1; do
  JAX_PROCESS_ID=$index \
    "${PYTHON:-python}" -m experiments.train --config="$config" "$@" &
  pids+=($!)
done

status=0
for pid in "${pids[@]}"; do
  while true; do # a signal ends `wait` before the process
    code=0
    wait "$pid" || code=$?
    kill -0 "$pid" 2>/dev/null || break
  done
  ((code == 0)) || status=$code
done
exit "$status"
