"""Options of commands that several processes can run together."""

import argparse
from typing import Any

from jeffnet.cli.model import positive, whole


def add_process_options(parser: Any) -> None:
    """Add the options that make this one of several processes, where JAX does not detect them itself."""
    group = parser.add_argument_group("several processes (not needed with SLURM, Open MPI, Kubernetes, Cloud TPU)")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address on which process 0 listens")
    group.add_argument(
        "--num-processes", type=positive, metavar="N", help="number of processes; 1: do not look for others"
    )
    group.add_argument("--process-id", type=whole, metavar="I", help="number of this process, from 0")


def connect(options: argparse.Namespace) -> None:
    """Join the other processes, as the options or the environment say."""
    from jeffnet.parallel.distributed import connect

    connect(options.coordinator, options.num_processes, options.process_id)
