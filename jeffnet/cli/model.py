"""Options that commands share: the model, its preprocessing, and types of values."""

import argparse
import os
from typing import TYPE_CHECKING, Any

from jeffnet.arch.preprocessing import INTERPOLATIONS
from jeffnet.arch.zoo import is_known, register_model
from jeffnet.backends import BACKENDS, DTYPES, RUNNING_BACKEND
from jeffnet.data.choices import ON_BAD_IMAGE
from jeffnet.errors import UsageError
from jeffnet.system.reading import is_url

if TYPE_CHECKING:
    from collections.abc import Callable

    from jeffnet.inference.forward import Forward
    from jeffnet.weights.card import ModelCard
    from jeffnet.weights.formats.interface import WeightsFile
    from jeffnet.weights.start import Start

MODEL_TEXT = "a name, or a file of jeffnet's own format that has the same architecture"

DATA_TEXT = (
    "image folder with val/<class>/ or <class>/; tar shards; parquet files or hf:owner/name; tfds:name or a prepared "
    "TFDS folder; .npz of images and labels; a .csv, .tsv or .jsonl table or COCO's .json; or `digits`"
)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a command that runs one model."""
    group = parser.add_argument_group("model")
    add_weights_options(group)
    add_model_file_option(group)
    add_backend_options(group)
    group.add_argument("--batch-size", type=positive, default=32, help="pictures per batch (default: %(default)s)")
    pixels = parser.add_argument_group("pixels")
    add_size_option(pixels)
    add_crop_options(pixels)


def add_weights_options(group: Any) -> None:
    """Add `--weights` and `--model`, of one model."""
    group.add_argument(
        "--weights",
        metavar="SOURCE",
        help="a file or checkpoint in any format, a repository on the hub (hf:owner/name), or a URL (default: the "
        "published weights of --model)",
    )
    group.add_argument("--model", metavar="NAME", help=f"{MODEL_TEXT}; required unless the weights name their model")


def add_source_options(group: Any) -> None:
    """Add the options that choose the pictures of a data set."""
    group.add_argument("--split", default="val", help="split of the data set; val also finds validation and test")
    group.add_argument("--data-dir", metavar="DIR", help="folder of prepared TensorFlow Datasets")
    group.add_argument("--num-examples", type=positive, metavar="N", help="use only the first N pictures")
    group.add_argument("--workers", type=whole, metavar="N", help="processes that read pictures (grain: 0 for threads)")
    text = "what to do if a picture cannot be decoded"
    group.add_argument("--on-bad-image", choices=ON_BAD_IMAGE, default="error", help=text)


def add_table_options(group: Any) -> None:
    """Add the options that say what the columns of a table are."""
    for name, text in (
        ("path", "column of a table's paths (default: path, file_name, filename, file or image)"),
        ("split", "column of a table's split (default: split, if there is one)"),
    ):
        group.add_argument(f"--{name}-column", metavar="NAME", help=text)
    text = "column of a table's label (default: label, labels or class)"
    group.add_argument("--label-columns", type=_names, default=(), metavar="NAME", help=text)
    text = "folder that a table's paths are relative to (default: its own)"
    group.add_argument("--image-folder", type=local_path, metavar="DIR", help=text)


def add_backend_options(group: Any) -> None:
    """Add `--backend`, `--fused` and `--dtype`."""
    text = (
        "module system whose layers run (default: none on one CPU, where the fused model runs; elsewhere %(default)s)"
    )
    group.add_argument("--backend", choices=BACKENDS, default=RUNNING_BACKEND, help=text)
    add_switch(group, "--fused", True, f"run the fused model on one CPU; else {RUNNING_BACKEND}'s layers")
    text = "dtype of the arithmetic; the fused model has no float16 (default: %(default)s)"
    group.add_argument("--dtype", choices=DTYPES, default="float32", help=text)


def add_size_option(parser: Any) -> None:
    """Add `--image-size`, one side of square pictures."""
    text = "side of the pictures (default: the model's)"
    parser.add_argument("--image-size", "--img-size", type=positive, metavar="PIXELS", help=text)


def add_crop_options(group: Any) -> None:
    """Add `--crop-pct` and `--interpolation`."""
    text = "share of the resized picture to keep (default: the model's)"
    group.add_argument("--crop-pct", type=share, metavar="SHARE", help=text)
    group.add_argument("--interpolation", choices=INTERPOLATIONS, help="(default: the model's)")


def add_switch(group: Any, name: str, default: bool, text: str) -> None:
    """Add an option that `--no-NAME` turns off; `--help` shows the default."""
    text = f"{text} (default: {'yes' if default else 'no'})"
    group.add_argument(name, action=argparse.BooleanOptionalAction, default=default, help=text)


def add_model_file_option(group: Any) -> None:
    """Add `--model-file`."""
    text = "an exported file (docs/export.md) instead of weights; --model only where it does not say its model"
    group.add_argument("--model-file", type=local_path, metavar="FILE", help=text)


def check_model_file(options: argparse.Namespace) -> None:
    """Raises UsageError for options that an exported file has no use for."""
    if options.model_file is None:
        return
    if options.weights is not None:
        raise UsageError("--model-file and --weights: give one of them")
    defaults = {"explain": None, "backend": RUNNING_BACKEND, "dtype": DTYPES[0]}
    for name, reason in {
        "backend": "runs in its own runtime",
        "dtype": "has its own dtype",
        "test_pool": "has its own pooling",
        "no_jit": "runs in its own runtime",
        "explain": "has no derivatives",
    }.items():
        default = defaults.get(name, False)
        if getattr(options, name, default) != default:
            raise UsageError(f"--{name.replace('_', '-')} is not for --model-file, which {reason}")


def open_model(options: argparse.Namespace) -> "tuple[ModelCard, Callable[[], tuple[Forward, Any, str]]]":
    """The card of a model with the chosen preprocessing, and a function that loads it on devices that are started.

    The function gives a function of variables and pictures, 0 to 255, the variables, and what computes it. All that can
    be wrong with the weights' name or address is known before JAX is imported.
    """
    from dataclasses import replace

    if options.model_file is not None:
        return _open_file(options)
    from jeffnet.validation.candidates import NO_MODEL
    from jeffnet.weights.load import describe_weights

    if options.weights is None and options.model is None:
        raise UsageError(NO_MODEL)
    name = options.model and model_name(options.model)
    file, card = describe_weights(True if options.weights is None else options.weights, name)
    chosen = {name: getattr(options, name) for name in ("image_size", "crop_pct", "interpolation")}
    card = replace(card, preprocessing=card.preprocessing.changed(**chosen))
    return card, lambda: _loaded(options, file, name, card)


def _loaded(
    options: argparse.Namespace, file: "WeightsFile", name: str | None, card: "ModelCard"
) -> "tuple[Forward, Any, str]":
    import jax.numpy as jnp

    from jeffnet.backends import load_backend
    from jeffnet.inference.forward import make_forward
    from jeffnet.inference.fused_forward import BY_FUSED, FusedForward, computed_by
    from jeffnet.weights.start import start_pretrained

    dtype = jnp.dtype(options.dtype)
    how = computed_by(options.backend, dtype, fused=options.fused)
    if how == BY_FUSED:
        start, _ = start_pretrained(file, name, dtype=dtype, place=lambda array: array)
        return FusedForward(start, card.preprocessing), {}, how
    backend = load_backend(options.backend)
    *model, _ = backend.from_pretrained(file, name, dtype=dtype)
    apply, variables = backend.inference(*model)
    return make_forward(apply, card.preprocessing), variables, how


def _open_file(options: argparse.Namespace) -> "tuple[ModelCard, Callable[[], tuple[Forward, Any, str]]]":
    from dataclasses import replace

    from jeffnet.export.run import open_exported
    from jeffnet.inference.forward import exported_forward

    check_model_file(options)
    exported = open_exported(options.model_file, options.model and model_name(options.model))
    height, width = exported.image_size
    if height != width:
        raise UsageError(f"{options.model_file!r} takes pictures of {height}x{width} pixels: predict has squares only")
    if options.image_size not in (None, height):
        raise UsageError(f"{options.model_file!r} takes pictures of {height} pixels: --image-size cannot change that")
    chosen = {"image_size": height, "crop_pct": options.crop_pct, "interpolation": options.interpolation}
    card = replace(exported.card, preprocessing=exported.card.preprocessing.changed(**chosen))
    return card, lambda: (exported_forward(exported), {}, exported.runner.runtime)


def open_start(options: argparse.Namespace) -> "tuple[Start, ModelCard]":
    """A model by `--weights` and `--model`, from which any backend can build it, and its card."""
    import jax.numpy as jnp

    from jeffnet.validation.candidates import NO_MODEL
    from jeffnet.weights.start import start_pretrained

    if options.weights is None and options.model is None:
        raise UsageError(NO_MODEL)
    name = options.model and model_name(options.model)
    source = True if options.weights is None else options.weights
    return start_pretrained(source, name, dtype=jnp.dtype(options.dtype))


def model_name(text: str) -> str:
    """The name that an option gives, or that of the model in the file that it gives, registered for this process."""
    if is_known(text) or not os.path.isfile(text):
        return text
    from jeffnet.weights.load import read_weights

    card = read_weights(text).card
    if card is None:
        raise UsageError(f"model {text!r}: a file of another format than jeffnet's does not say its architecture")
    if card.spec is not None:
        register_model(card.model, card.spec, card.preprocessing)
    return card.model


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def whole(text: str) -> int:
    """A whole number of at least 0, for argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def positive_number(text: str) -> float:
    """A finite number above 0, for argparse."""
    value = _number(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def share(text: str) -> float:
    """A number in (0, 1], for argparse."""
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share: give a number above 0, up to 1")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def local_path(text: str) -> str:
    """A file or folder on this machine, for argparse."""
    if is_url(text):
        raise argparse.ArgumentTypeError(f"{text!r} is an address, not a file or folder on this machine")
    return text


def image_size(text: str) -> tuple[int, int]:
    """Height and width from `224` or `224x320`, for argparse."""
    sides = [positive(side) for side in text.lower().split("x")]
    if len(sides) > 2:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a side nor HEIGHTxWIDTH")
    return sides[0], sides[-1]


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))
