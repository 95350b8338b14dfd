"""The models as Flax NNX modules.

    model = create_model("efficientnet_b0")
    logits = model(images)
    model, card = from_pretrained("b0.safetensors")

`images` are `(N, H, W, C)`, normalised as `jeffnet.arch.zoo.model_preprocessing` says. A new model evaluates; after
`model.train()` it normalises by the batch's statistics, updates the running ones, and drops units and paths with
random numbers of `model.rngs`, until `model.eval()`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, Unpack, assert_never

import jax
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from jeffnet.arch import operations
from jeffnet.arch import plan as arch
from jeffnet.backends.common import CompositeLayers, ImageModel, Layers, apply_layers, apply_model, documented, start_of
from jeffnet.errors import ArchitectureError
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
    return start_of(model, lambda layer, leaf: getattr(layer, leaf).get_value())


@documented
def inference(model: "ImageClassifier") -> tuple[Callable[[Any, Array], Array], Any]:
    graph, state = nnx.split(nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False))
    return lambda state, images: nnx.merge(graph, state)(images), state


@documented
def training(start: Start, images: Array, indices: Sequence[int] | None = None) -> tuple[Any, dict[str, Array]]:
    model = build(start)
    model.train()
    outputs = model(images) if indices is None else model.outputs(images, indices)
    return outputs, statistics(to_start(model).arrays)


class ImageClassifier(ImageModel, nnx.Module):
    """A whole network of a Plan. Modules have the Plan's names: `model.blocks[2][1].conv_dw.kernel`.

    Attributes:
      plan: what it computes.
      dtype: in which layers compute.
      param_dtype: of parameters.
      remat: compute blocks again in the backward pass instead of keeping what they computed.
      execution: how a pass runs.
      rngs: of dropout and drop path.
    """

    def __init__(self, start: Start) -> None:
        layers, plan, self.execution = _Layers(start), start.plan, start.execution
        self.plan, self.dtype, self.param_dtype, self.remat = plan, start.dtype, start.param_dtype, start.remat
        layers.add(self, plan.stem)
        self.blocks = nnx.List([nnx.List([Block(block, layers) for block in stage]) for stage in plan.stages])
        layers.add(self, *plan.head_ops)
        self.dropout = nnx.Dropout(plan.drop_rate, deterministic=True)
        if plan.classifier:
            self.classifier = layers.dense(plan.classifier)
        self.rngs = nnx.Rngs(dropout=start.rng)

    def __call__(self, images: Array, *, rngs: nnx.Rngs | None = None) -> Array:
        """Logits `(N, num_classes)`, or the pooled features where `num_classes` is 0.

        Args:
          images: `(N, H, W, C)`, normalised.
          rngs: with a stream `dropout`, used instead of `model.rngs`.

        Raises:
          InputError: the images do not fit the model.
        """
        return self._forward(images, "logits", rngs)

    def pre_logits(self, images: Array, *, rngs: nnx.Rngs | None = None) -> Array:
        return self._forward(images, "pre_logits", rngs)

    def features(
        self, images: Array, indices: Sequence[int] | None = None, *, rngs: nnx.Rngs | None = None
    ) -> tuple[Array, ...]:
        return self._forward(images, "features", rngs, indices)

    def outputs(self, images: Array, indices: Sequence[int] | None = None, *, rngs: nnx.Rngs | None = None) -> Outputs:
        return self._forward(images, "outputs", rngs, indices)

    def _forward(
        self, images: Array, output: Output, rngs: nnx.Rngs | None, indices: Sequence[int] | None = None
    ) -> Any:
        rngs = self.rngs if rngs is None else rngs
        call_block = nnx.remat(Block.__call__) if self.remat else Block.__call__

        def apply(block: Block, x: Array) -> Array:
            # Drawn outside the block, so that a block that is computed again drops the same examples.
            return call_block(block, x, rngs.dropout() if block.drop_path.is_active else None)

        return apply_model(self, images, apply, lambda x: self.dropout(x, rngs=rngs), output, indices)


class Block(nnx.Module):
    """The operations of one block, with its residual connection."""

    def __init__(self, block: arch.Block, layers: "_Layers") -> None:
        self.block = block
        layers.add(self, *block.ops)
        self.drop_path = DropPath(block.drop_path_rate)

    def __call__(self, x: Array, key: Array | None = None) -> Array:
        """`(N, H, W, C)` to `(N, H', W', C')`; `key` decides which examples are dropped."""
        return apply_block(self.block, x, partial(apply_layers, self), lambda x: self.drop_path(x, key))


class Composite(CompositeLayers, nnx.Module):
    """An operation that consists of convolutions: global context or attention."""


class SqueezeExcite(Composite):
    """Channels weighted by what the whole picture holds (arXiv:1709.01507)."""


class SampleNorm(nnx.Module):
    """GroupNorm or LayerNorm: normalises every picture by itself. Its arrays are `(C,)`."""

    def __init__(
        self, norm: operations.GroupNorm | operations.LayerNorm, scale: Array, bias: Array, dtype: DTypeLike
    ) -> None:
        self.norm, self.dtype = norm, dtype
        self.scale, self.bias = nnx.Param(scale), nnx.Param(bias)

    def __call__(self, x: Array, act: str | None = None) -> Array:
        """Normalised `x` `(N, H, W, C)`, after the activation `act`, if any."""
        return sample_norm(self.norm, x, self.scale.get_value(), self.bias.get_value(), self.dtype, act)


class LayerScale(nnx.Module):
    """A trained factor for each channel (arXiv:2103.17239)."""

    def __init__(self, scale: Array) -> None:
        self.scale = nnx.Param(scale)

    def __call__(self, x: Array) -> Array:
        """`(..., C)` to the same."""
        return x * over_channels(self.scale.get_value().astype(x.dtype), x)


class ExpertConv(nnx.Module):
    """A convolution of every picture with a mixture of kernels (CondConv, arXiv:1904.04971)."""

    def __init__(self, conv: operations.Conv, kernel: Array) -> None:
        self.conv, self.kernel = conv, nnx.Param(kernel)

    def __call__(self, x: Array, weights: Array) -> Array:
        """`(N, H, W, C)` to `(N, H', W', C')`; `weights` of the experts are `(N, experts)`."""
        return apply_experts(self.conv, x, self.kernel.get_value().astype(x.dtype), weights)


class DropPath(nnx.Module):
    """Stochastic depth (arXiv:1603.09382); `deterministic` switches it off, as it does `nnx.Dropout`."""

    def __init__(self, rate: float, deterministic: bool = True) -> None:
        self.rate, self.deterministic = rate, deterministic

    @property
    def is_active(self) -> bool:
        """Whether a call drops anything, and needs a key."""
        return self.rate > 0 and not self.deterministic

    def __call__(self, x: Array, key: Array | None) -> Array:
        """`(N, ...)` to the same, some examples zeroed."""
        return drop_path(x, self.rate, key) if self.is_active and key is not None else x

    def set_view(self, deterministic: bool | None = None) -> None:
        """What `nnx.view` calls.

        Args:
          deterministic: whether no path is dropped; None keeps what is.
        """
        self.deterministic = self.deterministic if deterministic is None else deterministic


class BatchNorm(nnx.BatchNorm):
    """`flax.nnx.BatchNorm` whose running variance is the unbiased estimate, as in PyTorch and TensorFlow.

    Normalises over all axes but the last. Statistics are at least float32. A new one evaluates.
    """

    def __init__(
        self,
        mean: Array,
        var: Array,
        scale: Array,
        bias: Array,
        *,
        momentum: float,
        epsilon: float,
        dtype: DTypeLike,
        frozen: bool = False,
        groups: int = 1,
    ) -> None:
        # NNX's constructor would compile zeros and ones of every width first.
        self.mean, self.var = nnx.BatchStat(mean), nnx.BatchStat(var)
        self.scale, self.bias = nnx.Param(scale), nnx.Param(bias)
        self.num_features, self.param_dtype = scale.shape[0], scale.dtype
        self.momentum, self.epsilon, self.dtype = momentum, epsilon, dtype
        self.use_running_average, self.axis_name, self.frozen, self.groups = True, None, frozen, groups

    def __call__(
        self, x: Array, use_running_average: bool | None = None, *, mask: Array | None = None, act: str | None = None
    ) -> Array:
        """Normalised `x` `(..., C)`, after the activation `act`, if any; masks are not supported."""
        if mask is not None:
            raise ArchitectureError("BatchNorm takes no mask")
        assert self.scale is not None and self.bias is not None
        arrays = [variable.get_value() for variable in (self.mean, self.var, self.scale, self.bias)]
        use_running = self.use_running_average if use_running_average is None else use_running_average
        keep = None if use_running or self.frozen else self.momentum
        y, moved = batch_norm(x, arrays, self.epsilon, self.dtype or x.dtype, act, keep, self.axis_name, self.groups)
        if moved:
            self.mean.set_value(jax.lax.stop_gradient(moved[0]))
            self.var.set_value(jax.lax.stop_gradient(moved[1]))
        return y


@dataclass(frozen=True)
class _Layers(Layers):
    start: Start
    list_class = nnx.List

    def composite(self, op: operations.Composite) -> Composite:
        return (SqueezeExcite if isinstance(op, operations.SqueezeExcite) else Composite)(op, self)

    def layer_scale(self, op: operations.LayerScale) -> LayerScale:
        return LayerScale(self.start.arrays[f"{op.name}.scale"])

    def expert_conv(self, op: operations.ExpertConv) -> ExpertConv:
        return ExpertConv(op.conv, self.start.arrays[f"{op.name}.kernel"])

    def dense(self, dense: operations.Dense) -> nnx.Linear:
        return nnx.Linear(dense.in_features, dense.out_features, **self._arrays(dense.name, "kernel", "bias"))

    def conv(self, op: operations.Conv, part: operations.ConvPart) -> nnx.Conv:
        return nnx.Conv(
            part.in_channels,
            part.out_channels,
            (part.kernel_size, part.kernel_size),
            strides=op.stride,
            padding=part.padding,
            kernel_dilation=op.dilation,
            feature_group_count=part.groups,
            use_bias=op.bias,
            conv_general_dilated=conv_general_dilated,
            **self._arrays(part.name, "kernel", *(("bias",) if op.bias else ())),
        )

    def norm(self, norm: operations.Norm) -> nnx.Module:
        start = self.start
        match norm:
            case operations.BatchNorm():
                return BatchNorm(
                    *(start.arrays[f"{norm.name}.{leaf}"] for leaf in ("mean", "var", "scale", "bias")),
                    momentum=start.plan.bn_momentum,
                    epsilon=norm.epsilon,
                    dtype=start.dtype,
                    frozen=norm.name in start.execution.frozen_norms,
                    groups=start.execution.norm_groups,
                )
            case operations.GroupNorm() | operations.LayerNorm():
                scale, bias = (start.arrays[f"{norm.name}.{leaf}"] for leaf in ("scale", "bias"))
                return SampleNorm(norm, scale, bias, start.dtype)
            case _:
                assert_never(norm)

    def _arrays(self, name: str, *leaves: str) -> dict[str, Any]:
        """Initialisers that return the arrays of the start."""
        arrays = {leaf: self.start.arrays[f"{name}.{leaf}"] for leaf in leaves}
        inits = {f"{leaf}_init": lambda *_, array=array: array for leaf, array in arrays.items()}
        return {"dtype": self.start.dtype, "param_dtype": self.start.param_dtype, **inits, "rngs": _NO_RNGS}


# In place of random numbers that no initialiser uses.
_NO_RNGS: Any = SimpleNamespace(params=lambda: None)
