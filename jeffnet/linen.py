"""The models as Flax Linen modules.

    model, variables = create_model("efficientnet_b0")
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
from jax import Array
from jax.typing import DTypeLike

from jeffnet.arch import operations
from jeffnet.arch import plan as arch
from jeffnet.arch.execution import Execution
from jeffnet.backends.common import ImageModel, Layers, apply_layers, apply_model, conversions, documented
from jeffnet.errors import ArchitectureError
from jeffnet.ops.broadcast import over_channels
from jeffnet.ops.conv import conv_general_dilated
from jeffnet.ops.group_norm import sample_norm
from jeffnet.ops.init import conv_kernel_init, dense_kernel_init
from jeffnet.ops.network import Output, Outputs, apply_block, apply_composite, apply_experts
from jeffnet.ops.norm import batch_norm
from jeffnet.ops.precision import at_least_float32
from jeffnet.ops.stochastic import drop_path
from jeffnet.weights.load import Source
from jeffnet.weights.start import (
    ModelLike,
    ModelOptions,
    Pretrained,
    PretrainedOptions,
    Start,
    start_model,
    start_pretrained,
    statistics,
)

Variables = dict[str, Any]


# Numbers belong to the word before them, as Linen writes lists.
to_variables, to_canonical = conversions(lambda name: re.sub(r"\.(\d+)", r"_\1", name).split("."))


@documented
def create_model(name: ModelLike, **options: Unpack[ModelOptions]) -> tuple["ImageClassifier", Variables]:
    return build(start_model(name, **options))


@documented
def from_pretrained(
    source: Source, name: ModelLike | None = None, **options: Unpack[PretrainedOptions]
) -> Pretrained["ImageClassifier"]:
    start, card = start_pretrained(source, name, **options)
    return Pretrained(*build(start), card)


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
def training(start: Start, images: Array, indices: Sequence[int] | None = None) -> tuple[Any, dict[str, Array]]:
    model, variables = build(start)
    method, inputs = (None, (images,)) if indices is None else ("outputs", (images, indices))
    outputs, updated = model.apply(
        variables, *inputs, train=True, rngs={"dropout": jnp.asarray(start.rng)}, mutable=["batch_stats"], method=method
    )
    return outputs, statistics(to_canonical({**variables, **updated}, start.plan))


class ImageClassifier(ImageModel, nn.Module):
    """A whole network of a Plan. Modules have the Plan's names: `model.bind(variables).blocks[2][1].conv_dw`.

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

    def outputs(self, images: Array, indices: Sequence[int] | None = None, train: bool = False) -> Outputs:
        return self._forward(images, train, "outputs", indices)

    def setup(self) -> None:
        plan, layers = self.plan, _Layers(self.plan, self.execution, self.dtype, self.param_dtype)
        block_class = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        layers.add(self, plan.stem)
        self.blocks = [[block_class(block, layers) for block in stage] for stage in plan.stages]
        layers.add(self, *plan.head_ops)
        self.dropout = nn.Dropout(plan.drop_rate)
        if plan.classifier:
            self.classifier = layers.dense(plan.classifier)

    def _forward(self, images: Array, train: bool, output: Output, indices: Sequence[int] | None = None) -> Any:
        def dropout(x: Array) -> Array:
            return self.dropout(x, deterministic=not train)

        return apply_model(self, images, lambda block, x: block(x, train), dropout, output, indices, not train)


class Block(nn.Module):
    """The operations of one block, with its residual connection."""

    block: arch.Block
    layers: "_Layers"

    def setup(self) -> None:
        self.layers.add(self, *self.block.ops)

    def __call__(self, x: Array, train: bool) -> Array:
        """`(N, H, W, C)` to `(N, H', W', C')`."""
        rate = self.block.drop_path_rate if train else 0.0
        return apply_block(
            self.block,
            x,
            lambda op, x, weights: apply_layers(self, op, x, weights, not train),
            lambda x: drop_path(x, rate, self.make_rng("dropout")) if rate > 0 else x,
        )


class Composite(nn.Module):
    """An operation that consists of convolutions: global context or attention."""

    op: operations.Composite
    layers: "_Layers"

    def setup(self) -> None:
        self.layers.add(self, *self.op.convolutions)

    def __call__(self, x: Array, use_running_average: bool = True) -> Array:
        """`(N, H, W, C)` to `(N, H, W, C')`."""
        return apply_composite(self.op, x, lambda op, x: apply_layers(self, op, x, None, use_running_average))


class SqueezeExcite(Composite):
    """Channels weighted by what the whole picture holds (arXiv:1709.01507)."""


class SampleNorm(nn.Module):
    """GroupNorm or LayerNorm: normalises every picture by itself. Its arrays are `(C,)`."""

    norm: operations.GroupNorm | operations.LayerNorm
    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, *_: Any, act: str | None = None) -> Array:
        """Normalised `x` `(N, H, W, C)`, after the activation `act`, if any."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), self.param_dtype)
        return sample_norm(self.norm, x, scale, bias, self.dtype, act)


class LayerScale(nn.Module):
    """A trained factor for each channel (arXiv:2103.17239)."""

    op: operations.LayerScale
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`(..., C)` to the same."""
        init = nn.initializers.constant(self.op.initial)
        return x * over_channels(self.param("scale", init, (x.shape[-1],), self.param_dtype).astype(x.dtype), x)


class ExpertConv(nn.Module):
    """A convolution of every picture with a mixture of kernels (CondConv, arXiv:1904.04971)."""

    op: operations.ExpertConv
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, weights: Array) -> Array:
        """`(N, H, W, C)` to `(N, H', W', C')`; `weights` of the experts are `(N, experts)`."""
        conv, part = self.op.conv, self.op.conv.parts[0]
        shape = (self.op.experts, *(part.kernel_size,) * 2, part.in_channels // part.groups, part.out_channels)
        kernels = self.param("kernel", conv_kernel_init(part.groups), shape, self.param_dtype)
        return apply_experts(conv, x, kernels.astype(x.dtype), weights)


class BatchNorm(nn.BatchNorm):
    """`flax.linen.BatchNorm` whose running variance is the unbiased estimate, as in PyTorch and TensorFlow.

    Normalises over all axes but the last. Statistics are at least float32.

    Attributes:
      groups: parts of the batch that are normalised separately; see `jeffnet.ops.norm.norm_train`.
      frozen: whether the running statistics are kept and used in training, too.
    """

    groups: int = 1
    frozen: bool = False

    @nn.compact
    def __call__(
        self, x: Array, use_running_average: bool | None = None, *, mask: Array | None = None, act: str | None = None
    ) -> Array:
        """Normalised `x` `(..., C)`, after the activation `act`, if any; masks are not supported."""
        if mask is not None:
            raise ArchitectureError("BatchNorm takes no mask")
        use_running = nn.merge_param("use_running_average", self.use_running_average, use_running_average)
        channels, stats_dtype = (x.shape[-1],), at_least_float32(self.param_dtype)
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels, stats_dtype)
        var = self.variable("batch_stats", "var", jnp.ones, channels, stats_dtype)
        scale = self.param("scale", self.scale_init, channels, self.param_dtype)
        bias = self.param("bias", self.bias_init, channels, self.param_dtype)
        arrays, keep = (mean.value, var.value, scale, bias), None if use_running or self.frozen else self.momentum
        axis_name, groups = (None, 1) if self.is_initializing() else (self.axis_name, self.groups)
        y, moved = batch_norm(x, arrays, self.epsilon, self.dtype or x.dtype, act, keep, axis_name, groups)
        if moved and not self.is_initializing():
            mean.value, var.value = moved
        return y


@dataclass(frozen=True)
class _Layers(Layers):
    plan: arch.Plan
    execution: Execution
    dtype: DTypeLike
    param_dtype: DTypeLike
    list_class = list

    def dense(self, dense: operations.Dense) -> nn.Dense:
        features, init = dense.out_features, dense_kernel_init
        return nn.Dense(features, dtype=self.dtype, param_dtype=self.param_dtype, kernel_init=init)

    def conv(self, op: operations.Conv, part: operations.ConvPart) -> nn.Conv:
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
            kernel_init=conv_kernel_init(part.groups, op.xavier),
            conv_general_dilated=conv_general_dilated,
        )

    def norm(self, norm: operations.Norm) -> nn.Module:
        match norm:
            case operations.BatchNorm():
                return BatchNorm(
                    momentum=self.plan.bn_momentum,
                    epsilon=norm.epsilon,
                    dtype=self.dtype,
                    param_dtype=self.param_dtype,
                    groups=self.execution.norm_groups,
                    frozen=norm.name in self.execution.frozen_norms,
                )
            case operations.GroupNorm() | operations.LayerNorm():
                return SampleNorm(norm, self.dtype, self.param_dtype)
            case _:
                assert_never(norm)

    def layer_scale(self, op: operations.LayerScale) -> LayerScale:
        return LayerScale(op, self.param_dtype)

    def expert_conv(self, op: operations.ExpertConv) -> ExpertConv:
        return ExpertConv(op, self.param_dtype)

    def composite(self, op: operations.Composite) -> Composite:
        return (SqueezeExcite if isinstance(op, operations.SqueezeExcite) else Composite)(op, self)
