"""`jeffnet train --help-config`: the entries of a recipe, as help on options."""

import argparse
import json
import re
from dataclasses import asdict
from typing import TYPE_CHECKING

from jeffnet.errors import UsageError
from jeffnet.text.spelling import suggestion

if TYPE_CHECKING:
    from jeffnet.train.config.manual import Entry


def print_manual(part: str, as_json: bool) -> None:
    """Print all entries with the first sentence about each, or those of one part with all about them.

    Args:
      part: such as 'optimizer'; '' for all.
      as_json: print an array of objects instead.

    Raises:
      UsageError: there is no such part; the message names all.
    """
    from jeffnet.train.config.manual import manual

    sections = manual()
    if part and part not in sections:
        near = suggestion(part, sections)
        raise UsageError(f"--help-config {part!r} is no part of a recipe{near}; parts are {', '.join(sections)}")
    shown = {name: section for name, section in sections.items() if part in ("", name)}
    if as_json:
        entries = [{"part": name, **asdict(entry)} for name, section in shown.items() for entry in section.entries]
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
            text = _on_command_line(_described(entry, bool(part)))
            group.add_argument(f"--{entry.name}", metavar=entry.type.upper(), help=text)
    print(parser.format_help(), end="")


def _described(entry: "Entry", in_full: bool) -> str:
    text = (entry.text if in_full else _first(entry.text)).removesuffix(".")
    if not all(re.search(rf"\b{choice}\b", text) for choice in entry.choices):
        text += f": {', '.join(entry.choices)}"
    return f"{text} (must be set)" if entry.required else f"{text} (default: {entry.default or 'empty'})"


def _first(text: str) -> str:
    """The first sentence."""
    return re.split(r"(?<=\.) ", text)[0]


def _on_command_line(text: str) -> str:
    """A text about Python as help of argparse."""
    return re.sub(r"\bNone\b", "none", text).replace("%", "%%")
