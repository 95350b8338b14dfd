"""Describes the machine: devices, versions, memory, processors. `jeffnet info --env` prints it."""

import contextlib
import importlib
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from jeffnet.ops import native
from jeffnet.ops.conv import lowering
from jeffnet.system.devices import start_devices
from jeffnet.system.processor import processors
from jeffnet.system.versions import version as package_version
from jeffnet.train.reports.environment import environment

# Packages that may feed pictures, or use the device too. Importing them takes long, so versions come from metadata.
_NEIGHBOURS = ("tensorflow", "tensorflow-cpu", "torch")
_CUDA_MODULES = ("jax_cuda13_plugin._versions", "jax_cuda12_plugin._versions")
_NCCL = ("nvidia-nccl-cu13", "nvidia-nccl-cu12")
_DRIVER_FILE = Path("/proc/driver/nvidia/version")

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
# The first version of control groups writes a limit of this size for no limit.
_NO_LIMIT = 2**60


def report(platform: str | None = None, count: int | None = None) -> dict[str, Any]:
    """What is here, for JSON; starts the devices, and builds the C++ kernels where that was not done yet.

    Args:
      platform: see `jeffnet.system.devices.start_devices`.
      count: likewise.

    Returns:
      `versions` by package, None for those that are not installed. `cuda`, None without JAX's plugin for it: versions
      of the `driver`, of CUDA that the driver knows (`driver_cuda`), of the CUDA `runtime`, `cudnn` and `nccl`, None
      for those that do not load. `platform`. `devices`, a list of `platform`, `kind`, `count`, and in bytes `memory`
      and `in_use` of the fullest one, None where JAX does not know. `cpus` that the process may use, with a fraction
      under a quota. `memory` of the host, or of the container if that has less, in bytes. `native_kernels`: whether the
      C++ kernels are built (`built`), and otherwise why not (`reason`). `convolutions`, the lowering in use.

    Raises:
      DeviceError: devices that were asked for are missing.
      ConfigError: `JEFFNET_CONV` has no such lowering.
    """
    start_devices(platform, count)
    found = environment()
    reason = native.failure()
    return {
        "versions": found["versions"] | {name: package_version(name) for name in _NEIGHBOURS},
        "cuda": cuda_versions(),
        "platform": found["platform"],
        "devices": _devices(jax.local_devices()),
        "cpus": usable_cpus(),
        "memory": usable_memory(),
        "native_kernels": {"built": reason is None, "reason": reason},
        "convolutions": lowering(),
    }


def usable_cpus() -> float:
    """Number of processors that this process may use: its affinity, or the container's quota if that is lower."""
    quotas = [_quota(text) for text in _cgroup_files("cpu", "cpu.max")]
    quotas += [
        _quota(f"{quota} {period}")
        for quota, period in zip(
            _cgroup_files("cpu", "cpu.cfs_quota_us"), _cgroup_files("cpu", "cpu.cfs_period_us"), strict=False
        )
    ]
    least = min([len(processors()), *quotas])
    return int(least) if least == int(least) else round(least, 2)


def usable_memory() -> int | None:
    """Bytes of the host, or of the container if it may have less; None where the system does not say."""
    limits = [*_cgroup_files("memory", "memory.max"), *_cgroup_files("memory", "memory.limit_in_bytes")]
    known = [int(limit) for limit in limits if limit.isdecimal() and int(limit) < _NO_LIMIT]
    with contextlib.suppress(OSError, ValueError, AttributeError):
        known.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(known, default=None)


def cuda_versions() -> dict[str, str | None] | None:
    """Versions of the driver and of CUDA's libraries, as text; None without JAX's plugin for CUDA."""
    library = None
    for name in _CUDA_MODULES:
        try:
            library = importlib.import_module(name)
            break
        except ImportError:
            continue
    if library is None:
        return None

    def version(function: str, places: tuple[int, ...]) -> str | None:
        try:
            number = int(getattr(library, function)())
        except Exception:  # of whatever kind: the library is not there, or too old to be asked
            return None
        parts = []
        for place in places:
            part, number = divmod(number, place)
            parts.append(str(part))
        return ".".join(parts) if any(part != "0" for part in parts) else None  # CUDA's 0 stands for no driver

    return {
        "driver": _driver_version(),
        "driver_cuda": version("cuda_driver_get_version", (1000, 10)),
        "runtime": version("cuda_runtime_get_version", (1000, 10)),
        "cudnn": version("cudnn_get_version", (10000, 100, 1)),
        "nccl": next(filter(None, map(package_version, _NCCL)), None),
    }


def _driver_version() -> str | None:
    try:
        found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", _DRIVER_FILE.read_text())
    except OSError:
        return None
    return found[0] if found else None


def _devices(devices: list[Any]) -> list[dict[str, Any]]:
    kinds: dict[tuple[str, str], list[Any]] = {}
    for device in devices:
        kinds.setdefault((device.platform, device.device_kind), []).append(device)
    rows = []
    for (platform, kind), same in kinds.items():
        statistics = [device.memory_stats() or {} for device in same]
        sizes = [found["bytes_limit"] for found in statistics if "bytes_limit" in found]
        in_use = [found["bytes_in_use"] for found in statistics if "bytes_in_use" in found]
        rows.append(
            {
                "platform": platform,
                "kind": kind,
                "count": len(same),
                "memory": min(sizes, default=None),
                "in_use": max(in_use, default=None),
            }
        )
    return rows


def _quota(text: str) -> float:
    """Processors of `QUOTA PERIOD`, in microseconds; infinite where there is no quota."""
    quota, _, period = text.partition(" ")
    try:
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except (ValueError, ZeroDivisionError):  # the quota may be `max`
        return math.inf


def _cgroup_files(controller: str, name: str) -> Iterator[str]:
    """The contents of a file of this process's control group and of those that it is in, of either version."""
    try:
        lines = _OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # In a container its own group is mounted as the root, whatever the path says.
        root = _CGROUPS / controllers if controllers else _CGROUPS
        folder = root / path.lstrip("/")
        for group in [folder, *folder.parents]:
            if not group.is_relative_to(root):
                break
            try:
                yield (group / name).read_text().strip()
            except OSError:
                continue
