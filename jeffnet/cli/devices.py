"""Options that choose devices, and those of commands that several processes can run together."""

import argparse
import contextlib
from typing import Any

from jeffnet.cli.model import positive, whole
from jeffnet.system import devices


def add_device_options(parser: Any, numbered: bool = False) -> None:
    """Add `--device` and `--num-devices`; `numbered` accepts `gpu:1`, for commands that use a single device."""
    group = parser.add_argument_group("devices")
    text = "compute on this platform, or stop if there is none; gpu: of any vendor (default: JAX's choice)"
    if numbered:
        names = ",".join(devices.PLATFORMS)
        text += "; N: number of the device, from 0"
        group.add_argument("--device", type=_device, metavar=f"{{{names}}}[:N]", help=text)
    else:
        group.add_argument("--device", choices=devices.PLATFORMS, help=text)
    text = "stop unless this process has N devices; CUDA_VISIBLE_DEVICES chooses among GPUs"
    group.add_argument("--num-devices", type=positive, metavar="N", help=text)


def start_devices(options: argparse.Namespace) -> None:
    """Start the devices that the options choose."""
    devices.start_devices(options.device, options.num_devices)


def one_device(options: argparse.Namespace) -> contextlib.AbstractContextManager[Any]:
    """Start the devices; within the context the one whose number `--device` gives computes, or else JAX's choice."""
    platform, colon, number = (options.device or "").partition(":")
    devices.start_devices(platform or None, options.num_devices)
    if not colon:
        return contextlib.nullcontext()
    import jax

    return jax.default_device(devices.local_device(int(number)))


def _device(text: str) -> str:
    """A platform, or one and the number of a device, for argparse."""
    platform, colon, number = text.partition(":")
    if platform not in devices.PLATFORMS or (colon and not number.isdecimal()):
        platforms = ", ".join(devices.PLATFORMS)
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {platforms}, nor one with a number, such as 'gpu:1'")
    return text


def add_process_options(parser: Any) -> None:
    """Add the options that make this one of several processes, where JAX does not detect them itself."""
    group = parser.add_argument_group("several processes (not needed with SLURM, Open MPI, Kubernetes, Cloud TPU)")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address on which process 0 listens")
    text = "number of processes; 1: do not look for others"
    group.add_argument("--num-processes", type=positive, metavar="N", help=text)
    group.add_argument("--process-id", type=whole, metavar="I", help="number of this process, from 0")


def connect(options: argparse.Namespace) -> None:
    """Join the other processes, as the options or the environment say."""
    from jeffnet.parallel.distributed import connect

    connect(options.coordinator, options.num_processes, options.process_id)
