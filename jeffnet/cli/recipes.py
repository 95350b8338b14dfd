"""`jeffnet recipes`: the configurations that come with jeffnet."""

import argparse
import json
import re
import shutil
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jeffnet.cli.model import local_path
from jeffnet.errors import UsageError
from jeffnet.recipes import Recipe, describe_recipe, list_recipes
from jeffnet.system.files import check_absent, check_output, write_file
from jeffnet.text.names import printable, shell_word


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "recipes",
        parents=[common],
        help="list, print and copy the recipes for training",
        description="List the recipes that `jeffnet train --config NAME` takes, with their hardware and the score to "
        "expect; print one; or copy one, to edit it and train with `jeffnet train --config FILE`.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="print this recipe, a Python file")
    text = "write the recipe NAME to this file, which must not exist and ends in .py"
    parser.add_argument("--copy", "--output", type=local_path, metavar="FILE", help=text)
    parser.add_argument("--json", action="store_true", help="one array of objects; one object, with its text, for NAME")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """List the recipes, or print or copy one."""
    if options.name is None:
        if options.copy:
            raise UsageError("--copy FILE needs the name of a recipe: jeffnet recipes NAME --copy FILE")
        _list([describe_recipe(name) for name in list_recipes()], options.json)
        return
    recipe = describe_recipe(options.name)
    if options.copy:
        _copy(recipe, options.copy)
    if options.json:
        print(json.dumps(asdict(recipe) | ({"copy": options.copy} if options.copy else {}), indent=1))
    elif options.copy:
        print(f"{printable(options.copy)}: train with `jeffnet train --config {shell_word(options.copy)}`")
    else:
        print(recipe.text, end="")


def _copy(recipe: Recipe, file: str) -> None:
    """Write a recipe to a file; the command in its header is then that of the file."""
    check_output(file, [".py"])
    check_absent(Path(file))
    text, word = recipe.text, shell_word(file)
    if not {*word} & {"\\", '"'}:  # which a docstring may not have
        text = text.replace(f"--config {recipe.name} ", f"--config {word} ", 1)
    write_file(file, text)


def _list(recipes: list[Recipe], as_json: bool) -> None:
    if as_json:
        entries = [asdict(recipe) for recipe in recipes]
        print(json.dumps([{name: entry[name] for name in entry if name != "text"} for entry in entries], indent=1))
        return
    width = shutil.get_terminal_size().columns
    for recipe in recipes:
        print(recipe.name)
        for text in (recipe.title, f"hardware: {_gist(recipe.hardware)}", f"expect: {_gist(recipe.expect)}"):
            print(textwrap.fill(text, width, initial_indent="  ", subsequent_indent="    "))
    print(f"{len(recipes)} recipes: `jeffnet recipes NAME` prints one, `jeffnet train --config NAME` trains")


def _gist(text: str) -> str:
    """A description without its explanations and sources."""
    return re.split(r"[:;.](?: |$)| \((?=arXiv|timm|tensorflow|docs)", text)[0]
