"""`jeffnet train --help-config`: the entries of a recipe, as help on options."""

import argparse
import json
import re
from dataclasses import asdict
from typing import TYPE_CHECKING

from jeffnet.errors import UsageError
from jeffnet.text.spelling import suggestion

if TYPE_CHECKING:
    from jeffnet.train.config import Config
    from jeffnet.train.config.manual import Entry


def print_manual(part: str, as_json: bool, config: "Config | None" = None) -> None:
    """Print all entries with the first sentence about each, or those of one part with all about them.

    Args:
      part: such as 'optimizer'; '' for all.
      as_json: print an array of objects instead.
      config: of a recipe, whose values are shown beside the defaults that they replace.

    Raises:
      UsageError: there is no such part; the message names all.
    """
    from jeffnet.train.config.manual import manual, shown_value
    from jeffnet.train.recipe import entry_values

    sections = manual()
    values = {} if config is None else {name: shown_value(value) for name, value in entry_values(config).items()}
    if part and part not in sections:
        near = suggestion(part, sections)
        raise UsageError(f"--help-config {part!r} is no part of a recipe{near}; parts are {', '.join(sections)}")
    shown = {name: section for name, section in sections.items() if part in ("", name)}
    if as_json:
        entries = [
            {"part": name, **asdict(entry), **({"recipe": values[entry.name]} if values else {})}
            for name, section in shown.items()
            for entry in section.entries
        ]
        print(json.dumps(entries, indent=1))
        return
    parser = argparse.ArgumentParser(
        add_help=False,
        usage=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=38),
    )
    for name, section in shown.items():
        group = parser.add_argument_group(name, _on_command_line(section.text if part else _first(section.text)))
        for entry in section.entries:
            text = _on_command_line(_described(entry, bool(part), values.get(entry.name)))
            group.add_argument(f"--{entry.name}", metavar=entry.type.upper(), help=text)
    print(parser.format_help(), end="")


def _described(entry: "Entry", in_full: bool, value: str | None) -> str:
    """An entry in words; `value` is the recipe's, if there is one."""
    text = (entry.text if in_full else _first(entry.text)).removesuffix(".")
    if not all(re.search(rf"\b{choice}\b", text) for choice in entry.choices):
        text += f": {', '.join(entry.choices)}"
    default = "must be set" if entry.required else f"default: {entry.default or 'empty'}"
    if value is None or (value == entry.default and not entry.required):
        return f"{text} ({default})"
    recipe = f"recipe: {value or 'empty'}"
    return f"{text} ({recipe})" if entry.required else f"{text} ({recipe}; {default})"


def _first(text: str) -> str:
    """The first sentence."""
    return re.split(r"(?<=\.) ", text)[0]


def _on_command_line(text: str) -> str:
    """A text about Python as help of argparse."""
    return re.sub(r"\bNone\b", "none", text).replace("%", "%%")
