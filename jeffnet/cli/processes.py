"""Options of commands that several processes can run together."""

import argparse
from typing import Any

from jeffnet.cli.model import positive, whole


def add_process_options(parser: Any) -> None:
    """Add what says that this is one of several processes, where JAX does not recognise that by itself."""
    group = parser.add_argument_group("several processes (not needed with SLURM, Open MPI, Kubernetes, Cloud TPU)")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--num-processes", type=positive, metavar="N", help="how many there are; 1: look for no others")
    group.add_argument("--process-id", type=whole, metavar="I", help="which this is, from 0")


def connect(options: argparse.Namespace) -> None:
    """Become one of several processes, as the options or the surroundings say."""
    from jeffnet.parallel.distributed import connect

    connect(options.coordinator, options.num_processes, options.process_id)
