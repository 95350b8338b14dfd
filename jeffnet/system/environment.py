"""Describes the machine and the code: devices, versions, memory, processors. `jeffnet info --env` prints it."""

import contextlib
import importlib
import math
import os
import platform
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

from jeffnet.ops import native
from jeffnet.ops.conv import lowering
from jeffnet.system.devices import start_devices
from jeffnet.system.processor import processors
from jeffnet.system.versions import version as package_version
from jeffnet.system.versions import versions

# Packages that may feed pictures, or use the device too. Importing them takes long, so versions come from metadata.
_NEIGHBOURS = ("tensorflow", "tensorflow-cpu", "torch")
_CUDA_MODULES = ("jax_cuda13_plugin._versions", "jax_cuda12_plugin._versions")
_NCCL = ("nvidia-nccl-cu13", "nvidia-nccl-cu12")
_DRIVER_FILE = Path("/proc/driver/nvidia/version")

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
# The first version of control groups writes a limit of this size for no limit.
_NO_LIMIT = 2**60
_GIT_SECONDS = 10


def report(device: str | None = None, count: int | None = None) -> dict[str, Any]:
    """What is here, for JSON; starts the devices, and builds the C++ kernels where that was not done yet.

    Args:
      device: platform, see `jeffnet.system.devices.start_devices`.
      count: likewise.

    Returns:
      `versions` by package, None for those that are not installed. `cuda`, None without JAX's plugin for it: versions
      of the `driver`, of CUDA that the driver knows (`driver_cuda`), of the CUDA `runtime`, `cudnn` and `nccl`, None
      for those that do not load. `platform`. `devices`, a list of `platform`, `kind`, `count`, and in bytes `memory`
      and `in_use` of the fullest one, None where JAX does not know. `cpus` that the process may use, with a fraction
      under a quota. `memory` of the host, or of the container if that has less, in bytes. `native_kernels`: whether the
      C++ kernels are built (`built`), the name of their library (`library`), or why not (`reason`). `convolutions`, the
      lowering in use.

    Raises:
      DeviceError: devices that were asked for are missing.
      ConfigError: `JEFFNET_CONV` has no such lowering.
    """
    start_devices(device, count)
    reason = native.failure()
    return {
        "versions": versions() | {name: package_version(name) for name in _NEIGHBOURS},
        "cuda": cuda_versions(),
        "platform": platform.platform(),
        "devices": _devices(jax.local_devices()),
        "cpus": usable_cpus(),
        "memory": usable_memory(),
        "native_kernels": {
            "built": reason is None,
            "library": native.library_name() if reason is None else None,
            "reason": reason,
        },
        "convolutions": lowering(),
    }


def environment() -> dict[str, Any]:
    """Whatever a run's result may depend on besides its configuration, for JSON; without the machine's name.

    Returns:
      `started` (UTC, ISO 8601), `command`, `versions` by package, `platform`, `cpus`, `devices` (a list of `platform`,
      `kind` and `count`), and `git`: `commit`, `branch` and `changed` of the repository of the current folder, None
      outside of a repository.
    """
    devices = Counter((device.platform, device.device_kind) for device in jax.devices())
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(sys.argv),
        "versions": versions(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "devices": [{"platform": name, "kind": kind, "count": count} for (name, kind), count in devices.items()],
        "git": _git_state(),
    }


def memory_in_use() -> int | None:
    """The most bytes that a device had in use, or on a CPU the memory of the process; None if unknown."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    known = [peak for peak in peaks if peak is not None]
    return max(known) if known else _resident_memory()


def format_bytes(count: float) -> str:
    """Three digits and a unit: 512 B, 1.50 GiB, 23.4 MiB."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    place = 0
    # 999.5 is where rounding to three digits would make it four.
    while count >= 999.5 and place < len(units) - 1:
        count, place = count / 1024, place + 1
    if place == 0:
        return f"{count:.0f} B"
    return f"{count:.{2 if count < 9.995 else 1 if count < 99.95 else 0}f} {units[place]}"


def usable_cpus() -> float:
    """Number of processors that this process may use: its affinity, or the container's quota if that is lower."""
    quotas = [_quota(text) for text in _cgroup_files("cpu", "cpu.max")]
    of_version_1 = (_cgroup_files("cpu", f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    quotas += [_quota(f"{quota} {period}") for quota, period in zip(*of_version_1, strict=False)]
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
    for name in _CUDA_MODULES:
        with contextlib.suppress(ImportError):
            library = importlib.import_module(name)
            break
    else:
        return None

    def version(function: str, places: tuple[int, ...]) -> str | None:
        try:
            number = int(getattr(library, function)())
        except Exception:  # of whatever kind: the library is not there, or too old to be asked
            return None
        parts = []
        for place in places if number else ():  # CUDA's 0 stands for no driver
            part, number = divmod(number, place)
            parts.append(str(part))
        return ".".join(parts) or None

    return {
        "driver": _driver_version(),
        "driver_cuda": version("cuda_driver_get_version", (1000, 10)),
        "runtime": version("cuda_runtime_get_version", (1000, 10)),
        "cudnn": version("cudnn_get_version", (10000, 100, 1)),
        "nccl": next(filter(None, map(package_version, _NCCL)), None),
    }


def _driver_version() -> str | None:
    with contextlib.suppress(OSError):
        if match := re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", _DRIVER_FILE.read_text()):
            return match[0]
    return None


def _devices(devices: list[Any]) -> list[dict[str, Any]]:
    kinds: dict[tuple[str, str], list[Any]] = {}
    for device in devices:
        kinds.setdefault((device.platform, device.device_kind), []).append(device)
    rows = []
    for (name, kind), same in kinds.items():
        statistics = [device.memory_stats() or {} for device in same]
        sizes = [stats["bytes_limit"] for stats in statistics if "bytes_limit" in stats]
        in_use = [stats["bytes_in_use"] for stats in statistics if "bytes_in_use" in stats]
        memory = {"memory": min(sizes, default=None), "in_use": max(in_use, default=None)}
        rows.append({"platform": name, "kind": kind, "count": len(same), **memory})
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


def _git_state() -> dict[str, Any] | None:
    command = ["git", "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_GIT_SECONDS,
            check=True,
            # Do not lock the index, in case somebody works in the repository.
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.splitlines()
    heads = dict(line.removeprefix("# branch.").split(" ", 1) for line in lines if line.startswith("# branch."))
    commit, branch = heads.get("oid"), heads.get("head")
    return {
        "commit": None if commit == "(initial)" else commit,
        "branch": None if branch == "(detached)" else branch,
        "changed": any(not line.startswith("#") for line in lines),
    }


def _resident_memory() -> int | None:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
