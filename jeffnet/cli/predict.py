"""`jeffnet predict`: classify pictures."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jeffnet.cli.devices import add_device_options, start_devices
from jeffnet.cli.model import add_model_options, add_switch, local_path, open_forward, positive
from jeffnet.cli.text import table
from jeffnet.errors import DatasetError
from jeffnet.system.figures import FORMS
from jeffnet.system.files import check_output
from jeffnet.system.reading import is_url
from jeffnet.text.names import printable


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
    parser.add_argument("--limit", type=positive, default=24, help="most pictures of one folder (default: %(default)s)")
    text = "draw the pictures with their classes: .png, .jpg, .pdf, .svg, ..."
    parser.add_argument("--output", type=local_path, metavar="FILE", help=text)
    add_switch(parser, "--exif", True, "rotate pictures by their EXIF orientation, which `jeffnet validate` does not")
    parser.add_argument("--json", action="store_true", help="one array of objects")
    add_device_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Predict, print the table and draw the picture."""
    from jeffnet.arch.imagenet import class_titles
    from jeffnet.data.images import orientation
    from jeffnet.inference.predict import draw_predictions, predict
    from jeffnet.validation.answers import check_classifies

    if options.output:
        check_output(options.output, FORMS)
    start_devices(options)
    forward, variables, card = open_forward(options)
    check_classifies(card, options.model_file or options.weights)
    classes = class_titles(card.classes) or tuple(f"class {index}" for index in range(card.num_classes))
    pictures = _pictures(options.pictures, options.limit, card.in_chans)
    predictions = predict(
        forward, variables, pictures, card.preprocessing, classes, options.top, options.batch_size, options.exif
    )
    if turned := sum(orientation(picture.image) != 1 for picture in pictures):
        how = "were rotated; --no-exif keeps them as stored" if options.exif else "were not rotated"
        print(f"{turned} of {len(pictures)} pictures have an EXIF orientation and {how}", file=sys.stderr)
    if options.output:
        draw_predictions(pictures, predictions, options.output, options.exif)
    if options.json:
        print(json.dumps([asdict(prediction) for prediction in predictions], indent=1))
        return
    guesses = [
        [f"{name} {share:.1%}" for name, share in zip(prediction.classes, prediction.probabilities, strict=True)]
        for prediction in predictions
    ]
    head = ("picture", *(str(place + 1) for place in range(len(guesses[0]))))
    print(table(head, [(prediction.name, *row) for prediction, row in zip(predictions, guesses, strict=True)]))
    if options.output:
        print(printable(f"drawn in {options.output}"))


def _pictures(names: list[str], limit: int, channels: int) -> list[Any]:
    from jeffnet.data.images import SUFFIXES, read_image
    from jeffnet.data.open import open_source
    from jeffnet.data.sources import picture_files
    from jeffnet.inference.predict import Picture
    from jeffnet.inference.remote import fetch_picture
    from jeffnet.weights.download import without_password

    pictures: list[Picture] = []
    for name in names:
        path = Path(name)
        if is_url(name):
            shown = without_password(name)
            pictures.append(Picture(shown, read_image(fetch_picture(name), channels, shown)))
        elif name == "digits":
            source = open_source(name, "val", channels)
            for example in map(source.__getitem__, range(min(limit, len(source)))):
                pictures.append(Picture(f"{example.name} ({source.classes[example.label]})", example.image))
        elif path.is_dir():
            files = picture_files(path)
            if not files:
                raise DatasetError(f"folder {name!r} has no pictures: files ending in {', '.join(sorted(SUFFIXES))}")
            if len(files) > limit:
                cut = f"{name}: the first {limit} of {len(files)} pictures; --limit shows more"
                print(printable(cut), file=sys.stderr)
            pictures += [Picture(str(file), read_image(file, channels)) for file in files[:limit]]
        else:
            pictures.append(Picture(name, read_image(path, channels)))
    return pictures
