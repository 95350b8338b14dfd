"""The models as pure functions over flat dictionaries of arrays by canonical name.

    model, variables = create_model("efficientnet_b0")
    logits = model.apply(variables, images)
    logits, updated = model.apply(variables, images, train=True, rngs={"dropout": key})
    variables = {**variables, **updated}
    model, variables, card = from_pretrained("b0.safetensors")

`variables` are `{'params': {name: array}, 'batch_stats': {name: array}}`, with names such as
`blocks.2.1.conv_dw.kernel`. There is no module and no framework but JAX: for training, export and fused inference.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack, assert_never

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jeffnet.arch.execution import Execution
from jeffnet.arch.operations import (
    Attention,
    BatchNorm,
    Conv,
    ConvPart,
    Downsample,
    ExpertConv,
    GlobalContext,
    GroupNorm,
    LayerNorm,
    LayerScale,
    Norm,
    Normalize,
    Op,
    Routing,
    SqueezeExcite,
)
from jeffnet.arch.plan import Block, Plan
from jeffnet.backends.common import ImageModel, conversions, documented
from jeffnet.errors import ArchitectureError
from jeffnet.inference.fused import fuse as fuse
from jeffnet.inference.fused import load_fused as load_fused
from jeffnet.ops.broadcast import over_channels
from jeffnet.ops.conv import conv_general_dilated
from jeffnet.ops.group_norm import sample_norm
from jeffnet.ops.network import (
    Output,
    apply_block,
    apply_composite,
    apply_conv,
    apply_experts,
    apply_network,
    apply_rest,
    apply_routing,
)
from jeffnet.ops.norm import batch_norm
from jeffnet.ops.pool import downsample
from jeffnet.ops.stochastic import drop_path, dropout
from jeffnet.weights.load import Source
from jeffnet.weights.start import (
    ModelLike,
    ModelOptions,
    Pretrained,
    PretrainedOptions,
    Start,
    start_arrays,
    start_model,
    start_pretrained,
)

Variables = dict[str, dict[str, Any]]
_Trees = Mapping[str, Mapping[str, Array]]
_Keys = Mapping[str, Array]

to_variables, to_canonical = conversions(lambda name: (name,))


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
    return model.apply, variables


@documented
def training(start: Start, images: Array, indices: Sequence[int] | None = None) -> tuple[Any, dict[str, Array]]:
    model, variables = build(start)
    run = _Run(model, variables, True, {"dropout": jnp.asarray(start.rng)})
    outputs, updated = run.outputs(images, "logits" if indices is None else "outputs", indices)
    return outputs, updated["batch_stats"]


@dataclass(frozen=True)
class ImageClassifier(ImageModel):
    """The functions of a Plan. Hashable: it can be a static argument of `jax.jit`.

    Attributes:
      plan: what they compute.
      dtype: in which layers compute.
      param_dtype: of parameters.
      remat: compute blocks again in the backward pass instead of keeping what they computed.
      execution: how a pass runs.
    """

    plan: Plan
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    remat: bool = False
    execution: Execution = Execution()

    def init(self, rng: int | Array) -> Variables:
        """Initial variables; the same as `create_model` makes.

        Args:
          rng: a seed or a key of `jax.random`; concrete, not inside `jax.jit`.

        Returns:
          `{'params', 'batch_stats'}`.
        """
        return to_variables(start_arrays(self.plan, rng, self.param_dtype))

    def apply(self, variables: _Trees, images: Array, *, train: bool = False, rngs: _Keys | None = None) -> Any:
        """Logits `(N, num_classes)`, or the pooled features where `num_classes` is 0.

        Args:
          variables: `{'params', 'batch_stats'}`.
          images: `(N, H, W, C)`, normalised.
          train: normalise by the batch's statistics; drop units and paths.
          rngs: `{'dropout': key}`, needed in training where a drop rate is not 0.

        Returns:
          The logits; in training, the logits and `{'batch_stats': ...}`, updated.

        Raises:
          InputError: the images do not fit the model.
          ArchitectureError: the key is missing.
        """
        return _Run(self, variables, train, rngs).outputs(images, "logits")

    def pre_logits(self, variables: _Trees, images: Array, *, train: bool = False, rngs: _Keys | None = None) -> Any:
        return _Run(self, variables, train, rngs).outputs(images, "pre_logits")

    def features(
        self,
        variables: _Trees,
        images: Array,
        indices: Sequence[int] | None = None,
        *,
        train: bool = False,
        rngs: _Keys | None = None,
    ) -> Any:
        return _Run(self, variables, train, rngs).outputs(images, "features", indices)

    def outputs(
        self,
        variables: _Trees,
        images: Array,
        indices: Sequence[int] | None = None,
        *,
        train: bool = False,
        rngs: _Keys | None = None,
    ) -> Any:
        return _Run(self, variables, train, rngs).outputs(images, "outputs", indices)

    def from_features(self, variables: _Trees, features: Array, index: int) -> Array:
        """Logits from one of the maps that `features` returns.

        Args:
          variables: `{'params', 'batch_stats'}`.
          features: `(N, H / stride, W / stride, C)`.
          index: which of `feature_info` they are; a negative one counts from the end.

        Returns:
          What `apply` returns for the pictures of this map.

        Raises:
          ArchitectureError: no such map.
        """
        return _Run(self, variables, False, None).rest(features, index)


class _Run:
    """One forward pass, and the running statistics that it updates, by canonical name."""

    def __init__(self, model: ImageClassifier, variables: _Trees, train: bool, rngs: _Keys | None) -> None:
        self.model, self.train, self.rngs = model, train, rngs or {}
        self.params, self.stats = variables["params"], variables["batch_stats"]
        self.updated: dict[str, Array] = {}

    def outputs(self, images: Array, output: Output, indices: Sequence[int] | None = None) -> Any:
        """The outputs of `apply_network`; in training, with the updated statistics."""
        plan, dtype, execution = self.model.plan, self.model.dtype, self.model.execution
        layers = self._conv, self._block, self._classifier if plan.classifier else None
        outputs = apply_network(plan, images, dtype, *layers, execution=execution, output=output, indices=indices)
        return (outputs, {"batch_stats": {**self.stats, **self.updated}}) if self.train else outputs

    def rest(self, features: Array, index: int) -> Array:
        """The logits of `apply_rest`."""
        plan, layers = self.model.plan, (self._conv, self._block)
        classifier = self._classifier if plan.classifier else None
        features = jnp.asarray(features, self.model.dtype)
        return apply_rest(plan, features, index, *layers, classifier, execution=self.model.execution)

    def _operation(self, op: Op, x: Array, weights: Array | None) -> Array:
        match op:
            case Conv():
                return self._conv(op, x)
            case ExpertConv():
                assert weights is not None
                return apply_conv(op.conv, x, lambda _, x: self._experts(op, x, weights), self._norm)
            case SqueezeExcite() | GlobalContext() | Attention():
                return apply_composite(op, x, self._conv)
            case Normalize():
                return self._norm(op.norm, x, op.act)
            case LayerScale():
                return x * over_channels(self._param(f"{op.name}.scale"), x)
            case Routing():
                return apply_routing(x, lambda x: self._dense(op.name, x))
            case Downsample():
                return downsample(x, op.taps, op.padding)
            case _:
                assert_never(op)

    def _block(self, block: Block, x: Array) -> Array:
        rate = block.drop_path_rate

        def call(x: Array, key: Array | None) -> tuple[Array, dict[str, Array]]:
            # A rematerialised function has to return its statistics: stored on the way, they would be tracers of it.
            outer, self.updated = self.updated, {}
            x = apply_block(block, x, self._operation, lambda x: x if key is None else drop_path(x, rate, key))
            updated, self.updated = self.updated, outer
            return x, updated

        x, updated = (jax.checkpoint(call) if self.model.remat else call)(x, self._key(block.name, rate))
        self.updated |= updated
        return x

    def _conv(self, op: Conv, x: Array) -> Array:
        def apply_part(part: ConvPart, x: Array) -> Array:
            y = conv_general_dilated(
                x,
                self._param(f"{part.name}.kernel"),
                (op.stride, op.stride),
                part.padding,
                rhs_dilation=(op.dilation, op.dilation),
                feature_group_count=part.groups,
            )
            return y + over_channels(self._param(f"{part.name}.bias"), y) if op.bias else y

        return apply_conv(op, x, apply_part, self._norm)

    def _experts(self, op: ExpertConv, x: Array, weights: Array) -> Array:
        y = apply_experts(op.conv, x, self._param(f"{op.name}.kernel"), weights)
        return y + over_channels(self._param(f"{op.name}.bias"), y) if op.conv.bias else y

    def _norm(self, norm: Norm, x: Array, act: str | None) -> Array:
        match norm:
            case BatchNorm():
                return self._batch_norm(norm, x, act)
            case GroupNorm() | LayerNorm():
                scale, bias = (self.params[f"{norm.name}.{leaf}"] for leaf in ("scale", "bias"))
                return sample_norm(norm, x, scale, bias, self.model.dtype, act)
            case _:
                assert_never(norm)

    def _batch_norm(self, norm: BatchNorm, x: Array, act: str | None) -> Array:
        name, model = norm.name, self.model
        arrays = [self.stats[f"{name}.mean"], self.stats[f"{name}.var"]]
        arrays += [self.params[f"{name}.scale"], self.params[f"{name}.bias"]]
        keep = model.plan.bn_momentum if self.train and name not in model.execution.frozen_norms else None
        y, moved = batch_norm(x, arrays, norm.epsilon, model.dtype, act, keep, groups=model.execution.norm_groups)
        if moved:
            self.updated |= {f"{name}.mean": moved[0], f"{name}.var": moved[1]}
        return y

    def _classifier(self, x: Array) -> Array:
        rate = self.model.plan.drop_rate
        key = self._key("dropout", rate)
        x = x if key is None else dropout(x, rate, key)
        return self._dense("classifier", x)

    def _dense(self, name: str, x: Array) -> Array:
        x = x @ self._param(f"{name}.kernel")
        return x + over_channels(self._param(f"{name}.bias"), x)

    def _param(self, name: str) -> Array:
        return jnp.asarray(self.params[name], self.model.dtype)

    def _key(self, name: str, rate: float) -> Array | None:
        """The key of one place, different from those of all others; None where nothing is dropped."""
        if not self.train or rate == 0:
            return None
        if "dropout" not in self.rngs:
            raise ArchitectureError("training with dropout or drop path needs a key: pass rngs={'dropout': key}")
        return jax.random.fold_in(self.rngs["dropout"], zlib.crc32(name.encode()))
