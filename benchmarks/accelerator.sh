#!/bin/bash
# What jeffnet and torch.compile reach on this machine's accelerator, in eight minutes, without a network:
#
#   benchmarks/accelerator.sh --output results
#
# PYTHON is the interpreter, python3 by default. It needs JAX for the accelerator, flax, and for torch's rows torch and
# timm; jeffnet is taken from this folder and need not be installed. docs/benchmarking.md says how to read the results.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec "${PYTHON:-python3}" "$root/benchmarks/accelerator.py" "$@"
