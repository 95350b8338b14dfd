"""Recipes: files that define a configuration, overrides from the command line, and the JSON form.

A recipe is one of `jeffnet.recipes`, a Python file that defines `config = Config(...)`, or the `config.json` of a run.
`--epochs 20` on the command line replaces one entry of it.
"""

import dataclasses
import functools
import json
import runpy
import traceback
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jeffnet.errors import ConfigError, JeffnetError, UsageError, first_line
from jeffnet.recipes import list_recipes, recipe_path
from jeffnet.system.reading import is_url, parse_json, read_text
from jeffnet.text.spelling import suggestion
from jeffnet.train.config import Config
from jeffnet.train.config.entries import described, hints_of, names_of, without_none

_BOOLEANS = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}


def load_recipe(config: str | Path) -> Config:
    """The configuration of a recipe.

    Args:
      config: name of one of `jeffnet.recipes`, or path of a Python file that defines `config`, or of a JSON file with
        entries. A `Path` is never a name.

    Returns:
      It, checked.

    Raises:
      ConfigError: there is no such recipe, or a file of the same name beside it; the file fails, or defines no
        `config`.
    """
    path = _recipe_file(config)
    try:
        if path.suffix == ".json":
            return from_json(read_text(path), str(path))
    except OSError as error:
        raise ConfigError(f"config {str(path)!r} cannot be read: {error.strerror or error}") from error
    try:
        found = runpy.run_path(str(path)).get("config")
    except (Exception, SystemExit) as error:  # a recipe is the user's code: whatever it raises is about the recipe
        what = str(error) if isinstance(error, JeffnetError) else f"fails: {type(error).__name__}: {first_line(error)}"
        raise ConfigError(f"config {str(path)!r}{_line(error, str(path))}: {what}") from error
    if not isinstance(found, Config):
        raise ConfigError(f"config {str(path)!r} must define `config = Config(...)`, from jeffnet.train.config")
    return found


def _recipe_file(config: str | Path) -> Path:
    """The file that a name or a path stands for."""
    if is_url(str(config)):
        raise ConfigError(f"config {str(config)!r} is an address: download it, and give the file")
    path, names = Path(config), list_recipes()
    if isinstance(config, str) and config in names:
        # Training with the wrong one would show late.
        for file in (path, path.with_suffix(".py")):
            if file.is_file():
                raise ConfigError(
                    f"config {config!r} is a recipe of jeffnet, and there is a file {str(file)!r} here: write ./{file} "
                    "for the file, or rename it to use the recipe"
                )
        return recipe_path(config)
    if not path.is_file():
        near = suggestion(path.stem, names)
        raise ConfigError(f"config {str(path)!r} does not exist, as a file or as a recipe{near}; see `jeffnet recipes`")
    return path


def _line(error: BaseException, path: str) -> str:
    """The line of a recipe that raised an error, for a message."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    if isinstance(error, SyntaxError) and error.filename == path:
        lines.append(error.lineno)
    return f", line {lines[-1]}" if lines else ""


def override(config: Config, overrides: Sequence[tuple[str, str]]) -> Config:
    """Replace entries of a configuration, as the command line does.

    Args:
      config: with the other entries.
      overrides: dotted names and texts, such as `('optimizer.learning_rate', '0.1')`. `none` stands for None. Items of
        a sequence are joined by commas; groups of parameters and architectures are JSON.

    Returns:
      Another configuration.

    Raises:
      UsageError: an unknown name (the message has the nearest), a text that is not of the entry's type, or entries that
        do not fit together.
    """
    # Checked only at the end: entries that belong together may come in any order.
    entries = dataclasses.asdict(config)
    try:
        for name, text in overrides:
            value = _parse(text, entry_type(name, name), name)
            *parents, last = name.split(".")
            functools.reduce(dict.__getitem__, parents, entries)[last] = value
        return Config(**entries)
    except ConfigError as error:
        raise UsageError(str(error)) from error


def to_json(config: Config) -> str:
    """The whole configuration as JSON; `from_json` is the inverse.

    Args:
      config: what to write.

    Returns:
      An object, indented, with a newline at the end.
    """
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str, source: str) -> Config:
    """The configuration in JSON text.

    Args:
      text: an object; entries that are not in it have their defaults.
      source: for messages, such as a path.

    Returns:
      The configuration.

    Raises:
      ConfigError: the text is malformed, or has an entry that this version does not know.
    """
    try:
        entries = parse_json(text)
        if not isinstance(entries, dict):
            raise ConfigError(f"it is {type(entries).__name__}, not an object with entries")
        return Config(**entries)
    except ValueError as error:
        raise ConfigError(f"config {source!r} cannot be read: {error}") from error


def entry_names(within: str = "") -> list[str]:
    """Dotted names of entries.

    Args:
      within: a prefix that they have, such as `optimizer.`.

    Returns:
      The names, in the order of the configuration.
    """
    return [name for name in names_of(Config) if name.startswith(within)]


def entry_values(config: Config) -> dict[str, Any]:
    """The values of all entries.

    Args:
      config: where to look.

    Returns:
      By dotted name, as JSON has them: lists for tuples.
    """
    values = json.loads(to_json(config))
    return {name: functools.reduce(dict.__getitem__, name.split("."), values) for name in entry_names()}


def entry_type(name: str, given: str, others: Sequence[str] = ()) -> Any:
    """The type of an entry.

    Args:
      name: dotted name of the entry.
      given: the name as the user spelled it.
      others: names of other options, for suggestions.

    Returns:
      Its annotation in the configuration.

    Raises:
      UsageError: there is no such entry; the message suggests similar ones.
    """
    kind: Any = Config
    *parents, last = name.split(".")
    for number, parent in enumerate(parents, 1):
        kind = _hint(kind, parent, given, others)
        if not dataclasses.is_dataclass(kind):
            raise UsageError(f"option --{given} is no entry: --{'.'.join(parents[:number])} has no entries within it")
    kind = _hint(kind, last, given, others)
    if dataclasses.is_dataclass(kind):
        within = ", ".join(entry_names(f"{name}."))
        near = suggestion(given, entry_names(), "--")
        raise UsageError(f"option --{given} is no single entry{near}; entries are {within}")
    return kind


def _hint(kind: Any, entry: str, given: str, others: Sequence[str]) -> Any:
    hints = hints_of(kind)
    if entry not in hints:
        near = suggestion(given, [*entry_names(), *others], "--")
        raise UsageError(f"unknown option --{given}{near}; --help-config lists the entries")
    return hints[entry]


def _parse(text: str, hint: Any, name: str) -> Any:
    kind = without_none(hint)
    if kind is not hint and text.lower() == "none":
        return None
    items = typing.get_args(kind)
    try:
        if kind is bool:
            return _BOOLEANS[text.lower()]
        if typing.get_origin(kind) is typing.Literal:
            return {choice: choice for choice in items}[text]
        if dataclasses.is_dataclass(kind):
            return parse_json(text)
        if typing.get_origin(kind) is not tuple:
            return kind(text)
        if dataclasses.is_dataclass(items[0]):
            return parse_json(text)
        parts = text.split(",") if text else []
        if items[-1] is Ellipsis:
            return tuple(items[0](part) for part in parts)
        return tuple(part_kind(part) for part_kind, part in zip(items, parts, strict=True))
    except (ValueError, KeyError):
        joined = "" if not items or typing.get_origin(kind) is typing.Literal else ", joined by commas"
        joined = " in JSON" if items and dataclasses.is_dataclass(items[0]) else joined
        raise ConfigError(f"option --{name} {text!r} is not {described(kind)}{joined}") from None
