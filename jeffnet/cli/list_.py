"""`jeffnet list`: the architectures and their published weights."""

import argparse
import json
from collections.abc import Callable
from typing import Any

from jeffnet.arch.model import LICENSE
from jeffnet.arch.summary import count_macs, count_parameters
from jeffnet.arch.zoo import find_model, list_models, model_plan
from jeffnet.cli.text import table
from jeffnet.errors import UnknownModelError

_Entry = dict[str, Any]


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "list",
        parents=[common],
        help="list the models and their published weights",
        description="List the architectures, or with --tags every set of published weights.",
    )
    text = "shell wildcards in quotes, such as 'tf_*_b[0-3]'; with a dot of weights, such as '*.in12k*'"
    parser.add_argument("pattern", nargs="?", default="*", help=text)
    parser.add_argument("--tags", action="store_true", help="every set of weights, with its preprocessing and scores")
    parser.add_argument("--pretrained", action="store_true", help="only architectures with published weights")
    parser.add_argument("--markdown", action="store_true", help="a table with the commands that reproduce the scores")
    parser.add_argument("--json", action="store_true", help="one array of objects")
    parser.set_defaults(run=run)


def describe(name: str) -> _Entry:
    """A model, with its weights if there are any, as an object of the output of `--json`."""
    model = find_model(name)
    preprocessing, weights = model.preprocessing, model.weights
    plan = model_plan(name)
    return {
        "name": name,
        "parameters": count_parameters(plan),
        "macs": count_macs(plan, preprocessing.image_size),
        **vars(preprocessing),
        "train_size": preprocessing.train_size or preprocessing.image_size,
        "num_classes": plan.num_classes,
        "pretrained": weights is not None,
        "timm": model.timm,
        "tag": model.timm and model.timm.partition(".")[2],
        "hub": model.timm and f"timm/{model.timm}",
        "license": LICENSE if weights else None,
        "classes": weights and weights.classes,
        "top1": weights and weights.top1,
        "top5": weights and weights.top5,
    }


def run(options: argparse.Namespace) -> None:
    """Print the models, or their weights."""
    names = list_models(options.pattern, options.pretrained, options.tags)
    if not names:
        raise UnknownModelError(
            f"no model matches {options.pattern!r}; `jeffnet list` and `jeffnet list --tags` show all"
        )
    models = [describe(name) for name in names]
    columns = WEIGHTS if any("." in name for name in names) else MODELS
    if options.json:
        print(json.dumps(models, indent=1))
    elif options.markdown:
        print(markdown(models, columns))
    else:
        print(table(list(columns), [[cell(model) for cell in columns.values()] for model in models]))
        scored = "top-1: published, on ImageNet-1k, with the preprocessing for tests"
        if columns is WEIGHTS:
            sets = "set" if len(models) == 1 else "sets"
            print(f"{len(models)} {sets} of weights, of https://huggingface.co/timm, under {LICENSE}; {scored}")
        else:
            print(f"{len(models)} model{'s' * (len(models) != 1)}; {scored}; --tags shows all weights")


def _parameters(model: _Entry) -> str:
    return f"{model['parameters'] / 1e6:.2f}"


def _macs(model: _Entry) -> str:
    # Of the smallest models three digits say something.
    return f"{model['macs'] / 1e9:.3g}" if model["macs"] < 1e9 else f"{model['macs'] / 1e9:.2f}"


def _sizes(model: _Entry) -> str:
    trained, tested = model["train_size"], model["image_size"]
    return str(tested) if trained == tested else f"{trained}, {tested}"


def _crop(model: _Entry) -> str:
    return f"{model['crop_pct']:g}" + (f" {model['crop_mode']}" if model["crop_mode"] != "center" else "")


def _normalisation(model: _Entry) -> str:
    """Mean and standard deviation, once where all channels have the same."""
    return "; ".join(
        f"{values[0]:g}" if len(set(values)) == 1 else ", ".join(f"{value:g}" for value in values)
        for values in (model["mean"], model["std"])
    )


def _score(name: str) -> Callable[[_Entry], str]:
    return lambda model: "" if model[name] is None else f"{model[name]:.2f}"


# The columns of the two tables: what they are called, and their cells.
MODELS: dict[str, Callable[[_Entry], str]] = {
    "model": lambda model: model["name"],
    "parameters, M": _parameters,
    "MACs, G": _macs,
    "pixels": lambda model: str(model["image_size"]),
    "default weights": lambda model: model["tag"] or "",
    "top-1, %": _score("top1"),
}
WEIGHTS: dict[str, Callable[[_Entry], str]] = {
    "weights": lambda model: model["name"],
    "pixels (training, tests)": _sizes,
    "crop": _crop,
    "interpolation": lambda model: model["interpolation"],
    "mean; std": _normalisation,
    "classes": lambda model: f"{model['num_classes']:,}",
    "top-1, %": _score("top1"),
    "top-5, %": _score("top5"),
}
_OF_TEXT = ("model", "weights", "default weights", "crop", "interpolation", "mean; std", "reproduced by")


def markdown(models: list[_Entry], columns: dict[str, Callable[[_Entry], str]]) -> str:
    """A table of docs/models.md: `MODELS`, or `WEIGHTS` with the commands that reproduce the scores."""
    if columns is WEIGHTS:
        columns = columns | {"reproduced by": _command}
    lines = [
        f"| {' | '.join(columns)} |",
        f"|{'|'.join('---' if name in _OF_TEXT else '--:' for name in columns)}|",
    ]
    for model in models:
        name, *cells = (cell(model) for cell in columns.values())
        lines.append(f"| {' | '.join([f'`{name}`', *cells])} |")
    return "\n".join(lines)


def _command(model: _Entry) -> str:
    return f"`jeffnet validate IMAGENET --model {model['name']}`" if model["top1"] is not None else ""
