#!/bin/bash
# Request a TPU as a queued resource and wait for it. docs/tpu.md explains it.
#
#   TPU_NAME=jeffnet ZONE=us-west4-a ACCELERATOR_TYPE=v5litepod-8 deploy/tpu/create.sh [--spot]
#
# RUNTIME_VERSION is the machine image. Further arguments are passed to gcloud.
set -euo pipefail

: "${TPU_NAME:?name of the TPU}" "${ZONE:?zone, such as us-west4-a}"
: "${ACCELERATOR_TYPE:?type, such as v3-8, v5litepod-8 or v5litepod-256}"

case $ACCELERATOR_TYPE in
v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
*) runtime=tpu-ubuntu2204-base ;;
esac

gcloud compute tpus queued-resources create "$TPU_NAME" \
    --node-id="$TPU_NAME" \
    --zone="$ZONE" \
    --accelerator-type="$ACCELERATOR_TYPE" \
    --runtime-version="${RUNTIME_VERSION:-$runtime}" \
    "$@"

while true; do
    state=$(gcloud compute tpus queued-resources describe "$TPU_NAME" --zone="$ZONE" --format="value(state.state)")
    echo "$(date +%T) $state"
    case $state in
    ACTIVE) exit 0 ;;
    FAILED | SUSPENDED) exit 1 ;;
    esac
    sleep 30
done
