"""The options by which commands choose a model, and their meaning."""

import argparse

from jeffnet.arch.preprocessing import INTERPOLATIONS
from jeffnet.backends import BACKENDS
from jeffnet.errors import UsageError
from jeffnet.system.reading import is_url


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add `--weights`, `--model` and how pictures are prepared."""
    parser.add_argument(
        "--weights",
        metavar="SOURCE",
        help="a file or checkpoint of any kind, a repository of the model hub (hf:owner/name), or a URL (default: the "
        "published weights of --model)",
    )
    parser.add_argument("--model", metavar="NAME", help="needed where the weights do not say of which model they are")
    parser.add_argument(
        "--backend", choices=BACKENDS, default="linen", help="module system that computes (default: %(default)s)"
    )
    parser.add_argument("--batch-size", type=positive, default=32, help="pictures at once (default: %(default)s)")
    parser.add_argument(
        "--img-size",
        "--image-size",
        dest="image_size",
        type=positive,
        help="pixels along each side (default: the model's)",
    )
    parser.add_argument("--crop-pct", type=share, help="share of the picture that is kept (default: the model's)")
    parser.add_argument("--interpolation", choices=INTERPOLATIONS, help="(default: the model's)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of arithmetic")


def open_model(options: argparse.Namespace):
    """The model of the options.

    Returns:
      A pure function of variables and normalised images, the variables, and the card of the model with the
      preprocessing that the options ask for.
    """
    from dataclasses import replace

    import jax.numpy as jnp

    from jeffnet.backends import load_backend

    if options.weights is None and options.model is None:
        raise UsageError("give --model NAME for a model's published weights, or --weights SOURCE for others")
    backend = load_backend(options.backend)
    source = True if options.weights is None else options.weights
    *model, card = backend.from_pretrained(source, options.model, dtype=jnp.dtype(options.dtype))
    chosen = {
        name: getattr(options, name)
        for name in ("image_size", "crop_pct", "interpolation")
        if getattr(options, name) is not None
    }
    return *backend.inference(*model), replace(card, preprocessing=replace(card.preprocessing, **chosen))


def positive(text: str) -> int:
    """A whole number from 1 on, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def whole(text: str) -> int:
    """A whole number from 0 on, for argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def share(text: str) -> float:
    """A number in (0, 1], for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share: give a number above 0, up to 1")
    return value


def local_path(text: str) -> str:
    """A file or folder of this machine, for argparse."""
    if is_url(text):
        raise argparse.ArgumentTypeError(f"{text!r} is an address, not a file or folder of this machine")
    return text


def picture_size(text: str) -> tuple[int, int]:
    """Height and width from `224` or `224x320`, for argparse."""
    sides = [positive(side) for side in text.lower().split("x")]
    if len(sides) > 2:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a side nor HEIGHTxWIDTH")
    return sides[0], sides[-1]
