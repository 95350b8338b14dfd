"""What every entry of the configuration is, read off the classes: for `jeffnet train --help-config`."""

import dataclasses
import inspect
import json
import re
import typing
from dataclasses import MISSING, dataclass
from typing import Any

from jeffnet.train.config import Config
from jeffnet.train.config.entries import hints_of, without_none


@dataclass(frozen=True)
class Entry:
    """An entry of the configuration, as the command line takes it.

    Attributes:
      name: dotted, such as 'optimizer.learning_rate'.
      type: 'int', 'float', 'bool' or 'str'; with commas for sequences, '...' for one of any length; or 'JSON'.
      required: whether a recipe must set it.
      default: the text that stands for it; '' where it is required.
      choices: the texts that it can be, if these are few.
      text: what it is.
    """

    name: str
    type: str
    required: bool
    default: str
    choices: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Section:
    """A part of the configuration.

    Attributes:
      text: what it is.
      entries: in the order of the class.
    """

    text: str
    entries: tuple[Entry, ...]


def manual() -> dict[str, Section]:
    """The parts of the configuration by name; first 'run', the entries that belong to none."""
    parts = {name: hint for name, hint in hints_of(Config).items() if dataclasses.is_dataclass(hint)}
    run = _section(Config, "")
    own = tuple(entry for entry in run.entries if entry.name not in parts)
    return {"run": Section(run.text, own)} | {name: _section(kind, f"{name}.") for name, kind in parts.items()}


def _section(kind: Any, prefix: str) -> Section:
    text, _, attributes = (inspect.getdoc(kind) or "").partition("\n\nAttributes:\n")
    # Continued lines are indented further.
    texts = dict(re.findall(r"^  (\w+): (.*(?:\n {4,}.*)*)", attributes, re.MULTILINE))
    entries = (_entry(field, hints_of(kind)[field.name], prefix, texts) for field in dataclasses.fields(kind))
    return Section(" ".join(text.split()), tuple(entries))


def _entry(field: dataclasses.Field, hint: Any, prefix: str, texts: dict[str, str]) -> Entry:
    hint = without_none(hint)
    is_literal = typing.get_origin(hint) is typing.Literal
    required = field.default is MISSING and field.default_factory is MISSING
    return Entry(
        name=prefix + field.name,
        type="str" if is_literal else _type(hint),
        required=required,
        default="" if required else shown_value(field.default),
        choices=typing.get_args(hint) if is_literal else field.metadata.get("choices", ()),
        text=" ".join(texts.get(field.name, "").split()),
    )


def _type(hint: Any) -> str:
    items = typing.get_args(hint)
    if any(map(dataclasses.is_dataclass, (hint, *items))):
        return "JSON"
    return ",".join("..." if item is Ellipsis else item.__name__ for item in items or (hint,))


def shown_value(value: Any) -> str:
    """The value of an entry as the text for it on the command line; `value` may come from JSON."""
    if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, dict) for item in value)):
        return json.dumps(value)
    if isinstance(value, tuple | list):
        return ",".join(map(shown_value, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
