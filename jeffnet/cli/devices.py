"""Options that choose devices."""

import argparse
from typing import Any

from jeffnet.cli.model import positive
from jeffnet.system import devices


def add_device_options(parser: Any) -> None:
    """Add `--device` and `--num-devices`."""
    group = parser.add_argument_group("devices")
    group.add_argument(
        "--device",
        choices=devices.PLATFORMS,
        help="compute on this platform, or stop if there is none; gpu: of any vendor (default: JAX's choice)",
    )
    group.add_argument(
        "--num-devices",
        type=positive,
        metavar="N",
        help="stop unless this process has N devices; CUDA_VISIBLE_DEVICES chooses among GPUs",
    )


def start_devices(options: argparse.Namespace) -> None:
    """Start the devices that the options choose."""
    devices.start_devices(options.device, options.num_devices)
