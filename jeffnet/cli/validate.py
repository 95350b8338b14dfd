"""`jeffnet validate`: score a model on labelled pictures."""

import argparse
import json
import time
from dataclasses import asdict
from typing import Any

from jeffnet.cli.model import add_model_options, open_model


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "validate",
        parents=[common],
        help="score a model on labelled pictures",
        description="Score a model on labelled pictures: loss, top-1, top-5. Every picture counts exactly once.",
    )
    parser.add_argument("data", help="image folder with val/<class>/ or <class>/, or `digits`")
    add_model_options(parser)
    parser.add_argument("--split", choices=("val", "train"), default="val", help="(default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the result as one object")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Validate, and print the scores."""
    from jeffnet.data.loader import eval_loader
    from jeffnet.data.preprocess import EvalTransform
    from jeffnet.data.sources import open_source
    from jeffnet.errors import DatasetError
    from jeffnet.evaluate import evaluate, make_forward

    apply, variables, card = open_model(options)
    source = open_source(options.data, options.split, card.in_chans, card.classes or None)
    if len(source.classes) != card.num_classes:
        raise DatasetError(
            f"data {options.data!r} has {len(source.classes)} classes, the model {card.num_classes}: labels and logits "
            "would not match"
        )
    batches = eval_loader(source, EvalTransform(card.preprocessing), options.batch_size)
    started = time.monotonic()
    scores = evaluate(make_forward(apply, card.preprocessing), variables, batches, progress=not options.json)
    seconds = time.monotonic() - started
    result = {
        "model": card.model,
        "weights": options.weights,
        "data": options.data,
        "split": options.split,
        **asdict(scores),
        "preprocessing": asdict(card.preprocessing),
        "backend": options.backend,
        "dtype": options.dtype,
        "images_per_second": round(scores.examples / seconds, 1),
    }
    if options.json:
        print(json.dumps(result))
        return
    pre = card.preprocessing
    print(f"{card.model} on {scores.examples} {options.split} pictures of {options.data}")
    print(f"top-1 {scores.top1:.3f} %  top-5 {scores.top5:.3f} %  loss {scores.loss:.4f}")
    print(f"{pre.image_size} px, crop {pre.crop_pct}, {pre.interpolation}, mean {pre.mean}, std {pre.std}")
