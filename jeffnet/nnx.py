"""The models as Flax NNX modules.

    model = create_model("pt_efficientnet_b0")
    logits = model(images)
    model, card = from_pretrained("b0.safetensors")

`images` are `(N, H, W, C)`, normalised as `jeffnet.arch.zoo.model_preprocessing` says. A new model evaluates; after
`model.train()` it normalises by the batch's statistics, updates the running ones, and drops units and paths with
random numbers of its own (`model.rngs`), until `model.eval()`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from jeffnet.arch import plan as arch
from jeffnet.errors import ArchitectureError
from jeffnet.ops.conv import conv_general_dilated
from jeffnet.ops.network import (
    apply_block,
    apply_layers,
    apply_network,
    apply_squeeze,
    feature_stages,
    local_name,
    submodule,
)
from jeffnet.ops.norm import moved_statistics, norm_inference, norm_train
from jeffnet.ops.stochastic import drop_path
from jeffnet.weights.card import ModelCard
from jeffnet.weights.load import Source
from jeffnet.weights.start import (
    ModelOptions,
    Start,
    has_classifier,
    start_model,
    start_of,
    start_pretrained,
    statistics,
)


def create_model(name: str, **options: Unpack[ModelOptions]) -> "ImageClassifier":
    """A model of the zoo; takes no forward pass.

    Args:
      name: ours or timm's; `jeffnet list` shows them.
      options: see `jeffnet.weights.start.ModelOptions`.

    Raises:
      UnknownModelError: no such model.
      ArchitectureError: an option outside its range.
      WeightsError: `pretrained` cannot be read or does not fit.
    """
    return build(start_model(name, **options))


def from_pretrained(
    source: Source, name: str | None = None, *, dtype: DTypeLike = jnp.float32
) -> tuple["ImageClassifier", ModelCard]:
    """A model from a weights file, and what is known of it; arguments and errors as in `jeffnet.linen`."""
    start, card = start_pretrained(source, name, dtype=dtype)
    return build(start), card


def build(start: Start) -> "ImageClassifier":
    """The module."""
    return ImageClassifier(start)


def to_start(model: "ImageClassifier") -> Start:
    """From what the same model can be built in any backend; the inverse of `build`."""
    return start_of(model, lambda name: submodule(model, name).get_value())


def inference(model: "ImageClassifier") -> tuple[Callable[[Any, Array], Array], Any]:
    """A pure function of the model's state and images, without training, and that state."""
    graph, state = nnx.split(nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False))
    return lambda state, images: nnx.merge(graph, state)(images), state


def training(start: Start, images: Array) -> tuple[Array, dict[str, Array]]:
    """A pass in training mode, for use inside `jax.jit`; see `jeffnet.backends.Backend`."""
    model = build(start)
    model.train()
    return model(images), statistics(to_start(model).arrays)


class ImageClassifier(nnx.Module):
    """A whole network of a Plan. Modules have the Plan's names: `model.blocks[2][1].conv_dw.kernel`.

    Attributes:
      plan: what it computes.
      dtype: in which layers compute.
      param_dtype: of parameters.
      remat: compute blocks again in the backward pass instead of keeping what they computed.
      rngs: of dropout and drop path.
    """

    def __init__(self, start: Start) -> None:
        layers, plan = _Layers(start), start.plan
        self.plan, self.dtype, self.param_dtype, self.remat = plan, start.dtype, start.param_dtype, start.remat
        layers.add(self, plan.stem)
        self.blocks = nnx.List([nnx.List([Block(block, layers) for block in stage]) for stage in plan.stages])
        layers.add(self, plan.head)
        self.dropout = nnx.Dropout(plan.drop_rate, deterministic=True)
        if plan.classifier:
            self.classifier = layers.dense(plan.classifier)
        self.rngs = nnx.Rngs(dropout=start.rng)

    @property
    def feature_info(self) -> tuple[arch.FeatureInfo, ...]:
        """Name, channels and stride of each map that `features` can return."""
        return self.plan.features

    def __call__(self, images: Array, *, rngs: nnx.Rngs | None = None) -> Array:
        """Logits `(N, num_classes)`, or the pooled features where `num_classes` is 0.

        Args:
          images: `(N, H, W, C)`, normalised.
          rngs: with a stream `dropout`, in place of the model's own.

        Raises:
          ArchitectureError: the images do not fit the model.
        """
        return self._forward(images, "logits", rngs)[-1]

    def pre_logits(self, images: Array, *, rngs: nnx.Rngs | None = None) -> Array:
        """What the classifier gets: pooled features `(N, F)`; with `global_pool='none'` `(N, H', W', F)`."""
        return self._forward(images, "pre_logits", rngs)[-1]

    def features(
        self, images: Array, indices: Sequence[int] | None = None, *, rngs: nnx.Rngs | None = None
    ) -> tuple[Array, ...]:
        """Feature maps `(N, H / stride, W / stride, C)`.

        Args:
          images: `(N, H, W, C)`, normalised.
          indices: which of `feature_info`, in any order; negative ones count from the end. None takes all.
          rngs: as of a call.

        Raises:
          ArchitectureError: no such map.
        """
        stages = feature_stages(self.plan, indices)
        maps = self._forward(images, "features", rngs, max(stages, default=-1))
        return tuple(maps[stage + 1] for stage in stages)

    def _forward(self, images: Array, output: str, rngs: nnx.Rngs | None, last_stage: int | None = None) -> list[Array]:
        rngs = self.rngs if rngs is None else rngs
        call_block = nnx.remat(Block.__call__) if self.remat else Block.__call__

        def apply(block: arch.Block, x: Array) -> Array:
            module = submodule(self, block.name)
            # Drawn out here, so that a block that is computed again drops the same.
            return call_block(module, x, rngs.dropout() if module.drop_path.is_active else None)

        return apply_network(
            self.plan,
            images,
            self.dtype,
            lambda op, x: apply_layers(self, op, x),
            apply,
            # Also one that its user has put there.
            (lambda x: self.classifier(self.dropout(x, rngs=rngs))) if has_classifier(self) else None,
            output=output,
            last_stage=last_stage,
        )


class Block(nnx.Module):
    """The operations of one block, with its residual connection."""

    def __init__(self, block: arch.Block, layers: "_Layers") -> None:
        self.block = block
        for op in block.ops:
            if isinstance(op, arch.Conv):
                layers.add(self, op)
            else:
                setattr(self, local_name(op.name), SqueezeExcite(op, layers))
        self.drop_path = DropPath(block.drop_path_rate)

    def __call__(self, x: Array, key: Array | None = None) -> Array:
        """`(N, H, W, C)` to `(N, H', W', C')`; `key` decides which examples are dropped."""
        return apply_block(
            self.block,
            x,
            lambda op, x: apply_layers(self, op, x),
            lambda op, x: getattr(self, local_name(op.name))(x),
            lambda x: self.drop_path(x, key),
        )


class SqueezeExcite(nnx.Module):
    """Channels weighted by what the whole picture holds (arXiv:1709.01507)."""

    def __init__(self, op: arch.SqueezeExcite, layers: "_Layers") -> None:
        self.op = op
        layers.add(self, op.reduce)
        layers.add(self, op.expand)

    def __call__(self, x: Array) -> Array:
        """`(N, H, W, C)` to the same."""
        return apply_squeeze(self.op, x, lambda op, x: apply_layers(self, op, x))


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
        # NNX's own would first compile zeros and ones of every width.
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


class _Layers:
    """Makes native layers that hold the arrays of a start, instead of drawing initial ones and throwing them away."""

    def __init__(self, start: Start) -> None:
        self.start = start
        self.dtypes: Mapping[str, Any] = {"dtype": start.dtype, "param_dtype": start.param_dtype}

    def add(self, module: nnx.Module, op: arch.Conv) -> None:
        """Give a module the layers of a convolution and its norm."""
        convs = [self._conv(op, part) for part in op.parts]
        setattr(module, local_name(op.name), convs[0] if len(convs) == 1 else nnx.List(convs))
        if op.norm:
            setattr(module, local_name(op.norm), self._norm(op.norm))

    def dense(self, dense: arch.Dense) -> nnx.Linear:
        """The classifier."""
        return nnx.Linear(dense.in_features, dense.out_features, **self._arrays(dense.name, "kernel", "bias"))

    def _conv(self, op: arch.Conv, part: arch.ConvPart) -> nnx.Conv:
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

    def _norm(self, name: str) -> BatchNorm:
        plan, arrays = self.start.plan, self.start.arrays
        return BatchNorm(
            *(arrays[f"{name}.{leaf}"] for leaf in ("mean", "var", "scale", "bias")),
            momentum=plan.bn_momentum,
            epsilon=plan.bn_epsilon,
            dtype=self.start.dtype,
            frozen=name in plan.frozen_norms,
            groups=plan.norm_groups,
        )

    def _arrays(self, name: str, *leaves: str) -> dict[str, Any]:
        """Initialisers that answer with the arrays of a start."""
        arrays = {leaf: self.start.arrays[f"{name}.{leaf}"] for leaf in leaves}
        inits = {f"{leaf}_init": lambda *_, array=array: array for leaf, array in arrays.items()}
        return {**self.dtypes, **inits, "rngs": _NO_RNGS}


class _NoRngs:
    """In place of random numbers that nobody looks at."""

    def params(self) -> None:
        """No key."""


_NO_RNGS: Any = _NoRngs()
