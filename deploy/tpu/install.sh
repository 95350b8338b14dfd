#!/bin/bash
# Installs jeffnet and its recipes on all machines of a TPU, into ~/jeffnet.
#
#   python -m build --wheel
#   TPU_NAME=jeffnet ZONE=us-west4-a deploy/tpu/install.sh dist/jeffnet-*.whl
#
# EXTRAS names extras of jeffnet, such as tfds.
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
gcloud compute tpus tpu-vm scp --recurse "$wheel" "$(dirname "$0")/../../configs" "$TPU_NAME":jeffnet/ \
    --zone="$ZONE" --worker=all
# The machines' own Python may be older than 3.11: uv brings one.
remote "set -e; cd jeffnet
python3 -m pip install --quiet --user uv
python3 -m uv venv --quiet --clear --python 3.11 venv
python3 -m uv pip install --quiet --python venv/bin/python 'jax[tpu]' '$file${EXTRAS:+[$EXTRAS]}'
venv/bin/jeffnet --version"
