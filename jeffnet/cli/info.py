"""`jeffnet info`: one model in detail."""

import argparse
import json
from typing import Any

from jeffnet.arch.pretrained import PRETRAINED, RELEASE
from jeffnet.arch.summary import count_macs, count_parameters, layers
from jeffnet.arch.zoo import model_plan, model_preprocessing, resolve_name
from jeffnet.cli.text import table
from jeffnet.errors import ArchitectureError


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "info",
        parents=[common],
        help="show a model's layers, cost and preprocessing",
        description="Show a model's layers, parameters, multiply-accumulates, feature maps and preprocessing.",
    )
    parser.add_argument("model", help="name of a model, ours or timm's")
    parser.add_argument("--num-classes", type=int, default=1000, help="width of the logits (default: %(default)s)")
    parser.add_argument("--in-chans", type=int, default=3, help="channels of the pictures (default: %(default)s)")
    parser.add_argument("--image-size", type=int, help="pixels along each side (default: the model's)")
    parser.add_argument("--output-stride", type=int, default=32, help="32, 16 or 8 (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one object")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print the model."""
    name = resolve_name(options.model)
    plan = model_plan(
        name, num_classes=options.num_classes, in_chans=options.in_chans, output_stride=options.output_stride
    )
    preprocessing, weights = model_preprocessing(name), PRETRAINED.get(name)
    size = preprocessing.image_size if options.image_size is None else options.image_size
    if size < 1:
        raise ArchitectureError(f"--image-size {size} is not a size: give a positive number of pixels")
    rows = layers(plan, size)
    summary = {
        "name": name,
        "parameters": count_parameters(plan),
        "macs": count_macs(plan, size),
        "image_size": size,
        "num_features": plan.num_features,
        "preprocessing": vars(preprocessing),
        "features": [vars(feature) for feature in plan.features],
        "drop_rate": plan.drop_rate,
        "pretrained": {**vars(weights), "hub": weights.hub_id, "release": f"{RELEASE}{name}-{weights.sha256}.npz"}
        if weights
        else None,
    }
    if options.json:
        print(json.dumps({**summary, "layers": [vars(row) for row in rows]}, indent=1))
        return
    cells = [
        (
            row.name,
            row.kind,
            f"{row.out_size} x {row.out_size}",
            str(row.out_channels),
            f"{row.parameters:,}",
            f"{row.macs:,}",
        )
        for row in rows
    ]
    print(table(("layer", "operation", "output", "channels", "parameters", "MACs"), cells))
    print()
    for label, text in _facts(summary):
        print(f"{label:<14}{text}")


def _facts(summary: dict[str, Any]) -> list[tuple[str, str]]:
    pre, weights = summary["preprocessing"], summary["pretrained"]
    maps = ", ".join(f"{feature['channels']} at stride {feature['stride']}" for feature in summary["features"])
    facts = [
        ("model", summary["name"]),
        ("parameters", f"{summary['parameters']:,}"),
        ("MACs", f"{summary['macs']:,} at {summary['image_size']} px"),
        ("feature maps", maps),
        ("pre-logits", f"{summary['num_features']}, dropout {summary['drop_rate']}"),
        (
            "preprocessing",
            f"{pre['image_size']} px, crop {pre['crop_pct']}, {pre['interpolation']}, mean {pre['mean']}, "
            f"std {pre['std']}",
        ),
    ]
    if weights:
        facts.append(
            ("weights", f"{weights['hub']}: top-1 {weights['top1']} %, top-5 {weights['top5']} % on ImageNet-1k")
        )
    else:
        facts.append(("weights", "none published"))
    return facts
