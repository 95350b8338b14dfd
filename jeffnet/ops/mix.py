"""Mixup and CutMix: pictures of a batch mixed with one another, and their targets with them.

Sources: Zhang et al., "mixup: Beyond Empirical Risk Minimization", arXiv:1710.09412; Yun et al., "CutMix:
Regularization Strategy to Train Strong Classifiers with Localizable Features", arXiv:1905.04899.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from jeffnet.errors import ConfigError, check_choice
from jeffnet.ops.box import inside
from jeffnet.ops.precision import at_least_float32

MODES = ("batch", "elem")


def mix_batch(
    images: Array,
    targets: Array,
    key: Array,
    *,
    mixup: float,
    cutmix: float,
    prob: float,
    switch_prob: float,
    mode: str,
    dtype: DTypeLike | None = None,
) -> tuple[Array, Array]:
    """The batch mixed with the reversed batch, as timm does.

    Args:
      images: `(N, H, W, C)`, any range; N may be odd. Of any float dtype, or with `dtype` of any at all.
      targets: `(N, classes)`, any float dtype: soft or one-hot.
      key: of all that is drawn.
      mixup: alpha of the Beta distribution of mixup's shares; 0 for no mixup.
      cutmix: alpha of CutMix's; 0 for no CutMix.
      prob: probability of being mixed at all.
      switch_prob: probability of CutMix where both are possible.
      mode: 'batch' draws once for all pictures, 'elem' for each of them.
      dtype: of the mixed pictures; None takes that of the given ones. Where devices share the batch, pictures travel
        between them as they were given: uint8 is a quarter of float32.

    Returns:
      Pictures and targets, shaped and typed like the given ones; those themselves where nothing can be mixed.

    Raises:
      ConfigError: another mode, or images and targets that do not fit.
    """
    check_choice("mode", mode, MODES)
    dtype = images.dtype if dtype is None else dtype
    _check(images, targets, dtype)
    if prob == 0 or (mixup == 0 and cutmix == 0):
        return images.astype(dtype), targets
    count, height, width, _ = images.shape
    draws = count if mode == "elem" else 1
    share, box = draw_mixing(key, draws, height, width, mixup=mixup, cutmix=cutmix, prob=prob, switch_prob=switch_prob)
    return mix(images, targets, share, box, dtype)


def mix(images: Array, targets: Array, share: Array, box: Array, dtype: DTypeLike | None = None) -> tuple[Array, Array]:
    """Pictures and targets mixed with those of the reversed batch, by shares and rectangles given.

    Mixup is a share and an empty rectangle, CutMix the share 1 and a rectangle.

    Args:
      images: `(N, H, W, C)`, as for `mix_batch`.
      targets: `(N, classes)`, any float dtype.
      share: `(N,)` or `(1,)`, in [0, 1]: weight of each pixel; the other picture has the rest.
      box: `(N, 4)` or `(1, 4)`, as for `jeffnet.ops.box.inside`: here pixels are the other picture's.
      dtype: as for `mix_batch`.

    Returns:
      Pictures and targets like the given ones, computed in at least float32. Targets are weighted as their pictures are
      on average.

    Raises:
      ConfigError: images and targets that do not fit.
    """
    dtype = images.dtype if dtype is None else dtype
    _check(images, targets, dtype)
    _, height, width, _ = images.shape
    top, bottom, left, right = (box[:, side] for side in range(4))
    # One expression for both kinds makes one pass over the pixels, and no branch for the device to wait for.
    others, other_targets = _reversed(images, targets)
    mixed = _weighted(images, others, share[:, None, None, None], dtype)
    images = jnp.where(inside(box, height, width), others.astype(dtype), mixed)
    cut = ((bottom - top) * (right - left)).astype(at_least_float32(targets.dtype)) / (height * width)
    return images, _weighted(targets, other_targets, (share * (1 - cut))[:, None], targets.dtype)


def draw_mixing(
    key: Array, count: int, height: int, width: int, *, mixup: float, cutmix: float, prob: float, switch_prob: float
) -> tuple[Array, Array]:
    """Shares and rectangles for `mix`: `count` draws by the options of `mix_batch`; `mixup` or `cutmix` is above 0.

    Returns:
      `(count,)` float32 shares, and `(count, 4)` int32 rectangles. What stays unmixed has share 1, and a rectangle
      without pixels.
    """
    mixed_key, switch_key, share_key, row_key, column_key = jax.random.split(key, 5)
    is_mixed = jax.random.uniform(mixed_key, (count,), jnp.float32) < prob
    cutmix_prob = switch_prob if mixup > 0 and cutmix > 0 else cutmix > 0
    is_cut = jax.random.uniform(switch_key, (count,), jnp.float32) < cutmix_prob
    alpha = jnp.where(is_cut, cutmix or mixup, mixup or cutmix).astype(jnp.float32)
    share = jax.random.beta(share_key, alpha, alpha, (count,), jnp.float32)
    row = jax.random.randint(row_key, (count,), 0, height)
    column = jax.random.randint(column_key, (count,), 0, width)
    box = cut_box(jnp.where(is_mixed & is_cut, share, 1), row, column, height, width)
    return jnp.where(is_mixed & ~is_cut, share, 1), box


def cut_box(share: Array, row: Array, column: Array, height: int, width: int) -> Array:
    """The rectangle that CutMix takes from the other picture: `(N, 4)` int32, as `jeffnet.ops.box.inside` takes it.

    It has the proportions of the picture, and is cut off at the borders; `share`, `(N,)` in [0, 1], is the part of the
    area outside of it before that. `row` and `column`, `(N,)`, are its centre, inside the picture.
    """
    side = jnp.sqrt(1 - share)
    ends = []
    for size, centre in ((height, row), (width, column)):
        length = (size * side).astype(jnp.int32)
        ends += [jnp.maximum(centre - length // 2, 0), jnp.minimum(centre + (length + 1) // 2, size)]
    return jnp.stack(ends, axis=-1).astype(jnp.int32)


def _reversed(images: Array, targets: Array) -> tuple[Array, Array]:
    """Both from the other end of the batch; of integers, which have no gradients, as one array of bytes.

    Devices that share a batch then send one message, on which the network waits. Of two, CPUs would send one while the
    network sends its own, in an order that need not be the same in all processes: they would wait for each other.
    """
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images[::-1], targets[::-1]
    rows = [lax.bitcast_convert_type(x, jnp.uint8).reshape(len(x), -1) for x in (images, targets)]
    packed = jnp.concatenate(rows, axis=1)[::-1]
    image_bytes = rows[0].shape[1]
    return _from_bytes(packed[:, :image_bytes], images), _from_bytes(packed[:, image_bytes:], targets)


def _from_bytes(rows: Array, like: Array) -> Array:
    size = (like.dtype.itemsize,) if like.dtype.itemsize > 1 else ()
    return lax.bitcast_convert_type(rows.reshape(*like.shape, *size), like.dtype)


def _weighted(x: Array, other: Array, share: Array, dtype: DTypeLike) -> Array:
    """`share` of each row, and the rest of the other."""
    compute = at_least_float32(dtype)
    x, other, share = x.astype(compute), other.astype(compute), share.astype(compute)
    return (x * share + other * (1 - share)).astype(dtype)


def _check(images: Array, targets: Array, dtype: DTypeLike) -> None:
    if images.ndim != 4 or targets.ndim != 2 or len(images) != len(targets):
        raise ConfigError(
            f"images of shape {images.shape} and targets of shape {targets.shape}: expected (N, H, W, C), (N, classes)"
        )
    for name, kind in (("images", dtype), ("targets", targets.dtype)):
        if not jnp.issubdtype(kind, jnp.floating):
            raise ConfigError(f"{name} of {jnp.dtype(kind)}, which would round what is mixed: give floats")
