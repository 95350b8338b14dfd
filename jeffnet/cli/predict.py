"""`jeffnet predict`: classify pictures."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jeffnet.cli.devices import add_device_options, one_device
from jeffnet.cli.model import add_model_options, add_switch, local_path, open_model, open_start, positive
from jeffnet.cli.text import table
from jeffnet.errors import DatasetError, UsageError
from jeffnet.inference.choices import EXPLANATIONS
from jeffnet.system.figures import FORMS
from jeffnet.system.files import check_not_read, check_output
from jeffnet.system.reading import is_url
from jeffnet.text.names import printable

if TYPE_CHECKING:
    from PIL import Image

    from jeffnet.inference.predict import Picture, Prediction
    from jeffnet.weights.card import ModelCard


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "predict",
        parents=[common],
        help="classify pictures",
        description="Print the most probable classes of pictures, and draw them if asked.",
    )
    parser.add_argument(
        "pictures", nargs="+", help="picture files, folders of pictures, http(s) addresses, or `digits` (held-out ones)"
    )
    add_model_options(parser)
    parser.add_argument("--top", type=positive, default=5, help="classes to show (default: %(default)s)")
    parser.add_argument(
        "--limit",
        type=positive,
        default=24,
        help="most pictures of one folder, spread over the folders in it (default: %(default)s)",
    )
    text = "draw the pictures with their classes: .png, .jpg, .pdf, .svg, ..."
    parser.add_argument("--output", type=local_path, metavar="FILE", help=text)
    text = "draw what the model looks at beside each picture of --output"
    parser.add_argument("--explain", choices=EXPLANATIONS, help=text)
    parser.add_argument("--csv", type=local_path, metavar="FILE", help="table with a row for each picture and class")
    add_switch(parser, "--exif", True, "rotate pictures by their EXIF orientation, which `jeffnet validate` does not")
    parser.add_argument("--json", action="store_true", help="one array of objects")
    add_device_options(parser, numbered=True)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Predict, print the table and draw the picture."""
    from jeffnet.data.images import orientation
    from jeffnet.inference.predict import draw_predictions, write_predictions

    for path, endings in ((options.output, FORMS), (options.csv, [".csv"])):
        if path:
            check_output(path, endings)
            check_not_read(path, options.pictures)
    if options.explain and not options.output:
        raise UsageError("--explain draws into --output: give its FILE too")
    pictures, predictions, how = _predicted(options)
    if turned := sum(orientation(picture.image) != 1 for picture in pictures):
        rotated = "were rotated; --no-exif keeps them as stored" if options.exif else "were not rotated"
        print(f"{turned} of {len(pictures)} pictures have an EXIF orientation and {rotated}", file=sys.stderr)
    if options.output:
        explained = _explained(options, pictures, predictions) if options.explain else ()
        draw_predictions(pictures, predictions, options.output, options.exif, explained)
    if options.csv:
        write_predictions(options.csv, predictions)
    if options.json:
        print(json.dumps([asdict(prediction) | {"computed_by": how} for prediction in predictions], indent=1))
        return
    _print_table(predictions)
    print(f"computed by {how}")
    for path in filter(None, (options.output, options.csv)):
        print(printable(f"written to {path}"))


def _predicted(options: argparse.Namespace) -> tuple[list["Picture"], list["Prediction"], str]:
    """Pictures, predictions, and what computed them. What can be wrong with names is known before JAX is imported."""
    from jeffnet.arch.imagenet import class_titles
    from jeffnet.inference.forward import check_classifies
    from jeffnet.inference.predict import predict

    card, load = open_model(options)
    check_classifies(card, options.model_file or options.weights)
    classes = class_titles(card.classes) or tuple(f"class {index}" for index in range(card.num_classes))
    pictures = _pictures(options.pictures, options.limit, card)
    with one_device(options):
        forward, variables, how = load()
        predictions = predict(
            forward,
            variables,
            pictures,
            card,
            classes,
            options.top,
            options.batch_size,
            options.exif,
        )
    return pictures, predictions, how


def _explained(
    options: argparse.Namespace, pictures: Sequence["Picture"], predictions: Sequence["Prediction"]
) -> "list[Image.Image]":
    """Each picture with what counts for its most probable class."""
    from jeffnet.data.preprocess import EvalTransform
    from jeffnet.inference.explain import explained

    with one_device(options):
        start, card = open_start(options)
        chosen = {name: getattr(options, name) for name in ("image_size", "crop_pct", "interpolation")}
        transform = EvalTransform(card.preprocessing.changed(**chosen), exif=options.exif)
        images = [each.image for each in pictures]
        # Of several labels there may be none above its threshold.
        classes = [each.indices[0] if each.indices else None for each in predictions]
        return explained(start, images, transform, options.explain, classes, progress=True)


def _print_table(predictions: Sequence["Prediction"]) -> None:
    rows = [[f"{name} {each.text(value)}" for name, value in each.shown()] or ["none"] for each in predictions]
    places = max(map(len, rows))
    rows = [[*row, *[""] * (places - len(row))] for row in rows]
    head = ["picture", *(str(place + 1) for place in range(places))]
    judged = [each.right for each in predictions if each.right is not None]
    if judged:
        head[1:1] = ["class", "right"]
        words = {None: "", True: "yes", False: "no"}
        rows = [[each.label or "", words[each.right], *row] for each, row in zip(predictions, rows, strict=True)]
    print(table(head, [(each.name, *row) for each, row in zip(predictions, rows, strict=True)]))
    if judged:
        print(f"{sum(judged)} of {len(judged)} pictures of known classes are right")


def _pictures(names: list[str], limit: int, card: "ModelCard") -> list["Picture"]:
    from jeffnet.data.images import read_image
    from jeffnet.inference.predict import Picture
    from jeffnet.inference.remote import fetch_picture
    from jeffnet.weights.download import without_password

    pictures: list[Picture] = []
    for name in names:
        if is_url(name):
            shown = without_password(name)
            pictures.append(Picture(shown, read_image(fetch_picture(name), card.in_chans, shown)))
        elif name == "digits":
            pictures += _digits(limit, card)
        elif Path(name).is_dir():
            pictures += _of_folder(name, limit, card)
        else:
            pictures.append(Picture(name, read_image(Path(name), card.in_chans)))
    return pictures


def _digits(limit: int, card: "ModelCard") -> list["Picture"]:
    from jeffnet.data.open import open_source
    from jeffnet.inference.predict import Picture

    source = open_source("digits", "val", card.in_chans)
    labels = _labels(source.classes, card)
    examples = map(source.__getitem__, range(min(limit, len(source))))
    return [Picture(each.name, each.image, labels.get(source.classes[each.label])) for each in examples]


def _of_folder(name: str, limit: int, card: "ModelCard") -> list["Picture"]:
    from jeffnet.data.images import SUFFIXES, read_image
    from jeffnet.data.sources import picture_files
    from jeffnet.inference.predict import Picture

    files = picture_files(Path(name))
    if not files:
        raise DatasetError(f"folder {name!r} has no pictures: files ending in {', '.join(sorted(SUFFIXES))}")
    # A model's classes are recognised by the names of all folders, also of those whose pictures are not shown.
    labels = _labels(sorted({file.absolute().parent.name for file in files}), card)
    chosen = _spread(files, limit)
    if len(chosen) < len(files):
        cut = f"{name}: {len(chosen)} of {len(files)} pictures, from {len({file.parent for file in chosen})} folders"
        print(printable(f"{cut}; --limit shows more"), file=sys.stderr)
    return [
        Picture(str(file), read_image(file, card.in_chans), labels.get(file.absolute().parent.name)) for file in chosen
    ]


def _labels(folders: Sequence[str], card: "ModelCard") -> dict[str, int]:
    """Which of the model's classes each folder is named after; empty unless all are."""
    from jeffnet.arch.class_names import class_indices
    from jeffnet.arch.imagenet import known_classes

    if card.task != "single_label":
        return {}
    if not card.classes and not known_classes(card.num_classes) and not all(name.isdecimal() for name in folders):
        return {}  # their order would decide, but they may be any folders
    indices = class_indices(folders, card.num_classes, card.classes)
    return dict(zip(folders, indices or (), strict=False))


def _spread(files: Sequence[Path], most: int) -> list[Path]:
    """Up to `most` of some sorted files: as many of every folder, or those of some folders where there are more."""
    from jeffnet.data.sources import evenly_spread

    folders = [list(group) for _, group in groupby(files, key=lambda file: file.parent)]
    chosen = [folders[place] for place in evenly_spread(len(folders), most)]
    turns = sorted((turn, number) for number, folder in enumerate(chosen) for turn in range(len(folder)))[:most]
    return [chosen[number][turn] for turn, number in sorted(turns, key=lambda each: each[::-1])]
