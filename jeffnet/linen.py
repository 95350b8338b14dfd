"""The models as Flax Linen modules.

    model, variables = create_model("pt_efficientnet_b0")
    logits = model.apply(variables, images)
    model, variables, card = from_pretrained("b0.safetensors")

`images` are `(N, H, W, C)`, normalised as `jeffnet.arch.zoo.model_preprocessing` says. `variables` are `{'params',
'batch_stats'}`. In training, `model.apply(variables, images, train=True, rngs={'dropout': key},
mutable=['batch_stats'])` gives the logits and the updated statistics.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack, assert_never

import flax.linen as nn
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from jax.typing import DTypeLike

from jeffnet.arch import operations
from jeffnet.arch import plan as arch
from jeffnet.arch.execution import Execution
from jeffnet.arch.summary import STATISTICS, array_specs
from jeffnet.backends.common import ImageModel, documented
from jeffnet.errors import ArchitectureError, WeightsError
from jeffnet.ops.conv import conv_general_dilated
from jeffnet.ops.init import conv_kernel_init, dense_kernel_init
from jeffnet.ops.network import Output, apply_block, apply_conv, apply_network, apply_squeeze
from jeffnet.ops.norm import moved_statistics, norm_inference, norm_train
from jeffnet.ops.precision import at_least_float32
from jeffnet.ops.stochastic import drop_path
from jeffnet.weights.card import ModelCard
from jeffnet.weights.load import Source
from jeffnet.weights.start import ModelOptions, Start, start_model, start_pretrained, statistics

Variables = dict[str, Any]


@documented
def create_model(name: str, **options: Unpack[ModelOptions]) -> tuple["ImageClassifier", Variables]:
    return build(start_model(name, **options))


@documented
def from_pretrained(
    source: Source, name: str | None = None, *, dtype: DTypeLike = jnp.float32
) -> tuple["ImageClassifier", Variables, ModelCard]:
    start, card = start_pretrained(source, name, dtype=dtype)
    return *build(start), card


@documented
def build(start: Start) -> tuple["ImageClassifier", Variables]:
    model = ImageClassifier(start.plan, start.dtype, start.param_dtype, start.remat, start.execution)
    return model, to_variables(start.arrays)


@documented
def to_start(model: "ImageClassifier", variables: Mapping[str, Any]) -> Start:
    arrays = to_canonical(variables, model.plan)
    return Start(model.plan, arrays, model.dtype, model.param_dtype, model.remat, execution=model.execution)


@documented
def inference(model: "ImageClassifier", variables: Mapping[str, Any]) -> tuple[Callable[[Any, Array], Array], Any]:
    return model.apply, variables  # pyright: ignore[reportReturnType]


@documented
def training(start: Start, images: Array) -> tuple[Array, dict[str, Array]]:
    model, variables = build(start)
    logits, updated = model.apply(
        variables, images, train=True, rngs={"dropout": jnp.asarray(start.rng)}, mutable=["batch_stats"]
    )
    return logits, statistics(to_canonical({**variables, **updated}, start.plan))


def to_variables(arrays: Mapping[str, Any]) -> Variables:
    """Variables from arrays by canonical name; `to_canonical` is the inverse.

    Args:
      arrays: such as `blocks.2.1.conv_dw.kernel`.

    Returns:
      `{'params': ..., 'batch_stats': ...}`.
    """
    variables = unflatten_dict({_place(name): array for name, array in arrays.items()})
    return {"params": {}, "batch_stats": {}, **variables}


def to_canonical(variables: Mapping[str, Any], plan: arch.Plan) -> dict[str, Any]:
    """The arrays of `variables` by canonical name, in the Plan's order.

    Args:
      variables: `{'params': ..., 'batch_stats': ...}`.
      plan: of their model.

    Returns:
      The arrays, as they are.

    Raises:
      WeightsError: an array that the Plan has is missing.
    """
    flat, places = flatten_dict(dict(variables)), {name: _place(name) for name in array_specs(plan)}
    missing = [f"{name!r} (at {'/'.join(place[1:])})" for name, place in places.items() if place not in flat]
    if missing:
        raise WeightsError(f"variables have no {missing[0]}")
    return {name: flat[place] for name, place in places.items()}


class ImageClassifier(ImageModel, nn.Module):
    """A whole network of a Plan.

    Attributes:
      plan: what it computes.
      dtype: in which layers compute.
      param_dtype: of parameters.
      remat: compute blocks again in the backward pass instead of keeping what they computed.
      execution: how a pass runs.
    """

    plan: arch.Plan
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    remat: bool = False
    execution: Execution = Execution()

    def __call__(self, images: Array, train: bool = False) -> Array:
        """Logits `(N, num_classes)`, or the pooled features where `num_classes` is 0.

        Args:
          images: `(N, H, W, C)`, normalised.
          train: normalise by the batch's statistics and update the running ones; drop units and paths, for which
            `rngs={'dropout': key}` is needed.
        """
        return self._forward(images, train, "logits")

    def pre_logits(self, images: Array, train: bool = False) -> Array:
        return self._forward(images, train, "pre_logits")

    def features(self, images: Array, indices: Sequence[int] | None = None, train: bool = False) -> tuple[Array, ...]:
        return self._forward(images, train, "features", indices)

    @nn.compact
    def _forward(self, images: Array, train: bool, output: Output, indices: Sequence[int] | None = None) -> Any:
        plan, layers = self.plan, _Layers(self.plan, self.execution, self.dtype, self.param_dtype)
        block_class = nn.remat(Block, static_argnums=(2,)) if self.remat else Block

        def classifier(x: Array) -> Array:
            x = nn.Dropout(plan.drop_rate, name="dropout")(x, deterministic=not train)
            return layers.classifier(x)

        return apply_network(
            plan,
            images,
            self.dtype,
            lambda op, x: layers.conv(op, x, train),
            lambda block, x: block_class(block, layers, name=block.name.replace(".", "_"))(x, train),
            classifier if plan.classifier else None,
            execution=self.execution,
            output=output,
            indices=indices,
        )


class Block(nn.Module):
    """The operations of one block, with its residual connection."""

    block: arch.Block
    layers: "_Layers"

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """`(N, H, W, C)` to `(N, H', W', C')`."""
        rate = self.block.drop_path_rate if train else 0.0
        return apply_block(
            self.block,
            x,
            lambda op, x: self.layers.operation(op, x, train),
            lambda x: drop_path(x, rate, self.make_rng("dropout")) if rate > 0 else x,
        )


class SqueezeExcite(nn.Module):
    """Channels weighted by what the whole picture holds (arXiv:1709.01507)."""

    op: operations.SqueezeExcite
    layers: "_Layers"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`(N, H, W, C)` to the same."""
        return apply_squeeze(self.op, x, lambda op, x: self.layers.conv(op, x, False))


class BatchNorm(nn.BatchNorm):
    """`flax.linen.BatchNorm` whose running variance is the unbiased estimate, as in PyTorch and TensorFlow.

    Normalises over all axes but the last. Statistics are at least float32.

    Attributes:
      groups: parts of the batch that are normalised separately; see `jeffnet.ops.norm.norm_train`.
    """

    groups: int = 1

    @nn.compact
    def __call__(
        self, x: Array, use_running_average: bool | None = None, *, mask: Array | None = None, act: str | None = None
    ) -> Array:
        """Normalised `x` `(..., C)`, after the activation `act`, if any; masks are not supported."""
        if mask is not None:
            raise ArchitectureError("BatchNorm takes no mask")
        use_running = nn.merge_param("use_running_average", self.use_running_average, use_running_average)
        channels, stats_dtype = (x.shape[-1],), at_least_float32(self.param_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, stats_dtype)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, stats_dtype)
        scale = self.param("scale", self.scale_init, channels, self.param_dtype)
        bias = self.param("bias", self.bias_init, channels, self.param_dtype)
        dtype = self.dtype or x.dtype
        if use_running:
            return norm_inference(x, running_mean.value, running_var.value, scale, bias, self.epsilon, dtype, act)
        initializing = self.is_initializing()
        axis_name = None if initializing else self.axis_name
        groups = 1 if initializing else self.groups
        y, mean, unbiased = norm_train(x, scale, bias, self.epsilon, dtype, act, axis_name, groups)
        if not initializing:
            running_mean.value = moved_statistics(running_mean.value, mean, self.momentum)
            running_var.value = moved_statistics(running_var.value, unbiased, self.momentum)
        return y


@dataclass(frozen=True)
class _Layers:
    """Makes Linen layers, inside a compact method of the module to which they belong."""

    plan: arch.Plan
    execution: Execution
    dtype: DTypeLike
    param_dtype: DTypeLike

    def operation(self, op: operations.Op, x: Array, train: bool) -> Array:
        """An operation of a block."""
        match op:
            case operations.Conv():
                return self.conv(op, x, train)
            case operations.SqueezeExcite():
                return SqueezeExcite(op, self, name=_local(op.name))(x)
            case _:
                assert_never(op)

    def conv(self, op: operations.Conv, x: Array, train: bool) -> Array:
        """A convolution with its norm and activation."""
        return apply_conv(
            op, x, lambda part, x: self._part(op, part)(x), lambda norm, x, act: self._norm(norm, train)(x, act=act)
        )

    def classifier(self, x: Array) -> Array:
        """The dense layer."""
        assert self.plan.classifier
        return nn.Dense(
            self.plan.num_classes,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=dense_kernel_init,
            name=self.plan.classifier.name,
        )(x)

    def _norm(self, norm: operations.Norm, train: bool) -> BatchNorm:
        match norm:
            case operations.BatchNorm():
                return BatchNorm(
                    use_running_average=not train or norm.name in self.execution.frozen_norms,
                    momentum=self.plan.bn_momentum,
                    epsilon=norm.epsilon,
                    groups=self.execution.norm_groups,
                    dtype=self.dtype,
                    param_dtype=self.param_dtype,
                    name=_local(norm.name),
                )
            case _:
                assert_never(norm)

    def _part(self, op: operations.Conv, part: operations.ConvPart) -> nn.Conv:
        return nn.Conv(
            part.out_channels,
            (part.kernel_size, part.kernel_size),
            strides=op.stride,
            padding=part.padding,
            kernel_dilation=op.dilation,
            feature_group_count=part.groups,
            use_bias=op.bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=conv_kernel_init(part.groups),
            conv_general_dilated=conv_general_dilated,
            name=_local(part.name),
        )


def _local(name: str) -> str:
    """The module's name within its block: `blocks.2.1.conv_dw.0` is `conv_dw_0`."""
    return _place(name)[-1]


def _place(name: str) -> tuple[str, ...]:
    """Where in the variables an array is. Numbers belong to the word before them, as Linen writes lists."""
    collection = "batch_stats" if name.rpartition(".")[2] in STATISTICS else "params"
    return collection, *re.sub(r"\.(\d+)", r"_\1", name).split(".")
