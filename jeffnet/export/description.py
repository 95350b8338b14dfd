"""The description that an exported file has of itself, as JSON: reading it needs no code of models."""

import json
from typing import Any

from jeffnet.errors import WeightsError
from jeffnet.system.reading import parse_json

# Under which formats that hold names and texts have it.
METADATA_KEY = "jeffnet"
# Of formats that hold none: a file beside the exported one, whose name ends so.
BESIDE = ".json"
FORMAT = 1


def read_description(text: str | bytes, source: str) -> dict[str, Any]:
    """The entries of a description.

    Args:
      text: JSON.
      source: of which it is, for messages.

    Raises:
      WeightsError: it is malformed or of a newer format.
    """
    try:
        entry = parse_json(text)
    except (json.JSONDecodeError, UnicodeDecodeError, ValueError) as error:
        raise WeightsError(f"{source!r} has a malformed description of its model: {error}") from error
    if not isinstance(entry, dict) or "export_format" not in entry:
        raise WeightsError(f"{source!r} has a malformed description of its model: it has no export_format")
    if entry["export_format"] != FORMAT:
        raise WeightsError(f"{source!r} was exported by another version of jeffnet than can be read: update jeffnet")
    return entry
