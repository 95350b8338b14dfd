"""The models as Objax modules.

    model = create_model("efficientnet_b0")
    logits = model(images)
    logits = model(images, training=True)
    model, card = from_pretrained("b0.safetensors")

`images` are `(N, H, W, C)`, normalised as `jeffnet.arch.zoo.model_preprocessing` says; in Objax's own networks channels
come second. In training, a call normalises by the batch's statistics, updates the running ones, and drops units and
paths with random numbers of `model.generator`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Unpack, assert_never

import jax
import jax.numpy as jnp
from jax import Array

from jeffnet._objax_compat import generator_of, objax, with_tensors
from jeffnet.arch import operations
from jeffnet.arch import plan as arch
from jeffnet.backends.common import CompositeLayers, ImageModel, Layers, apply_layers, apply_model, documented, start_of
from jeffnet.ops.broadcast import over_channels
from jeffnet.ops.conv import conv_general_dilated
from jeffnet.ops.group_norm import sample_norm
from jeffnet.ops.network import Output, Outputs, apply_block, apply_experts
from jeffnet.ops.norm import batch_norm
from jeffnet.ops.stochastic import drop_path
from jeffnet.weights.load import Source
from jeffnet.weights.start import (
    ModelLike,
    ModelOptions,
    PretrainedModule,
    PretrainedOptions,
    Start,
    start_model,
    start_pretrained,
    statistics,
)

# What Objax's layers call the arrays; the bias of a norm is `beta`.
_VARS = {"kernel": "w", "bias": "b", "scale": "gamma", "mean": "running_mean", "var": "running_var"}


@documented
def create_model(name: ModelLike, **options: Unpack[ModelOptions]) -> "ImageClassifier":
    return build(start_model(name, **options))


@documented
def from_pretrained(
    source: Source, name: ModelLike | None = None, **options: Unpack[PretrainedOptions]
) -> PretrainedModule["ImageClassifier"]:
    start, card = start_pretrained(source, name, **options)
    return PretrainedModule(build(start), card)


@documented
def build(start: Start) -> "ImageClassifier":
    return ImageClassifier(start)


@documented
def to_start(model: "ImageClassifier") -> Start:
    def array(layer: Any, leaf: str) -> Array:
        return (layer.beta if leaf == "bias" and hasattr(layer, "beta") else getattr(layer, _VARS[leaf])).value

    return start_of(model, array)


@documented
def inference(model: "ImageClassifier") -> tuple[Callable[[list[Array], Array], Array], list[Array]]:
    variables = model.vars()

    def apply(tensors: list[Array], images: Array) -> Array:
        return with_tensors(variables, tensors, lambda: model(images))[0]

    return apply, variables.tensors()


@documented
def training(start: Start, images: Array, indices: Sequence[int] | None = None) -> tuple[Any, dict[str, Array]]:
    model = build(start)
    outputs = model(images, training=True) if indices is None else model.outputs(images, indices, training=True)
    return outputs, statistics(to_start(model).arrays)


class ImageClassifier(ImageModel, objax.Module):
    """A whole network of a Plan. Modules have the Plan's names: `model.blocks[2][1].conv_dw.w`.

    Attributes:
      plan: what it computes.
      dtype: in which layers compute.
      param_dtype: of parameters.
      remat: compute blocks again in the backward pass instead of keeping what they computed.
      execution: how a pass runs.
      generator: of the random numbers of dropout and drop path.
    """

    def __init__(self, start: Start) -> None:
        layers, plan, self.execution = _Layers(start), start.plan, start.execution
        self.plan, self.dtype, self.param_dtype, self.remat = plan, start.dtype, start.param_dtype, start.remat
        layers.add(self, plan.stem)
        self.blocks = objax.ModuleList(
            objax.ModuleList(Block(block, layers) for block in stage) for stage in plan.stages
        )
        layers.add(self, *plan.head_ops)
        self.generator = generator_of(start.rng)
        self.dropout = objax.nn.Dropout(1 - plan.drop_rate, self.generator)
        if plan.classifier:
            self.classifier = layers.dense(plan.classifier)

    def __call__(self, images: Array, training: bool = False) -> Array:
        """Logits `(N, num_classes)`, or the pooled features where `num_classes` is 0.

        Args:
          images: `(N, H, W, C)`, normalised.
          training: normalise by the batch's statistics and update the running ones; drop units and paths.

        Raises:
          InputError: the images do not fit the model.
        """
        return self._forward(images, training, "logits")

    def pre_logits(self, images: Array, training: bool = False) -> Array:
        return self._forward(images, training, "pre_logits")

    def features(
        self, images: Array, indices: Sequence[int] | None = None, training: bool = False
    ) -> tuple[Array, ...]:
        return self._forward(images, training, "features", indices)

    def outputs(self, images: Array, indices: Sequence[int] | None = None, training: bool = False) -> Outputs:
        return self._forward(images, training, "outputs", indices)

    def _forward(self, images: Array, training: bool, output: Output, indices: Sequence[int] | None = None) -> Any:
        def apply(block: Block, x: Array) -> Array:
            # Drawn outside the block, so that a block that is computed again drops the same examples.
            key = self.generator() if training and block.block.drop_path_rate else None
            return _remat(block, x, training, key) if self.remat else block(x, training, key)

        return apply_model(self, images, apply, lambda x: self.dropout(x, training), output, indices, training)


class Block(objax.Module):
    """The operations of one block, with its residual connection."""

    def __init__(self, block: arch.Block, layers: "_Layers") -> None:
        self.block = block
        layers.add(self, *block.ops)

    def __call__(self, x: Array, training: bool, key: Array | None = None) -> Array:
        """`(N, H, W, C)` to `(N, H', W', C')`; `key` decides which examples are dropped, None drops none."""
        return apply_block(
            self.block,
            x,
            lambda op, x, weights: apply_layers(self, op, x, weights, training),
            lambda x: x if key is None else drop_path(x, self.block.drop_path_rate, key),
        )


class Composite(CompositeLayers, objax.Module):
    """An operation that consists of convolutions: global context or attention."""


class SqueezeExcite(Composite):
    """Channels weighted by what the whole picture holds (arXiv:1709.01507)."""


class SampleNorm(objax.Module):
    """GroupNorm or LayerNorm: normalises every picture by itself. Its arrays are `(C,)`."""

    def __init__(self, norm: operations.GroupNorm | operations.LayerNorm, gamma: Array, beta: Array) -> None:
        self.norm, self.gamma, self.beta = norm, objax.TrainVar(gamma), objax.TrainVar(beta)

    def __call__(self, x: Array, *_: Any, act: str | None = None) -> Array:
        """Normalised `x` `(N, H, W, C)`, after the activation `act`, if any."""
        return sample_norm(self.norm, x, self.gamma.value, self.beta.value, x.dtype, act)


class LayerScale(objax.Module):
    """A trained factor for each channel (arXiv:2103.17239)."""

    def __init__(self, gamma: Array) -> None:
        self.gamma = objax.TrainVar(gamma)

    def __call__(self, x: Array) -> Array:
        """`(..., C)` to the same."""
        return x * over_channels(self.gamma.value.astype(x.dtype), x)


class ExpertConv(objax.Module):
    """A convolution of every picture with a mixture of kernels (CondConv, arXiv:1904.04971)."""

    def __init__(self, conv: operations.Conv, w: Array) -> None:
        self.conv, self.w = conv, objax.TrainVar(w)

    def __call__(self, x: Array, weights: Array) -> Array:
        """`(N, H, W, C)` to `(N, H', W', C')`; `weights` of the experts are `(N, experts)`."""
        return apply_experts(self.conv, x, self.w.value.astype(x.dtype), weights)


class Conv2D(objax.nn.Conv2D):
    """`objax.nn.Conv2D` of `(N, H, W, C)`; the bias is `(C,)`. Computes in its input's dtype."""

    def __call__(self, x: Array) -> Array:
        """`(N, H, W, C)` to `(N, H', W', C')`."""
        y = conv_general_dilated(
            x,
            self.w.value.astype(x.dtype),
            self.strides,  # pyright: ignore[reportArgumentType]
            self.padding,
            rhs_dilation=self.dilations,  # pyright: ignore[reportArgumentType]
            feature_group_count=self.groups,
        )
        return y if self.b is None else y + over_channels(self.b.value.astype(x.dtype), y)


class Linear(objax.nn.Linear):
    """`objax.nn.Linear` that computes in its input's dtype."""

    def __call__(self, x: Array) -> Array:
        """`(..., features)` to `(..., classes)`."""
        y = jnp.dot(x, self.w.value.astype(x.dtype))
        return y if self.b is None else y + over_channels(self.b.value.astype(x.dtype), y)


class BatchNorm(objax.nn.BatchNorm):
    """`objax.nn.BatchNorm` whose running variance is the unbiased estimate, as in PyTorch and TensorFlow.

    Normalises over all axes but the last; its arrays are `(C,)`. Statistics are at least float32.
    """

    def __init__(
        self,
        mean: Array,
        var: Array,
        beta: Array,
        gamma: Array,
        momentum: float,
        eps: float,
        frozen: bool = False,
        groups: int = 1,
    ) -> None:
        # Objax's constructor would compile zeros and ones of every width first.
        self.momentum, self.eps, self.redux, self.frozen, self.groups = momentum, eps, (0, 1, 2), frozen, groups
        self.running_mean, self.running_var = objax.StateVar(mean), objax.StateVar(var)
        self.beta, self.gamma = objax.TrainVar(beta), objax.TrainVar(gamma)

    def __call__(self, x: Array, training: bool, act: str | None = None) -> Array:
        """Normalised `x` `(..., C)`, after the activation `act`, if any."""
        arrays = [variable.value for variable in (self.running_mean, self.running_var, self.gamma, self.beta)]
        keep = self.momentum if training and not self.frozen else None
        y, moved = batch_norm(x, arrays, self.eps, x.dtype, act, keep, groups=self.groups)
        if moved:
            self.running_mean.value, self.running_var.value = moved
        return y


@dataclass(frozen=True)
class _Layers(Layers):
    start: Start
    list_class = objax.ModuleList

    def composite(self, op: operations.Composite) -> Composite:
        return (SqueezeExcite if isinstance(op, operations.SqueezeExcite) else Composite)(op, self)

    def layer_scale(self, op: operations.LayerScale) -> LayerScale:
        return LayerScale(self.start.arrays[f"{op.name}.scale"])

    def expert_conv(self, op: operations.ExpertConv) -> ExpertConv:
        return ExpertConv(op.conv, self.start.arrays[f"{op.name}.kernel"])

    def dense(self, dense: operations.Dense) -> Linear:
        arrays = self.start.arrays
        layer = Linear(0, 0, use_bias=False, w_init=lambda _: arrays[f"{dense.name}.kernel"])
        layer.b = objax.TrainVar(arrays[f"{dense.name}.bias"])
        return layer

    def conv(self, op: operations.Conv, part: operations.ConvPart) -> Conv2D:
        arrays = self.start.arrays
        numbers = part.in_channels, part.out_channels, part.kernel_size, op.stride, op.dilation, part.groups
        kernel, bias = f"{part.name}.kernel", f"{part.name}.bias"
        layer = Conv2D(*numbers, part.padding, use_bias=False, w_init=lambda _: arrays[kernel])
        layer.b = objax.TrainVar(arrays[bias]) if op.bias else None  # Objax's bias is shaped for NCHW
        return layer

    def norm(self, norm: operations.Norm) -> objax.Module:
        start = self.start
        match norm:
            case operations.BatchNorm():
                return BatchNorm(
                    *(start.arrays[f"{norm.name}.{leaf}"] for leaf in ("mean", "var", "bias", "scale")),
                    momentum=start.plan.bn_momentum,
                    eps=norm.epsilon,
                    frozen=norm.name in start.execution.frozen_norms,
                    groups=start.execution.norm_groups,
                )
            case operations.GroupNorm() | operations.LayerNorm():
                return SampleNorm(norm, *(start.arrays[f"{norm.name}.{leaf}"] for leaf in ("scale", "bias")))
            case _:
                assert_never(norm)


def _remat(block: Block, x: Array, training: bool, key: Array | None) -> Array:
    """A block of which the backward pass keeps the inputs alone; its variables are inputs and results too."""
    variables = block.vars()

    def call(tensors: list[Array], x: Array, key: Array | None) -> tuple[Array, list[Array]]:
        return with_tensors(variables, tensors, lambda: block(x, training, key))

    y, tensors = jax.checkpoint(call)(variables.tensors(), x, key)
    variables.assign(tensors)
    return y
