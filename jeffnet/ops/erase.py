"""Random erasing: rectangles of training pictures overwritten.

Source: Zhong et al., "Random Erasing Data Augmentation", arXiv:1708.04896. Rectangles are drawn as timm draws them.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from jeffnet.arch.preprocessing import per_channel
from jeffnet.errors import ConfigError, check_choice
from jeffnet.ops.box import inside
from jeffnet.ops.broadcast import over_channels
from jeffnet.ops.precision import at_least_float32

MODES = ("const", "rand", "pixel")

_ATTEMPTS = 10  # draws of a rectangle until it fits into its picture


def random_erasing(
    images: Array,
    key: Array,
    *,
    prob: float,
    mode: str,
    count: int,
    mean: Sequence[float],
    std: Sequence[float],
    area: tuple[float, float] = (0.02, 1 / 3),
    ratio: tuple[float, float] = (0.3, 1 / 0.3),
) -> Array:
    """Some pictures with rectangles overwritten, each picture with its own.

    Args:
      images: `(N, H, W, C)`, any float dtype, 0 to 255: before normalisation.
      key: of all that is drawn.
      prob: probability that a picture is touched.
      mode: with what: 'const' is the mean colour; 'rand' a random one for each rectangle, 'pixel' one for each pixel:
        normal noise that after normalisation has mean 0 and deviation 1. It may lie outside 0 to 255.
      count: a touched picture has 1 to `count` rectangles, every number as likely.
      mean: by which pictures are normalised, as for `jeffnet.ops.image.normalize`.
      std: likewise.
      area: from which each rectangle's share of the picture is drawn, before it is divided by their number.
      ratio: from which height by width is drawn, evenly in its logarithm.

    Returns:
      Array shaped and typed like `images`.

    Raises:
      ConfigError: another mode, or images of other dimensions or no float dtype.
      JeffnetError: `mean` or `std` does not fit the channels.
    """
    check_choice("mode", mode, MODES)
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ConfigError(f"images of shape {images.shape}, {images.dtype}: expected floats (N, H, W, C)")
    box_key, noise_key = jax.random.split(key)
    pictures, height, width, channels = images.shape
    boxes = draw_boxes(box_key, pictures, height, width, prob=prob, count=count, area=area, ratio=ratio)
    compute = at_least_float32(images.dtype)
    noise = _noise(noise_key, mode, count, images.shape)
    offset = over_channels(jnp.asarray(per_channel("mean", mean, channels), compute), noise)
    scale = over_channels(jnp.asarray(per_channel("std", std, channels), compute), noise)
    fills = ((noise * scale + offset) * 255).astype(images.dtype)
    for number in range(count):
        fill = fills[number if mode == "rand" else 0]
        images = jnp.where(inside(boxes[number], height, width), fill, images)
    return images


def draw_boxes(
    key: Array,
    pictures: int,
    height: int,
    width: int,
    *,
    prob: float,
    count: int,
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> Array:
    """The rectangles that `random_erasing` erases from pictures of this height and width.

    Returns:
      `(count, pictures, 4)` int32, as `jeffnet.ops.box.inside` takes them. Those that a picture does not have, or that
      did not fit into it in 10 attempts, are empty.
    """
    prob_key, count_key, area_key, ratio_key, top_key, left_key = jax.random.split(key, 6)
    is_touched = jax.random.uniform(prob_key, (pictures,), jnp.float32) < prob
    counts = jax.random.randint(count_key, (pictures,), 1, count + 1)

    # A loop until the rectangle fits would run as long as the unluckiest picture's; drawing every attempt is cheaper.
    attempts = (count, pictures, _ATTEMPTS)
    share = jax.random.uniform(area_key, attempts, jnp.float32, *area)
    pixels = share * (height * width) / counts[None, :, None].astype(share.dtype)
    aspect = jnp.exp(jax.random.uniform(ratio_key, attempts, jnp.float32, math.log(ratio[0]), math.log(ratio[1])))
    tall = jnp.round(jnp.sqrt(pixels * aspect)).astype(jnp.int32)
    wide = jnp.round(jnp.sqrt(pixels / aspect)).astype(jnp.int32)
    fits = (tall < height) & (wide < width)

    first = jnp.argmax(fits, axis=-1, keepdims=True)
    exists = fits.any(-1) & is_touched[None] & (jnp.arange(count)[:, None] < counts[None])
    tall, wide = (jnp.where(exists, jnp.take_along_axis(x, first, -1)[..., 0], 0) for x in (tall, wide))
    top = jax.random.randint(top_key, tall.shape, 0, height - tall + 1)
    left = jax.random.randint(left_key, wide.shape, 0, width - wide + 1)
    return jnp.stack([top, top + tall, left, left + wide], axis=-1).astype(jnp.int32)


def _noise(key: Array, mode: str, count: int, shape: tuple[int, ...]) -> Array:
    """What is filled in, in units after normalisation, broadcasting to `(1 or count, *shape)`."""
    pictures, height, width, channels = shape
    if mode == "const":
        return jnp.zeros((1, 1, 1, 1, channels))
    if mode == "rand":
        return jax.random.normal(key, (count, pictures, 1, 1, channels), jnp.float32)
    # Where rectangles overlap, one noise is as good as another: all share it.
    return jax.random.normal(key, (1, pictures, height, width, channels), jnp.float32)
