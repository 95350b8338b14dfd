"""The recipes of `jeffnet train --config NAME`: one module each, whose docstring is its manual.

A recipe defines `config`; those that differ little from another one import its `config` and replace what differs. A
recipe of one's own can do the same:

    from dataclasses import replace

    from jeffnet.recipes.fine_tune import config as fine_tune

    config = replace(fine_tune, epochs=30)
"""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

from jeffnet.errors import ConfigError
from jeffnet.text.spelling import suggestion

_FOLDER = Path(__file__).parent
_HEADER = re.compile(
    r"(?P<title>.+)\n\n(?P<command>jeffnet train .+)\nHardware: (?P<hardware>.+)\sExpect (?P<expect>.+)", re.S
)


@dataclass(frozen=True)
class Recipe:
    """A recipe, as its header describes it.

    Attributes:
      name: for `jeffnet train --config`.
      title: what it trains, and how.
      command: that trains.
      hardware: what it is for, and how to do with less.
      expect: the score to expect, and who reports it.
      text: the whole file.
    """

    name: str
    title: str
    command: str
    hardware: str
    expect: str
    text: str


def list_recipes() -> list[str]:
    """Names of all recipes, in the order of the alphabet."""
    return sorted(path.stem for path in _FOLDER.glob("*.py") if path.stem != "__init__")


def recipe_path(name: str) -> Path:
    """The file of a recipe.

    Raises:
      ConfigError: there is none of this name; the message suggests similar ones.
    """
    names = list_recipes()
    if name not in names:
        raise ConfigError(f"no recipe is called {name!r}{suggestion(name, names)}; `jeffnet recipes` lists them")
    return _FOLDER / f"{name}.py"


def describe_recipe(name: str) -> Recipe:
    """A recipe's file and what its header says.

    Args:
      name: of the recipe, see `list_recipes`.

    Returns:
      The recipe as its header describes it.

    Raises:
      ConfigError: as `recipe_path`.
    """
    text = recipe_path(name).read_text(encoding="utf-8")
    match = _HEADER.fullmatch(ast.get_docstring(ast.parse(text)) or "")
    assert match is not None, f"the header of {name} has another form"
    return Recipe(name=name, text=text, **{part: " ".join(words.split()) for part, words in match.groupdict().items()})
