"""`jeffnet train`: train a model."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jeffnet.errors import ConfigError


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "train",
        parents=[common],
        allow_abbrev=False,  # `--out` must not be taken for `--output` where an entry of the recipe may be meant
        help="train a model",
        description="Train a model as a recipe says, or continue a run.",
        epilog="Any entry of the recipe can be set: --epochs 20 --optimizer.learning_rate 0.05 --data.path pictures.",
        usage="jeffnet train (--config FILE --output RUN | --resume RUN) [--ENTRY VALUE ...] [--print-config] [--json]",
    )
    parser.add_argument("--config", metavar="FILE", help="recipe: a Python file that defines `config`, see configs/")
    parser.add_argument("--output", metavar="RUN", help="folder for the run, which is made")
    parser.add_argument("--resume", metavar="RUN", help="continue the run in this folder from its last checkpoint")
    parser.add_argument("--print-config", action="store_true", help="print the whole configuration and stop")
    parser.add_argument("--json", action="store_true", help="print the result as one object")
    parser.set_defaults(run=run, overrides=[])


def run(options: argparse.Namespace) -> None:
    """Train, and print how it went."""
    from jeffnet.train.config import load_recipe, override, to_json
    from jeffnet.train.loop import resume, train

    overrides = _pairs(options.overrides)
    if options.resume:
        if options.config or options.output or overrides:
            raise ConfigError("--resume continues a run as it was configured: it takes no other option")
        folder, result = options.resume, resume(options.resume)
    else:
        if not options.config:
            raise ConfigError("give --config FILE and --output RUN, or --resume RUN")
        config = override(load_recipe(options.config), overrides)
        if options.print_config:
            print(to_json(config), end="")
            return
        if not options.output:
            raise ConfigError("give --output RUN, a folder for the run")
        folder, result = options.output, train(config, options.output)
    if options.json:
        print(json.dumps({"run": str(folder), **asdict(result)}))
        return
    print(
        f"best top-1 {result.best.top1:.2f} % after epoch {result.best_epoch:g}, on {result.best.examples} validation "
        f"pictures; last {result.last.top1:.2f} %"
    )
    for what, name in (("model", "model.safetensors"), ("curves", "curves.png"), ("metrics", "metrics.jsonl")):
        print(f"{what:<8}{Path(folder) / name}")


def _pairs(arguments: list[str]) -> list[tuple[str, str]]:
    """`['--epochs', '3', '--seed=1']` as names and values."""
    pairs, rest = [], list(arguments)
    while rest:
        name = rest.pop(0)
        if not name.startswith("--"):
            raise ConfigError(f"{name!r} is no option: entries of the recipe are set by --name value")
        name, equals, value = name[2:].partition("=")
        if not equals:
            if not rest:
                raise ConfigError(f"option --{name} needs a value")
            value = rest.pop(0)
        pairs.append((name, value))
    return pairs
