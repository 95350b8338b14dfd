"""The environments in which a run was started, as its folder keeps them."""

import json
import logging
from pathlib import Path
from typing import Any

from jeffnet.errors import OutputError
from jeffnet.system.environment import environment
from jeffnet.system.files import write_file
from jeffnet.system.reading import MOST_TEXT, parse_json, read_file

ENVIRONMENT_FILE = "environment.json"

_log = logging.getLogger("jeffnet.train")


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
