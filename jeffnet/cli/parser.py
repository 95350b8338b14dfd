"""Parses options with dashes or underscores, and suggests the nearest one for an unknown option."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from jeffnet.errors import ConfigError, UsageError
from jeffnet.text.spelling import suggestion


class Parser(argparse.ArgumentParser):
    """Accepts `--batch_size` for `--batch-size`, and suggests the nearest option for an unknown one.

    A command with a default `overrides`, such as `train`, handles unknown options itself: they may be entries of a
    recipe.
    """

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As in the base class, but unknown arguments are an error, except for commands with `overrides`."""
        words = self._spelled(sys.argv[1:] if args is None else args)
        options, rest = super().parse_known_args(words, namespace)
        if rest and not hasattr(options, "overrides"):
            self._refuse(rest)
        return options, rest

    @property
    def options(self) -> list[str]:
        """Names of the long options, without leading dashes."""
        return [name[2:] for name in self._option_string_actions if name.startswith("--")]

    def _spelled(self, words: Sequence[str]) -> list[str]:
        spelled, options = [], True
        for word in words:
            options = options and word != "--"
            name, equals, value = word.partition("=")
            if options and name.startswith("--") and name not in self._option_string_actions:
                dashes = f"--{name[2:].replace('_', '-')}"
                name = dashes if dashes in self._option_string_actions else name
            spelled.append(f"{name}{equals}{value}")
        return spelled

    def _refuse(self, rest: Sequence[str]) -> NoReturn:
        name = next((word for word in rest if word.startswith("-") and word != "--"), None)
        if name is None:
            self.error(f"unexpected argument {rest[0]!r}; `{self.prog} --help` shows the arguments")
        name = name.partition("=")[0]
        near = suggestion(name.lstrip("-"), self.options, "--")
        self.error(f"unknown option {name}{near}; `{self.prog} --help` shows all")


@contextmanager
def usage() -> Iterator[None]:
    """Within it, a ConfigError is raised as a UsageError, since it is about the command's options."""
    try:
        yield
    except UsageError:
        raise
    except ConfigError as error:
        raise UsageError(str(error)) from error
