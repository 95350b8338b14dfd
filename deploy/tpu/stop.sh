#!/bin/bash
# Stops what runs on all machines of a TPU, as a preemption would: it saves. `stop.sh --log` shows the logs' ends instead.
#
#   TPU_NAME=jeffnet ZONE=us-west4-a deploy/tpu/stop.sh
set -euo pipefail

: "${TPU_NAME:?name of the TPU}" "${ZONE:?its zone}"
# The oldest: a process that restarts another passes the signal on, and a second one is obeyed without saving.
command="pkill --oldest --signal TERM --full 'jeffnet/venv/bin/[p]ython.* train '"
if [[ ${1:-} == --log ]]; then
    command="tail -n 20 jeffnet/log"
fi
gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" --worker=all --command="$command"
