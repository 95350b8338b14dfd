"""Draws `docs/augmentations.png`: what every operation, every policy and every way to mix pictures does to photographs.

python docs/augmentations.py

The photographs are scikit-learn's: pip install scikit-learn.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

from jeffnet.arch.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from jeffnet.data.augment import operations
from jeffnet.data.augment.operations import Fill
from jeffnet.data.augment.sheet import Row, draw_sheet
from jeffnet.data.preprocess import TrainTransform
from jeffnet.ops.erase import random_erasing
from jeffnet.ops.mix import mix_batch

SIZE, COLUMNS = 68, 8
FILL: Fill = tuple(round(255 * value) for value in IMAGENET_MEAN)

Change = Callable[[Image.Image, float], Image.Image]


def whole(function: Callable[[Image.Image, int], Image.Image]) -> Change:
    """An operation whose argument is a whole number."""
    return lambda image, value: function(image, int(value))


def moving(function: Callable[[Image.Image, float, Fill, Image.Resampling], Image.Image]) -> Change:
    """An operation that moves pixels."""
    return lambda image, value: function(image, value, FILL, Image.Resampling.BICUBIC)


FACTORS = (0.1, 0.5, 0.8, 1.2, 1.5, 1.9)
SHEARS = (-0.3, -0.2, -0.1, 0.1, 0.2, 0.3)
SHARES = (-0.45, -0.3, -0.1, 0.1, 0.3, 0.45)
OPERATIONS: dict[str, tuple[Change, Sequence[float]]] = {
    "posterize, bits": (whole(operations.posterize), (6, 5, 4, 3, 2, 1)),
    "solarize from": (operations.solarize, (240, 200, 160, 128, 80, 0)),
    "solarize add": (whole(operations.solarize_add), (10, 30, 50, 70, 90, 110)),
    "color": (operations.color, FACTORS),
    "contrast": (operations.contrast, FACTORS),
    "brightness": (operations.brightness, FACTORS),
    "sharpness": (operations.sharpness, FACTORS),
    "desaturate": (operations.desaturate, (0.5, 0.6, 0.7, 0.8, 0.9, 1)),
    "Gaussian blur, radius": (operations.gaussian_blur, (0.1, 0.5, 1, 1.5, 2)),
    "rotate, degrees": (moving(operations.rotate), (-30, -20, -10, 10, 20, 30)),
    "shear x": (moving(operations.shear_x), SHEARS),
    "shear y": (moving(operations.shear_y), SHEARS),
    "translate x, share": (moving(operations.translate_x_relative), SHARES),
    "translate y, share": (moving(operations.translate_y_relative), SHARES),
}

POLICIES = {
    "AutoAugment\nv0": {"policy": "v0"},
    "AutoAugment\noriginal": {"policy": "original"},
    "RandAugment\nrand-m9-mstd0.5": {"policy": "rand-m9-mstd0.5"},
    "RandAugment\nrand-m9-n3-mstd0.5\n-inc1": {"policy": "rand-m9-n3-mstd0.5-inc1"},
    "RandAugment\nrand-m15-mmax15": {"policy": "rand-m15-mmax15"},
    "AugMix\naugmix-m3-w3": {"policy": "augmix-m3-w3"},
    "AugMix\naugmix-m10-mstd0": {"policy": "augmix-m10-mstd0"},
    "TrivialAugment\ntrivial": {"policy": "trivial"},
    "3-Augment, jitter 0.3\n3a": {"policy": "3a", "color_jitter": 0.3},
    "color jitter 0.4": {"color_jitter": 0.4},
}

MIXES = {
    "mixup 0.8\nbatch": {"mixup": 0.8, "cutmix": 0.0, "mode": "batch"},
    "mixup 0.8\nelem": {"mixup": 0.8, "cutmix": 0.0, "mode": "elem"},
    "cutmix 1.0\nbatch": {"mixup": 0.0, "cutmix": 1.0, "mode": "batch"},
    "cutmix 1.0\nelem": {"mixup": 0.0, "cutmix": 1.0, "mode": "elem"},
}


def operation_rows(image: Image.Image) -> Iterator[Row]:
    """The picture, then what each operation makes of it."""
    original = ("original", np.asarray(image))
    changes = (ImageOps.autocontrast, ImageOps.equalize, ImageOps.invert)
    yield "no strength", [original, *((change.__name__, np.asarray(change(image))) for change in changes)]
    for label, (change, values) in OPERATIONS.items():
        yield label, [original, *((f"{value:g}", np.asarray(change(image, value))) for value in values)]


def policy_rows(image: Image.Image) -> Iterator[Row]:
    """The picture, then draws of each policy on the whole of it; last draws of crop and flip."""
    original = ("original", np.asarray(image))
    fixed = TrainTransform(SIZE, scale=(1, 1), ratio=(1, 1), hflip=0, fill=FILL)
    rows = {label: replace(fixed, **options) for label, options in POLICIES.items()}
    rows["crop and flip"] = TrainTransform(SIZE)
    rng = np.random.default_rng(0)
    for label, transform in rows.items():
        draws = [transform(image, rng) for _ in range(1, COLUMNS)]
        yield label, [original, *((f"draw {number}", draw) for number, draw in enumerate(draws, 1))]


def device_rows(photographs: Sequence[Image.Image]) -> Iterator[Row]:
    """A batch of crops of the photographs in turn, then what a training step may make of it."""
    crop = TrainTransform(SIZE, scale=(0.25, 1))
    numbers = [column % len(photographs) for column in range(COLUMNS)]
    batch = np.stack([crop(photographs[number], np.random.default_rng(SIZE + i)) for i, number in enumerate(numbers)])
    targets = jax.nn.one_hot(jnp.array(numbers), len(photographs))
    yield "a batch, and the\nfirst class's target", list(zip(captions(targets), batch, strict=True))
    images, key = jnp.asarray(batch, jnp.float32), jax.random.key(0)
    for label, options in MIXES.items():
        mixed, mixed_targets = mix_batch(images, targets, key, prob=1.0, switch_prob=0.5, **options)
        yield label, list(zip(captions(mixed_targets), pixels(mixed), strict=True))
    for mode in ("const", "rand", "pixel"):
        erased = random_erasing(images, key, prob=0.75, mode=mode, count=2, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        yield f"random erasing\n{mode}, 0.75", list(zip(captions(targets), pixels(erased), strict=True))


def captions(targets: jax.Array) -> list[str]:
    """The first class's share of each target."""
    return [f"{float(target[0]):.2f}" for target in targets]


def pixels(images: jax.Array) -> np.ndarray:
    """Values of 0 to 255 as uint8."""
    return np.clip(np.rint(np.asarray(images)), 0, 255).astype(np.uint8)


def main() -> None:
    """Draws the sheet."""
    china, flower = (Image.fromarray(load_sample_image(f"{name}.jpg")) for name in ("china", "flower"))
    square = china.crop((150, 80, 450, 380)).resize((SIZE, SIZE))
    path = Path(__file__).with_suffix(".png")
    draw_sheet([*operation_rows(square), *policy_rows(square), *device_rows((china, flower))], path)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
