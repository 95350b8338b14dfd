"""The environment of a run: versions, devices, the state of the code, and the memory in use."""

import json
import logging
import os
import platform
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

from jeffnet.errors import OutputError
from jeffnet.system.files import write_file
from jeffnet.system.reading import MOST_TEXT, parse_json, read_file
from jeffnet.system.versions import versions

ENVIRONMENT_FILE = "environment.json"

_GIT_SECONDS = 10

_log = logging.getLogger("jeffnet.train")


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


def record_environment(folder: str | Path) -> None:
    """Add the environment to the list in `environment.json`, which has an entry for every start of the run.

    A damaged list is renamed to `environment.json.damaged`.

    Raises:
      OutputError: it cannot be read or written.
    """
    path, entries = Path(folder) / ENVIRONMENT_FILE, []
    try:
        entries = _entries(path)
    except FileNotFoundError:
        pass
    except ValueError:
        damaged = path.with_name(f"{ENVIRONMENT_FILE}.damaged")
        path.replace(damaged)
        _log.warning("%s is no list of environments and is renamed to %s", path, damaged.name)
    except OSError as error:  # a list that cannot be read now must not be overwritten
        raise OutputError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    write_file(path, json.dumps([*entries, environment()], indent=2) + "\n")


def read_environments(folder: str | Path) -> list[dict[str, Any]]:
    """The entries of `environment.json`, the first start's first; none where it is missing or cannot be read."""
    try:
        return _entries(Path(folder) / ENVIRONMENT_FILE)
    except (OSError, ValueError):
        return []


def _entries(path: Path) -> list[dict[str, Any]]:
    entries = parse_json(read_file(path, MOST_TEXT))
    if not isinstance(entries, list):
        raise ValueError("it is no list")
    return entries


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
