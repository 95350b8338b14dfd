"""`jeffnet list`: the models."""

import argparse
import json
from typing import Any

from jeffnet.arch.summary import count_macs, count_parameters
from jeffnet.arch.zoo import find_model, list_models, model_plan
from jeffnet.cli.text import table
from jeffnet.errors import UnknownModelError


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    parser = commands.add_parser("list", parents=[common], help="list the models", description="List the models.")
    parser.add_argument("pattern", nargs="?", default="*", help="shell wildcards in quotes, such as 'tf_*_b[0-3]'")
    parser.add_argument("--pretrained", action="store_true", help="only models with published weights")
    parser.add_argument("--markdown", action="store_true", help="a table with the commands that reproduce the scores")
    parser.add_argument("--json", action="store_true", help="one array of objects")
    parser.set_defaults(run=run)


def describe(name: str) -> dict[str, Any]:
    """The entry of a model in the output of `--json`."""
    plan, model = model_plan(name), find_model(name)
    preprocessing, weights = model.preprocessing, model.weights
    names = ("image_size", "crop_pct", "interpolation", "mean", "std")
    return {
        "name": name,
        "parameters": count_parameters(plan),
        "macs": count_macs(plan, preprocessing.image_size),
        **{name: getattr(preprocessing, name) for name in names},
        "pretrained": weights is not None,
        "timm": model.timm,
        "top1": weights.top1 if weights else None,
        "top5": weights.top5 if weights else None,
    }


def run(options: argparse.Namespace) -> None:
    """Print the models."""
    names = list_models(options.pattern, options.pretrained)
    if not names:
        raise UnknownModelError(f"no model matches {options.pattern!r}; `jeffnet list` shows all")
    models = [describe(name) for name in names]
    if options.json:
        print(json.dumps(models, indent=1))
    elif options.markdown:
        print(markdown(models))
    else:
        rows = [(model["name"], *_cells(model, 3)[:-1]) for model in models]
        print(table(("model", "parameters, M", "MACs, G", "pixels", "top-1, %"), rows))
        print(f"{len(rows)} models; top-1: published, on ImageNet-1k, of models with weights")


def markdown(models: list[dict[str, Any]]) -> str:
    """The table of docs/models.md."""
    lines = [
        "| model | parameters, M | MACs, G | pixels | top-1, % | top-5, % | reproduced by |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for model in models:
        command = f"`jeffnet validate IMAGENET --model {model['name']}`" if model["pretrained"] else ""
        name = f"`{model['name']}`"
        lines.append(f"| {' | '.join([name, *_cells(model, 2), command])} |")
    return "\n".join(lines)


def _cells(model: dict[str, Any], digits: int) -> list[str]:
    """Millions of parameters, billions of MACs with so many digits, pixels, and scores where there are any."""
    scores = [f"{model[score]:.2f}" if model["pretrained"] else "" for score in ("top1", "top5")]
    sizes = f"{model['parameters'] / 1e6:.2f}", f"{model['macs'] / 1e9:.{digits}f}", str(model["image_size"])
    return [*sizes, *scores]
