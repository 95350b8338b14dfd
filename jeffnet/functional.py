"""The models as pure functions over flat dictionaries of arrays by canonical name.

    model, variables = create_model("pt_efficientnet_b0")
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
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jeffnet.arch import plan as arch
from jeffnet.arch.summary import STATISTICS, array_specs
from jeffnet.errors import ArchitectureError, WeightsError
from jeffnet.inference.fused import fuse as fuse
from jeffnet.inference.fused import load_fused as load_fused
from jeffnet.ops.broadcast import over_channels
from jeffnet.ops.conv import conv_general_dilated
from jeffnet.ops.network import apply_block, apply_conv, apply_network, apply_squeeze, feature_stages
from jeffnet.ops.norm import moved_statistics, norm_inference, norm_train
from jeffnet.ops.stochastic import drop_path, dropout
from jeffnet.weights.card import ModelCard
from jeffnet.weights.load import Source
from jeffnet.weights.start import ModelOptions, Start, start_arrays, start_model, start_pretrained

Variables = dict[str, dict[str, Any]]


def create_model(name: str, **options: Unpack[ModelOptions]) -> tuple["ImageClassifier", Variables]:
    """A model of the zoo and its variables; takes no forward pass.

    Args:
      name: ours or timm's; `jeffnet list` shows them.
      options: see `jeffnet.weights.start.ModelOptions`.

    Returns:
      The model's functions, and `{'params': ..., 'batch_stats': ...}`.

    Raises:
      UnknownModelError: no such model.
      ArchitectureError: an option outside its range.
      WeightsError: `pretrained` cannot be read or does not fit.
    """
    return build(start_model(name, **options))


def from_pretrained(
    source: Source, name: str | None = None, *, dtype: DTypeLike = jnp.float32
) -> tuple["ImageClassifier", Variables, ModelCard]:
    """A model from a weights file; see `jeffnet.linen.from_pretrained`."""
    start, card = start_pretrained(source, name, dtype=dtype)
    return *build(start), card


def build(start: Start) -> tuple["ImageClassifier", Variables]:
    """The functions and the variables."""
    return ImageClassifier(start.plan, start.dtype, start.param_dtype, start.remat), to_variables(start.arrays)


def to_start(model: "ImageClassifier", variables: Mapping[str, Any]) -> Start:
    """From what the same model can be built in any backend; the inverse of `build`."""
    return Start(model.plan, to_canonical(variables, model.plan), model.dtype, model.param_dtype, model.remat)


def inference(model: "ImageClassifier", variables: Mapping[str, Any]) -> tuple[Callable[[Any, Array], Array], Any]:
    """A pure function of variables and images, without training, and its variables."""
    return model.apply, variables


def training(start: Start, images: Array) -> tuple[Array, dict[str, Array]]:
    """A pass in training mode, for use inside `jax.jit`; see `jeffnet.backends.Backend`."""
    model, variables = build(start)
    logits, updated = model.apply(variables, images, train=True, rngs={"dropout": jnp.asarray(start.rng)})
    return logits, updated["batch_stats"]


def to_variables(arrays: Mapping[str, Any]) -> Variables:
    """Variables from arrays by canonical name; `to_canonical` is the inverse.

    Args:
      arrays: such as `blocks.2.1.conv_dw.kernel`.

    Returns:
      `{'params': ..., 'batch_stats': ...}`.
    """
    variables: Variables = {"params": {}, "batch_stats": {}}
    for name, array in arrays.items():
        variables["batch_stats" if name.rpartition(".")[2] in STATISTICS else "params"][name] = array
    return variables


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
    arrays = {**variables["params"], **variables["batch_stats"]}
    missing = [name for name in array_specs(plan) if name not in arrays]
    if missing:
        raise WeightsError(f"variables have no {missing[0]!r}")
    return {name: arrays[name] for name in array_specs(plan)}


@dataclass(frozen=True)
class ImageClassifier:
    """The functions of a Plan. Hashable: it can be a static argument of `jax.jit`.

    Attributes:
      plan: what they compute.
      dtype: in which layers compute.
      param_dtype: of parameters.
      remat: compute blocks again in the backward pass instead of keeping what they computed.
    """

    plan: arch.Plan
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    remat: bool = False

    @property
    def feature_info(self) -> tuple[arch.FeatureInfo, ...]:
        """Name, channels and stride of each map that `features` can return."""
        return self.plan.features

    def init(self, rng: int | Array) -> Variables:
        """Initial variables; the same as `create_model` makes.

        Args:
          rng: a seed or a key of `jax.random`; concrete, not inside `jax.jit`.
        """
        return to_variables(start_arrays(self.plan, rng, self.param_dtype))

    def apply(
        self,
        variables: Mapping[str, Mapping[str, Array]],
        images: Array,
        *,
        train: bool = False,
        rngs: Mapping[str, Array] | None = None,
    ) -> Any:
        """Logits `(N, num_classes)`, or the pooled features where `num_classes` is 0.

        Args:
          variables: `{'params', 'batch_stats'}`.
          images: `(N, H, W, C)`, normalised.
          train: normalise by the batch's statistics; drop units and paths.
          rngs: `{'dropout': key}`, needed in training where a drop rate is not 0.

        Returns:
          The logits; in training, the logits and `{'batch_stats': ...}`, updated.

        Raises:
          ArchitectureError: the images do not fit the model, or the key is missing.
        """
        run = _Run(self, variables, train, rngs)
        return run.result(run.outputs(images, "logits")[-1])

    def pre_logits(
        self,
        variables: Mapping[str, Mapping[str, Array]],
        images: Array,
        *,
        train: bool = False,
        rngs: Mapping[str, Array] | None = None,
    ) -> Any:
        """What the classifier gets: pooled features `(N, F)`; with `global_pool='none'` `(N, H', W', F)`.

        Arguments, and what is returned in training, are as of `apply`.
        """
        run = _Run(self, variables, train, rngs)
        return run.result(run.outputs(images, "pre_logits")[-1])

    def features(
        self,
        variables: Mapping[str, Mapping[str, Array]],
        images: Array,
        indices: Sequence[int] | None = None,
        *,
        train: bool = False,
        rngs: Mapping[str, Array] | None = None,
    ) -> Any:
        """Feature maps `(N, H / stride, W / stride, C)`.

        Args:
          variables: this, and what is returned in training, is as of `apply`.
          images: `(N, H, W, C)`, normalised.
          indices: which of `feature_info`, in any order; negative ones count from the end. None takes all.
          train: as of `apply`.
          rngs: as of `apply`.

        Raises:
          ArchitectureError: no such map.
        """
        stages = feature_stages(self.plan, indices)
        run = _Run(self, variables, train, rngs)
        maps = run.outputs(images, "features", max(stages, default=-1))
        return run.result(tuple(maps[stage + 1] for stage in stages))


class _Run:
    """One forward pass, and the running statistics that it updates, by canonical name."""

    def __init__(
        self,
        model: ImageClassifier,
        variables: Mapping[str, Mapping[str, Array]],
        train: bool = False,
        rngs: Mapping[str, Array] | None = None,
    ) -> None:
        self.model, self.train, self.rngs = model, train, rngs or {}
        self.params, self.stats = variables["params"], variables["batch_stats"]
        self.updated: dict[str, Array] = {}

    def result(self, outputs: Any) -> Any:
        """The outputs; in training, with the updated statistics."""
        return (outputs, {"batch_stats": {**self.stats, **self.updated}}) if self.train else outputs

    def outputs(self, images: Array, output: str, last_stage: int | None = None) -> list[Array]:
        """See `apply_network`."""
        plan = self.model.plan
        return apply_network(
            plan,
            images,
            self.model.dtype,
            self._conv,
            self._block,
            self._classifier if plan.classifier else None,
            output=output,
            last_stage=last_stage,
        )

    def _block(self, block: arch.Block, x: Array) -> Array:
        def call(x: Array, key: Array | None) -> tuple[Array, dict[str, Array]]:
            # Statistics leave a rematerialised function as a result of it, not by the way.
            outer, self.updated = self.updated, {}
            x = apply_block(
                block,
                x,
                self._conv,
                lambda op, x: apply_squeeze(op, x, self._conv),
                lambda x: x if key is None else drop_path(x, block.drop_path_rate, key),
            )
            updated, self.updated = self.updated, outer
            return x, updated

        key = self._key(block.name, block.drop_path_rate)
        x, updated = (jax.checkpoint(call) if self.model.remat else call)(x, key)
        self.updated |= updated
        return x

    def _conv(self, op: arch.Conv, x: Array) -> Array:
        def apply_part(part: arch.ConvPart, x: Array) -> Array:
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

    def _norm(self, name: str, x: Array, act: str | None) -> Array:
        plan, mean, var = self.model.plan, self.stats[f"{name}.mean"], self.stats[f"{name}.var"]
        scale, bias = self.params[f"{name}.scale"], self.params[f"{name}.bias"]
        if self.train and name not in plan.frozen_norms:
            y, batch_mean, unbiased = norm_train(
                x, scale, bias, plan.bn_epsilon, self.model.dtype, act, groups=plan.norm_groups
            )
            self.updated[f"{name}.mean"] = moved_statistics(mean, batch_mean, plan.bn_momentum)
            self.updated[f"{name}.var"] = moved_statistics(var, unbiased, plan.bn_momentum)
            return y
        return norm_inference(x, mean, var, scale, bias, plan.bn_epsilon, self.model.dtype, act)

    def _classifier(self, x: Array) -> Array:
        rate = self.model.plan.drop_rate
        key = self._key("dropout", rate)
        x = x if key is None else dropout(x, rate, key)
        x = x @ self._param("classifier.kernel")
        return x + over_channels(self._param("classifier.bias"), x)

    def _param(self, name: str) -> Array:
        return jnp.asarray(self.params[name], self.model.dtype)

    def _key(self, name: str, rate: float) -> Array | None:
        """The key of one place, different from those of all others; None where nothing is dropped."""
        if not self.train or rate == 0:
            return None
        if "dropout" not in self.rngs:
            raise ArchitectureError("training with dropout or drop path needs a key: pass rngs={'dropout': key}")
        return jax.random.fold_in(self.rngs["dropout"], zlib.crc32(name.encode()))
