"""`jeffnet embed`: the vectors of pictures, and what they show."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jeffnet.backends import DTYPES
from jeffnet.cli.devices import add_device_options, one_device
from jeffnet.cli.model import (
    DATA_TEXT,
    add_crop_options,
    add_size_option,
    add_source_options,
    add_switch,
    add_table_options,
    add_weights_options,
    local_path,
    open_start,
    positive,
)
from jeffnet.inference.choices import PROJECTIONS, VECTOR_DTYPES
from jeffnet.text.names import counted, portable, printable

if TYPE_CHECKING:
    from jeffnet.data.columns import Columns
    from jeffnet.data.sources import Source
    from jeffnet.inference.vectors import Vectors
    from jeffnet.weights.card import ModelCard


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "embed",
        parents=[common],
        help="vectors of pictures",
        description="Write the vectors of all pictures of a data set, with their names and labels. A run that was "
        "interrupted goes on where it was.",
    )
    parser.add_argument("data", help=DATA_TEXT)
    text = "file to write: .parquet, .npz, or .npy with the labels in a .labels.csv beside it"
    parser.add_argument("--output", type=local_path, metavar="FILE", required=True, help=text)
    model = parser.add_argument_group("model")
    add_weights_options(model)
    model.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of the arithmetic (default: %(default)s)")
    model.add_argument("--batch-size", type=positive, default=32, help="pictures per batch (default: %(default)s)")
    text = "pre_logits, the classifier's input; or a map of features, such as blocks.4, averaged (default: %(default)s)"
    model.add_argument("--layer", metavar="NAME", default="pre_logits", help=text)
    text = "dtype of the vectors in the file (default: %(default)s)"
    model.add_argument("--vector-dtype", choices=VECTOR_DTYPES, default=VECTOR_DTYPES[0], help=text)
    add_source_options(parser.add_argument_group("data"))
    add_table_options(parser.add_argument_group("data sets that are tables"))
    pixels = parser.add_argument_group("pixels (default: the model's)")
    add_size_option(pixels)
    add_crop_options(pixels)
    add_switch(pixels, "--exif", True, "rotate pictures by their EXIF orientation, as `jeffnet predict` does")
    group = parser.add_argument_group("what the vectors show (needs scikit-learn)")
    text = "file of vectors of other pictures to learn from: score nearest neighbours and a linear probe"
    group.add_argument("--probe", type=local_path, metavar="FILE", help=text)
    text = "draw pictures with their nearest ones, beside the output: OUTPUT.neighbours.jpg"
    group.add_argument("--neighbours", "--neighbors", action="store_true", help=text)
    text = "draw the vectors in the plane, beside the output: OUTPUT.pca.png"
    group.add_argument("--plot", choices=PROJECTIONS, help=text)
    add_device_options(parser, numbered=True)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Write the vectors, then what they show."""
    from jeffnet.data.open import open_source
    from jeffnet.data.preprocess import EvalTransform
    from jeffnet.data.sources import First
    from jeffnet.inference.embed import EmbedSettings, embed_source
    from jeffnet.inference.vectors import check_vectors_path, read_vectors

    check_vectors_path(options.output)
    shows = bool(options.probe or options.neighbours or options.plot)
    if shows:
        from jeffnet.inference.probe import check_probe

        check_probe()
    known = read_vectors(options.probe) if options.probe else None
    with one_device(options):
        start, card = open_start(options)
        source: Source = open_source(
            options.data, options.split, card.in_chans, data_dir=options.data_dir, columns=_columns(options)
        )
        if options.num_examples:
            source = First(source, options.num_examples)
        chosen = {name: getattr(options, name) for name in ("image_size", "crop_pct", "interpolation")}
        settings = EmbedSettings(
            layer=options.layer,
            dtype=options.vector_dtype,
            batch_size=options.batch_size,
            workers=options.workers,
            on_bad_image=options.on_bad_image,
        )
        transform = EvalTransform(card.preprocessing.changed(**chosen), exif=options.exif)
        skipped = embed_source(start, transform, source, options.output, settings, progress=True)
    if skipped:
        names = [f"  {printable(source.name(index))}" for index in skipped]
        print(f"skipped {counted(len(skipped), 'picture')} that cannot be decoded:", *names, sep="\n", file=sys.stderr)
    print(printable(f"written to {options.output}"))
    if shows:
        _show(options, read_vectors(options.output), known, source, card)


def _show(
    options: argparse.Namespace, vectors: "Vectors", known: "Vectors | None", source: "Source", card: "ModelCard"
) -> None:
    from jeffnet.inference.probe import draw_neighbours, draw_projection, probe

    if known is not None:
        scores = probe(known, vectors)
        print(
            printable(
                f"learned from {len(known):,} pictures of {options.probe}, of {len(vectors):,} right: "
                f"{scores.neighbours} nearest neighbours {scores.knn:.2f} %, linear probe {scores.linear:.2f} %"
            )
        )
    output = Path(options.output)
    if options.neighbours:
        path = output.with_suffix(".neighbours.jpg")
        draw_neighbours(path, vectors, source)
        print(printable(f"written to {path}"))
    if options.plot:
        path = output.with_suffix(f".{options.plot}.png")
        draw_projection(path, vectors, options.plot, printable(f"{card.model}, {portable(options.data)}"))
        print(printable(f"written to {path}"))


def _columns(options: argparse.Namespace) -> "Columns":
    from jeffnet.data.columns import Columns

    return Columns(options.path_column, options.label_columns, options.split_column, folder=options.image_folder)
