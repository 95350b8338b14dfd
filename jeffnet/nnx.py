"""The models as Flax NNX modules.

    model = create_model("pt_efficientnet_b0")
    logits = model(images)
    model, card = from_pretrained("b0.safetensors")

`images` are `(N, H, W, C)`, normalised as `jeffnet.arch.zoo.model_preprocessing` says. A new model evaluates; after
`model.train()` it normalises by the batch's statistics, updates the running ones, and drops units and paths with
random numbers of `model.rngs`, until `model.eval()`.
"""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, Unpack, assert_never

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from jeffnet.arch import operations
from jeffnet.arch import plan as arch
from jeffnet.backends.common import (
    ImageModel,
    Layers,
    SqueezeExciteLayers,
    apply_layers,
    documented,
    has_classifier,
    start_of,
    submodule,
)
from jeffnet.errors import ArchitectureError
from jeffnet.ops.conv import conv_general_dilated
from jeffnet.ops.network import Output, apply_block, apply_network
from jeffnet.ops.norm import moved_statistics, norm_inference, norm_train
from jeffnet.ops.stochastic import drop_path
from jeffnet.weights.card import ModelCard
from jeffnet.weights.load import Source
from jeffnet.weights.start import ModelOptions, Start, start_model, start_pretrained, statistics


@documented
def create_model(name: str, **options: Unpack[ModelOptions]) -> "ImageClassifier":
    return build(start_model(name, **options))


@documented
def from_pretrained(
    source: Source, name: str | None = None, *, dtype: DTypeLike = jnp.float32
) -> tuple["ImageClassifier", ModelCard]:
    start, card = start_pretrained(source, name, dtype=dtype)
    return build(start), card


@documented
def build(start: Start) -> "ImageClassifier":
    return ImageClassifier(start)


@documented
def to_start(model: "ImageClassifier") -> Start:
    return start_of(model, lambda name: submodule(model, name).get_value())


@documented
def inference(model: "ImageClassifier") -> tuple[Callable[[Any, Array], Array], Any]:
    graph, state = nnx.split(nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False))
    return lambda state, images: nnx.merge(graph, state)(images), state


@documented
def training(start: Start, images: Array) -> tuple[Array, dict[str, Array]]:
    model = build(start)
    model.train()
    return model(images), statistics(to_start(model).arrays)


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
        layers.add(self, plan.head)
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
          ArchitectureError: the images do not fit the model.
        """
        return self._forward(images, "logits", rngs)

    def pre_logits(self, images: Array, *, rngs: nnx.Rngs | None = None) -> Array:
        return self._forward(images, "pre_logits", rngs)

    def features(
        self, images: Array, indices: Sequence[int] | None = None, *, rngs: nnx.Rngs | None = None
    ) -> tuple[Array, ...]:
        return self._forward(images, "features", rngs, indices)

    def _forward(
        self, images: Array, output: Output, rngs: nnx.Rngs | None, indices: Sequence[int] | None = None
    ) -> Any:
        rngs = self.rngs if rngs is None else rngs
        call_block = nnx.remat(Block.__call__) if self.remat else Block.__call__

        def apply(block: arch.Block, x: Array) -> Array:
            module = submodule(self, block.name)
            # Drawn outside the block, so that a block that is computed again drops the same examples.
            return call_block(module, x, rngs.dropout() if module.drop_path.is_active else None)

        return apply_network(
            self.plan,
            images,
            self.dtype,
            lambda op, x: apply_layers(self, op, x),
            apply,
            # Or the one that its user has put in its place.
            (lambda x: self.classifier(self.dropout(x, rngs=rngs))) if has_classifier(self) else None,
            execution=self.execution,
            output=output,
            indices=indices,
        )


class Block(nnx.Module):
    """The operations of one block, with its residual connection."""

    def __init__(self, block: arch.Block, layers: "_Layers") -> None:
        self.block = block
        for op in block.ops:
            layers.add(self, op)
        self.drop_path = DropPath(block.drop_path_rate)

    def __call__(self, x: Array, key: Array | None = None) -> Array:
        """`(N, H, W, C)` to `(N, H', W', C')`; `key` decides which examples are dropped."""
        return apply_block(self.block, x, lambda op, x: apply_layers(self, op, x), lambda x: self.drop_path(x, key))


class SqueezeExcite(SqueezeExciteLayers, nnx.Module):
    """Channels weighted by what the whole picture holds (arXiv:1709.01507)."""


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
        """What `nnx.view` calls."""
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
        self.mean, self.var, self.scale, self.bias = (
            nnx.BatchStat(mean), nnx.BatchStat(var), nnx.Param(scale), nnx.Param(bias),
        )  # fmt: skip
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
        mean, var, scale, bias = (each.get_value() for each in (self.mean, self.var, self.scale, self.bias))
        dtype = self.dtype or x.dtype
        use_running = self.use_running_average if use_running_average is None else use_running_average
        if use_running or self.frozen:
            return norm_inference(x, mean, var, scale, bias, self.epsilon, dtype, act)
        y, batch_mean, unbiased = norm_train(x, scale, bias, self.epsilon, dtype, act, self.axis_name, self.groups)
        self.mean.set_value(jax.lax.stop_gradient(moved_statistics(mean, batch_mean, self.momentum)))
        self.var.set_value(jax.lax.stop_gradient(moved_statistics(var, unbiased, self.momentum)))
        return y


class _Layers(Layers):
    list_class, squeeze_excite_class = nnx.List, SqueezeExcite

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

    def norm(self, norm: operations.Norm) -> BatchNorm:
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
            case _:
                assert_never(norm)

    def _arrays(self, name: str, *leaves: str) -> dict[str, Any]:
        """Initialisers that return the arrays of the start."""
        arrays = {leaf: self.start.arrays[f"{name}.{leaf}"] for leaf in leaves}
        inits = {f"{leaf}_init": lambda *_, array=array: array for leaf, array in arrays.items()}
        return {"dtype": self.start.dtype, "param_dtype": self.start.param_dtype, **inits, "rngs": _NO_RNGS}


# In place of random numbers that no initialiser uses.
_NO_RNGS: Any = SimpleNamespace(params=lambda: None)
