#!/bin/bash
# Install jeffnet in ~/jeffnet on all machines of a TPU.
#
#   python -m build --wheel
#   TPU_NAME=jeffnet ZONE=us-west4-a deploy/tpu/install.sh dist/jeffnet-*.whl
#
# EXTRAS are extras of jeffnet, such as tfds.
set -euo pipefail

: "${TPU_NAME:?name of the TPU}" "${ZONE:?its zone}"
if (($# != 1)); then
    echo "usage: install.sh WHEEL" >&2
    exit 2
fi
wheel=$1
file=$(basename "$wheel")
remote() { gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" --worker=all --command="$1"; }

remote "mkdir -p jeffnet"
gcloud compute tpus tpu-vm scp "$wheel" "$TPU_NAME":jeffnet/ --zone="$ZONE" --worker=all
# The machine image may have a Python older than 3.11: uv installs one.
remote "set -e; cd jeffnet
python3 -m pip install --quiet --user uv
python3 -m uv venv --quiet --clear --python 3.11 venv
python3 -m uv pip install --quiet --python venv/bin/python 'jax[tpu]' '$file${EXTRAS:+[$EXTRAS]}'
venv/bin/jeffnet --version"
