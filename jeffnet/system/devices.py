"""Starts JAX's devices: those requested, or an error that says why they are missing."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from jeffnet.errors import JeffnetError

# JAX's names; `gpu` is a GPU of any kind.
PLATFORMS = ("cpu", "gpu", "cuda", "rocm", "tpu")

_OPTION = "jax_platforms"  # which JAX_PLATFORMS sets
_GIVEN = "whether the container or job was given the GPUs"
_REMEDIES = {
    "cuda": f"check nvidia-smi, {_GIVEN}, and whether JAX's plugin is installed: pip install 'jax[cuda13]'",
    "rocm": f"check rocm-smi, {_GIVEN}, and whether JAX's plugin for ROCm is installed",
    "gpu": f"check the driver, {_GIVEN}, and whether JAX's plugin for them is installed",
    "tpu": "check whether another process has the TPU, and whether JAX's plugin is installed: pip install 'jax[tpu]'",
}
_REMEDY = "check the driver, whether the container was given the devices, and whether another process has them"


class DeviceError(JeffnetError):
    """Requested devices are missing, or JAX cannot start them."""


def jax_platforms(platform: str) -> str:
    """The value of `JAX_PLATFORMS` that makes JAX start a platform; empty lets JAX choose."""
    # Orbax and callbacks use the CPU beside any other.
    return {"cpu": "cpu", "gpu": ""}.get(platform, f"{platform},cpu")


def start_devices(platform: str | None = None, count: int | None = None) -> None:
    """Start JAX's devices, and check that they are those requested.

    JAX falls back to the CPU if it does not find a GPU, even if `JAX_PLATFORMS` names the GPU. Here every platform that
    is named must exist.

    Args:
      platform: to compute on, one of `PLATFORMS`; None takes that of `JAX_PLATFORMS`, or JAX's choice.
      count: number of devices that this process must have; None for any.

    Raises:
      DeviceError: a named platform is missing, with JAX's reason; JAX computes on another one in this process already;
        or there are more or fewer devices.
    """
    import jax

    before: str | None = getattr(jax.config, _OPTION)
    names = [platform] if platform else [name for name in (before or "").split(",") if name]
    asked = f"--device {platform}" if platform else f"JAX_PLATFORMS={before}"
    try:
        if platform:
            jax.config.update(_OPTION, jax_platforms(platform))
        devices = _started(names, asked)
    finally:
        # Read once, when the devices start; from then on it is again what the user set.
        jax.config.update(_OPTION, before)
    if count is not None and len(devices) != count:
        raise DeviceError(
            f"--num-devices {count}: this process has {len(devices)} of platform {devices[0].platform}; check what the "
            "container or job was given, and CUDA_VISIBLE_DEVICES"
        )


def local_device(number: int) -> Any:
    """One of this process's devices, which have been started, by its number from 0.

    Raises:
      DeviceError: there is none of this number.
    """
    import jax

    found = jax.local_devices()
    if number >= len(found):
        platform, last = found[0].platform, len(found) - 1
        raise DeviceError(f"no device {platform}:{number}: this process has {len(found)}, {platform}:0 to :{last}")
    return found[number]


def _started(names: Sequence[str], asked: str) -> list[Any]:
    """The devices of this process. Raises DeviceError if a named platform is missing or not in use."""
    import jax

    name = next((name for name in names if name != "cpu"), "cpu")
    with _messages() as messages:
        try:
            devices = jax.local_devices()
            by_name = {}
            for name in names:
                by_name[name] = jax.local_devices(backend=name)
        # JAX answers JAX_PLATFORMS=cuda on a machine without a GPU by an empty AssertionError.
        except (RuntimeError, AssertionError) as error:
            what = f"no {name} device, which {asked} asks for" if names else "no devices"
            raise DeviceError(f"{what}: {_reason(error, messages)}; {_REMEDIES.get(name, _REMEDY)}") from error
    if len(names) == 1 and devices[0] not in by_name[names[0]]:
        raise DeviceError(
            f"{asked}: JAX computes on platform {devices[0].platform} in this process already; start another one"
        )
    return devices


def _reason(error: Exception, messages: Sequence[str]) -> str:
    """Why a platform is missing: JAX's error, and what it logged about plugins that failed."""
    reason = re.sub(r" \((set JAX_PLATFORMS|you may need to uninstall).*|\.? Available backends are .*", "", str(error))
    if not reason or reason.startswith("Unknown backend"):  # JAX did not even try
        reason = "JAX found none"
    return "; ".join([reason.strip().splitlines()[0].rstrip("."), *messages])


@contextmanager
def _messages() -> Iterator[list[str]]:
    """Collects the first lines of JAX's warnings; they are logged after the block, unless it fails."""
    from jeffnet._jax_compat import PLUGIN_LOGGER

    records: list[logging.LogRecord] = []
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)
            cause = record.exc_info and record.exc_info[1]
            message = f"{record.getMessage()}: {cause}" if cause else record.getMessage()
            lines.append(message.splitlines()[0])

    handler, propagate = Keep(logging.WARNING), PLUGIN_LOGGER.propagate
    PLUGIN_LOGGER.addHandler(handler)
    PLUGIN_LOGGER.propagate = False
    try:
        yield lines
    finally:
        PLUGIN_LOGGER.removeHandler(handler)
        PLUGIN_LOGGER.propagate = propagate
    for record in records:
        PLUGIN_LOGGER.handle(record)
