#!/bin/bash
# Stop the training on all machines of a TPU; it saves first, as for a preemption. `stop.sh --log` shows the ends of the
# logs instead.
#
#   TPU_NAME=jeffnet ZONE=us-west4-a deploy/tpu/stop.sh
set -euo pipefail

: "${TPU_NAME:?name of the TPU}" "${ZONE:?its zone}"
# Only the oldest: a supervisor passes the signal on, and a second signal would stop the run without saving.
command="pkill --oldest --signal TERM --full 'jeffnet/venv/bin/[p]ython.* train '"
if [[ ${1:-} == --log ]]; then
    command="tail -n 20 jeffnet/log"
fi
gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" --worker=all --command="$command"
