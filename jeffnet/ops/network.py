"""The order of operations in a network, which every backend shares; the layers come from the backend, as functions."""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, Literal, NamedTuple, assert_never

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jeffnet.arch.execution import Execution
from jeffnet.arch.operations import (
    Attention,
    Composite,
    Conv,
    ConvPart,
    GlobalContext,
    Norm,
    Op,
    Routing,
    SqueezeExcite,
)
from jeffnet.arch.plan import Block, Plan
from jeffnet.errors import ArchitectureError, InputError
from jeffnet.ops.activations import ACTIVATIONS
from jeffnet.ops.attention import attended_mean, multi_query_attention
from jeffnet.ops.conv import conv_general_dilated
from jeffnet.ops.pool import global_pool, pool_windows

Layer = Callable[[Array], Array]
Output = Literal["logits", "pre_logits", "features", "outputs"]


class Outputs(NamedTuple):
    """What one pass of a network computes.

    Attributes:
      logits: `(N, classes)`; without a classifier the same as `pre_logits`.
      pre_logits: the classifier's input before dropout, pooled features `(N, F)`. Without pooling, and with windows of
        test-time pooling, `(N, H', W', F)`.
      features: the maps that were asked for, `(N, H / stride, W / stride, C)`.
    """

    logits: Array
    pre_logits: Array
    features: tuple[Array, ...]


def apply_conv(
    op: Conv, x: Array, part: Callable[[ConvPart, Array], Array], norm: Callable[[Norm, Array, str | None], Array]
) -> Array:
    """A convolution of `x`, `(N, H, W, C)`, with its norm and activation.

    `part` applies one kernel to its share of the channels; `norm` applies a norm, and the activation after it.
    """
    if len(op.parts) == 1:
        x = part(op.parts[0], x)
    else:
        x = jnp.concatenate([part(share, x[..., channels]) for share, channels, _ in op.shares], axis=-1)
    if op.norm:
        return norm(op.norm, x, op.act)
    return ACTIVATIONS[op.act](x) if op.act else x


def apply_composite(op: Composite, x: Array, conv: Callable[[Conv, Array], Array]) -> Array:
    """An operation that consists of convolutions.

    Args:
      op: what to compute.
      x: `(N, H, W, C)`.
      conv: applies a convolution with its norm and activation.

    Returns:
      `(N, H, W, C')`.
    """
    match op:
        case SqueezeExcite():
            return x * conv(op.expand, conv(op.reduce, x.mean((1, 2), keepdims=True)))
        case GlobalContext():
            return x * conv(op.expand, conv(op.reduce, attended_mean(x, conv(op.context, x))))
        case Attention():
            query, key, value = (reduce(lambda x, op: conv(op, x), ops, x) for ops in ((op.query,), op.key, op.value))
            return conv(op.output, multi_query_attention(query, key, value, op.heads))
        case _:
            assert_never(op)


def apply_block(
    block: Block,
    x: Array,
    apply: Callable[[Op, Array, Array | None], Array],
    drop_path: Layer,
) -> Array:
    """The operations of one block, with its residual connection.

    Args:
      block: what to compute.
      x: `(N, H, W, C)`.
      apply: applies an operation, with the weights of the block's experts `(N, experts)` where it has any. Of a
        `Routing` it gives these weights.
      drop_path: applied to the residual branch before the input is added.
    """
    shortcut, weights = x, None
    for op in block.ops:
        if isinstance(op, Routing):
            weights = apply(op, x, None)
        else:
            x = apply(op, x, weights)
    return drop_path(x) + shortcut if block.residual else x


def apply_routing(x: Array, dense: Layer) -> Array:
    """Weights of experts `(N, experts)` from a map `(N, H, W, C)`, by a dense layer of its mean."""
    return jax.nn.sigmoid(dense(x.mean((1, 2))))


def apply_experts(conv: Conv, x: Array, kernels: Array, weights: Array) -> Array:
    """A convolution of every picture with a mixture of kernels; no bias, norm or activation (arXiv:1904.04971).

    Args:
      conv: what to compute; it has one part.
      x: `(N, H, W, C)`.
      kernels: `(experts, height, width, C / groups, C')`, in the dtype of `x`.
      weights: of the experts, `(N, experts)`.

    Returns:
      `(N, H', W', C')`.
    """
    (part,) = conv.parts
    strides, dilation = (conv.stride,) * 2, (conv.dilation,) * 2

    def one(x: Array, kernel: Array) -> Array:
        y = conv_general_dilated(
            x[None], kernel, strides, part.padding, rhs_dilation=dilation, feature_group_count=part.groups
        )
        return y[0]

    return jax.vmap(one)(x, jnp.einsum("ne,ehwio->nhwio", weights, kernels))


def apply_network(
    plan: Plan,
    images: ArrayLike,
    dtype: DTypeLike,
    conv: Callable[[Conv, Array], Array],
    block: Callable[[Block, Array], Array],
    classifier: Layer | None,
    *,
    execution: Execution,
    output: Output = "logits",
    indices: Sequence[int] | None = None,
) -> Any:
    """A whole network.

    Args:
      plan: the architecture.
      images: `(N, H, W, C)`, of a floating dtype; N may be 0.
      dtype: in which to compute.
      conv: applies a convolution with its norm and activation.
      block: applies a block.
      classifier: dropout and the dense layer; None for features.
      execution: how the pass runs.
      output: what to return.
      indices: for 'features' and 'outputs', which of `plan.features`, in any order; negative ones count from the end.
        None for all.

    Returns:
      'logits': `(N, classes)`. 'pre_logits': pooled features `(N, F)`. Without pooling both are `(N, H', W', ...)`.
      'features': a tuple of maps `(N, H / stride, W / stride, C)`. 'outputs': `Outputs` with all of them.

    Raises:
      InputError: the images have another rank or number of channels than the Plan takes, no height or width, or are
        integers.
      ArchitectureError: there is no such map.
    """
    images = as_floats(images, dtype)
    if images.ndim != 4 or images.shape[-1] != plan.in_chans:
        raise InputError(f"images of shape {images.shape}: the model takes (N, H, W, {plan.in_chans})")
    if 0 in images.shape[1:]:
        raise InputError(f"images of shape {images.shape}: they have no pixels")
    wanted = _feature_stages(plan, indices) if output in ("features", "outputs") else []
    last = max(wanted, default=-1) + 1 if output == "features" else len(plan.stages)
    outputs = [conv(plan.stem, images)]
    for stage in plan.stages[:last]:
        x = outputs[-1]
        for member in stage:
            x = block(member, x)
        outputs.append(x)
    features = tuple(outputs[stage + 1] for stage in wanted)
    if output == "features":
        return features
    pre_logits = _pre_logits(plan, outputs[-1], conv, execution.test_window)
    if output == "pre_logits":
        return pre_logits
    logits = _logits(pre_logits, classifier, execution.test_window)
    return Outputs(logits, pre_logits, features) if output == "outputs" else logits


def apply_rest(
    plan: Plan,
    features: Array,
    index: int,
    conv: Callable[[Conv, Array], Array],
    block: Callable[[Block, Array], Array],
    classifier: Layer | None,
    *,
    execution: Execution,
) -> Array:
    """Logits from a map of features: what follows it in a network.

    Args:
      plan: the architecture.
      features: `(N, H / stride, W / stride, C)`.
      index: which of `plan.features` they are.
      conv: as for `apply_network`, with all the following.
      block: applies a block.
      classifier: dropout and the dense layer.
      execution: how the pass runs.

    Returns:
      What `apply_network` returns for 'logits'.

    Raises:
      ArchitectureError: there is no such map.
    """
    (stage,) = _feature_stages(plan, (index,))
    x = reduce(
        lambda x, member: block(member, x), (member for each in plan.stages[stage + 1 :] for member in each), features
    )
    return _logits(_pre_logits(plan, x, conv, execution.test_window), classifier, execution.test_window)


def as_floats(images: Any, dtype: DTypeLike) -> Array:
    """Pictures in the dtype in which to compute.

    Raises:
      InputError: they are integers or booleans, such as pixels that were not normalised.
    """
    given = images.dtype if hasattr(images, "dtype") else np.asarray(images).dtype
    if not jnp.issubdtype(given, jnp.floating):
        raise InputError(
            f"images of {given}: the model takes normalised floats; for pixels of 0 to 255 call "
            "normalize(images, p.mean, p.std) of jeffnet.ops.image, with p = jeffnet.model_preprocessing(name)"
        )
    return jnp.asarray(images, dtype)


def _pre_logits(plan: Plan, x: Array, conv: Callable[[Conv, Array], Array], test_window: int) -> Array:
    if plan.head and not plan.pool_first:
        x = conv(plan.head, x)
    x = pool_windows(x, test_window) if test_window else global_pool(x, plan.global_pool)
    if plan.head and plan.pool_first:
        x = conv(plan.head, x)
    return x if test_window or plan.global_pool == "none" else x.reshape(x.shape[0], x.shape[-1])


def _logits(x: Array, classifier: Layer | None, test_window: int) -> Array:
    if classifier is None:
        return x
    logits = classifier(x)
    return global_pool(logits, "avgmax").reshape(x.shape[0], logits.shape[-1]) if test_window else logits


def _feature_stages(plan: Plan, indices: Sequence[int] | None) -> list[int]:
    """The stage whose output each of these feature maps is; -1 is the stem's."""
    count = len(plan.features)
    chosen = range(count) if indices is None else indices
    if not all(-count <= index < count for index in chosen):
        raise ArchitectureError(f"feature indices {list(chosen)}: the model has {count}, 0 to {count - 1}")
    return [plan.features[index].stage for index in chosen]
