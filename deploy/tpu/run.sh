#!/bin/bash
# Run jeffnet on all machines of a TPU at once, as a slice requires, in ~/jeffnet.
#
#   TPU_NAME=jeffnet ZONE=us-west4-a deploy/tpu/run.sh info --env --device tpu
#   TPU_NAME=jeffnet ZONE=us-west4-a deploy/tpu/run.sh train --config efficientnet_b3_tpu \
#       --data.path /mnt/pictures/imagenet --output /mnt/runs/b3 --continue
#
# With DETACH=1 it returns at once; the machines write to ~/jeffnet/log.
set -euo pipefail

: "${TPU_NAME:?name of the TPU}" "${ZONE:?its zone}"
if (($# == 0)); then
    echo "usage: run.sh COMMAND ..." >&2
    exit 2
fi
command="venv/bin/jeffnet$(printf ' %q' "$@")"
if [[ -n ${DETACH:-} ]]; then
    command="setsid nohup $command >log 2>&1 </dev/null & sleep 1"
fi
gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" --worker=all --command="cd jeffnet && $command"
