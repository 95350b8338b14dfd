#!/bin/bash
# Delete a TPU with its machines and disks.
#
#   TPU_NAME=jeffnet ZONE=us-west4-a deploy/tpu/delete.sh
set -euo pipefail

: "${TPU_NAME:?name of the TPU}" "${ZONE:?its zone}"
gcloud compute tpus queued-resources delete "$TPU_NAME" --zone="$ZONE" --force --quiet
