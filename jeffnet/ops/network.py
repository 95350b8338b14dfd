"""The order of operations in a network, which every backend shares; the layers come from the backend, as functions."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jeffnet.arch.plan import Block, Conv, ConvPart, Plan, SqueezeExcite
from jeffnet.errors import ArchitectureError
from jeffnet.ops.activations import ACTIVATIONS
from jeffnet.ops.pool import global_pool, pool_windows

Layer = Callable[[Array], Array]


def apply_conv(
    op: Conv,
    x: Array,
    part: Callable[[ConvPart, Array], Array],
    norm: Callable[[str, Array, str | None], Array],
) -> Array:
    """A convolution with its norm and activation.

    Args:
      op: what to compute.
      x: `(N, H, W, C)`.
      part: applies one kernel to its share of the channels.
      norm: applies the norm of this name, and the activation after it.

    Returns:
      `(N, H', W', C')`.
    """
    if len(op.parts) == 1:
        x = part(op.parts[0], x)
    else:
        pieces, start = [], 0
        for each in op.parts:
            pieces.append(part(each, x[..., start : start + each.in_channels]))
            start += each.in_channels
        x = jnp.concatenate(pieces, axis=-1)
    if op.norm:
        return norm(op.norm, x, op.act)
    return ACTIVATIONS[op.act](x) if op.act else x


def apply_squeeze(op: SqueezeExcite, x: Array, conv: Callable[[Conv, Array], Array]) -> Array:
    """Channels weighted by what the whole picture holds (arXiv:1709.01507).

    Args:
      op: what to compute.
      x: `(N, H, W, C)`.
      conv: applies a convolution with its activation.
    """
    return x * conv(op.expand, conv(op.reduce, x.mean((1, 2), keepdims=True)))


def apply_block(
    block: Block,
    x: Array,
    conv: Callable[[Conv, Array], Array],
    squeeze: Callable[[SqueezeExcite, Array], Array],
    drop_path: Layer,
) -> Array:
    """The operations of one block, with its residual connection.

    Args:
      block: what to compute.
      x: `(N, H, W, C)`.
      conv: applies a convolution with its norm and activation.
      squeeze: applies a squeeze-and-excitation.
      drop_path: what happens to the residual branch before it is added.
    """
    shortcut = x
    for op in block.ops:
        x = conv(op, x) if isinstance(op, Conv) else squeeze(op, x)
    return drop_path(x) + shortcut if block.residual else x


def apply_network(
    plan: Plan,
    images: ArrayLike,
    dtype: DTypeLike,
    conv: Callable[[Conv, Array], Array],
    block: Callable[[Block, Array], Array],
    classifier: Layer | None,
    *,
    output: str = "logits",
    last_stage: int | None = None,
) -> list[Array]:
    """A whole network.

    Args:
      plan: what to compute.
      images: `(N, H, W, C)`, of a floating dtype; N may be 0.
      dtype: in which to compute.
      conv: applies a convolution with its norm and activation.
      block: applies a block.
      classifier: dropout and the dense layer; None for features.
      output: 'logits', 'pre_logits' or 'features'.
      last_stage: of the features wanted, -1 for the stem's; None for all.

    Returns:
      For 'features' the outputs of the stem and of each stage up to `last_stage`; otherwise one array: logits
      `(N, classes)` or pooled features `(N, F)`, `(N, H', W', ...)` without pooling.

    Raises:
      ArchitectureError: the images have another rank or number of channels than the Plan takes, no height or width, or
        are integers.
    """
    images = as_floats(images, dtype)
    if images.ndim != 4 or images.shape[-1] != plan.in_chans:
        raise ArchitectureError(f"images of shape {images.shape}: the model takes (N, H, W, {plan.in_chans})")
    if 0 in images.shape[1:]:
        raise ArchitectureError(f"images of shape {images.shape}: they have no pixels")
    outputs = [conv(plan.stem, images)]
    for stage in plan.stages[: None if last_stage is None else last_stage + 1]:
        x = outputs[-1]
        for each in stage:
            x = block(each, x)
        outputs.append(x)
    return outputs if output == "features" else [_head(plan, outputs[-1], conv, classifier, output)]


def as_floats(images: Any, dtype: DTypeLike) -> Array:
    """Pictures in the dtype in which to compute.

    Raises:
      ArchitectureError: they are integers or booleans, such as pixels that were not normalised.
    """
    given = images.dtype if hasattr(images, "dtype") else np.asarray(images).dtype
    if not jnp.issubdtype(given, jnp.floating):
        raise ArchitectureError(
            f"images of {given}: the model takes normalised floats; for pixels of 0 to 255 call "
            "normalize(images, p.mean, p.std) of jeffnet.ops.image, with p = jeffnet.model_preprocessing(name)"
        )
    return jnp.asarray(images, dtype)


def _head(plan: Plan, x: Array, conv: Callable[[Conv, Array], Array], classifier: Layer | None, output: str) -> Array:
    if not plan.pool_first:
        x = conv(plan.head, x)
    x = pool_windows(x, plan.test_window) if plan.test_window else global_pool(x, plan.global_pool)
    if plan.pool_first:
        x = conv(plan.head, x)
    if plan.global_pool != "none":
        x = x.reshape(x.shape[0], x.shape[-1])
    if output == "pre_logits" or classifier is None:
        return x
    logits = classifier(x)
    return global_pool(logits, "avgmax").reshape(x.shape[0], logits.shape[-1]) if plan.test_window else logits


def submodule(module: Any, name: str) -> Any:
    """What a canonical name leads to from a module: attributes by word, places of lists by number."""
    for word in name.split("."):
        module = module[int(word)] if word.isdecimal() else getattr(module, word)
    return module


def apply_layers(module: Any, op: Conv, x: Array, *norm_arguments: Any) -> Array:
    """A convolution with its norm and activation, by a module's layers, which have the Plan's names.

    Args:
      module: one with an attribute of its own for the convolution (a list of several, where there are several parts)
        and for the norm, named by the last word of the canonical name.
      op: what to compute.
      x: `(N, H, W, C)`.
      norm_arguments: for the norm, after its input.
    """
    prefix = len(op.name) - len(local_name(op.name))
    return apply_conv(
        op,
        x,
        lambda part, x: submodule(module, part.name[prefix:])(x),
        lambda name, x, act: submodule(module, local_name(name))(x, *norm_arguments, act=act),
    )


def local_name(name: str) -> str:
    """A module's own name: the last word of its canonical one."""
    return name.rpartition(".")[2]


def feature_stages(plan: Plan, indices: Sequence[int] | None) -> list[int]:
    """The stage whose output each of the wanted feature maps is; -1 is the stem's.

    Args:
      plan: the model.
      indices: which of `plan.features`, in any order; negative ones count from the end. None takes all.

    Raises:
      ArchitectureError: no such map.
    """
    count = len(plan.features)
    chosen = range(count) if indices is None else indices
    if not all(-count <= index < count for index in chosen):
        raise ArchitectureError(f"feature indices {list(chosen)}: the model has {count}, 0 to {count - 1}")
    return [plan.features[index].stage for index in chosen]
