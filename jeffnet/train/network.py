"""The trained model as pure functions of arrays by canonical name, in any backend."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jeffnet.arch.execution import Execution
from jeffnet.arch.plan import Plan
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.summary import array_specs
from jeffnet.backends import load_backend
from jeffnet.errors import ConfigError
from jeffnet.ops.image import normalize
from jeffnet.ops.precision import at_least_float32
from jeffnet.train.config import ModelConfig
from jeffnet.train.state import Arrays
from jeffnet.weights.start import Start, start_model


@dataclass(frozen=True)
class Network:
    """A model as a backend computes it, without its arrays.

    Attributes:
      start: the model; its arrays are shapes, which a pass replaces by what it is given.
      preprocessing: mean and standard deviation of its pictures.
      backend: whose layers compute it.
    """

    start: Start
    preprocessing: Preprocessing
    backend: str = "linen"

    @property
    def plan(self) -> Plan:
        """What it computes."""
        return self.start.plan

    @property
    def num_classes(self) -> int:
        """Width of the logits."""
        return self.plan.num_classes

    @property
    def compute_dtype(self) -> DTypeLike:
        """Of pixels, losses and gradients: at least float32."""
        return self.start.param_dtype

    def with_plan(self, plan: Plan) -> "Network":
        """The same arrays in another plan."""
        return replace(self, start=replace(self.start, plan=plan))

    def shared_by(self, devices: int, bn_devices: int | None) -> "Network":
        """The same network for batches that several devices share.

        Args:
          devices: how many.
          bn_devices: how many of them normalise by common statistics; None for all.

        Raises:
          ConfigError: `bn_devices` does not divide the devices.
        """
        together = bn_devices or devices
        if devices % together:
            raise ConfigError(f"model.bn_devices {together} does not divide the {devices} devices")
        execution = replace(self.start.execution, norm_groups=devices // together)
        return replace(self, start=replace(self.start, execution=execution))

    def train(self, arrays: Mapping[str, Array], pixels: Array, key: Array) -> tuple[Array, Arrays]:
        """A pass in training mode, inside `jax.jit`.

        Args:
          arrays: all of the model's.
          pixels: `(N, H, W, C)`, 0 to 255.
          key: of dropout and drop path.

        Returns:
          Logits `(N, classes)` and the updated running statistics.
        """
        start = replace(self.start, arrays=arrays, rng=key)
        return load_backend(self.backend).training(start, self._normalized(pixels))

    def evaluate(self, arrays: Mapping[str, Array], pixels: Array) -> Array:
        """Logits `(N, classes)` of a pass without training, inside `jax.jit`; arguments as for `train`."""
        backend = load_backend(self.backend)
        model = backend.build(replace(self.start, arrays=arrays))
        apply, variables = backend.inference(*model if isinstance(model, tuple) else (model,))
        return apply(variables, self._normalized(pixels))

    def _normalized(self, pixels: Array) -> Array:
        return normalize(pixels, self.preprocessing.mean, self.preprocessing.std, self.compute_dtype)


def make_network(config: ModelConfig, preprocessing: Preprocessing, num_classes: int) -> Network:
    """The network that a configuration describes, for batches of one device.

    Args:
      config: the configuration.
      preprocessing: of its pictures.
      num_classes: width of the logits.

    Raises:
      UnknownModelError: no such model.
      ArchitectureError: an option outside its range.
      ConfigError: a pattern of `freeze` that no array matches, or one that leaves nothing to train.
      JeffnetError: the backend is not installed.
    """
    load_backend(config.backend)
    dtype = jnp.dtype(config.dtype)
    start = start_model(
        config.known_name,
        dtype=dtype,
        param_dtype=at_least_float32(dtype),
        remat=config.remat,
        abstract=True,
        num_classes=num_classes,
        in_chans=config.in_chans,
        drop_rate=config.drop_rate,
        drop_path_rate=config.drop_path_rate,
        global_pool=config.global_pool or "avg",
        output_stride=config.output_stride or 32,
        bn_momentum=config.bn_momentum,
    )
    # A norm is frozen with its scale: if its statistics still moved, the frozen layers would compute something else.
    frozen = frozen_parameters(start.plan, config.freeze)
    norms = frozenset(name.removesuffix(".scale") for name in frozen if name.endswith(".scale"))
    start = replace(start, execution=Execution(frozen_norms=norms))
    return Network(start, preprocessing, config.backend)


def frozen_parameters(plan: Plan, patterns: tuple[str, ...]) -> frozenset[str]:
    """The canonical names of parameters that any of the patterns matches.

    Raises:
      ConfigError: a pattern matches none, or they leave no parameter to train.
    """
    names = [name for name, spec in array_specs(plan).items() if spec.is_parameter]
    frozen: set[str] = set()
    for pattern in patterns:
        matched = {name for name in names if fnmatchcase(name, pattern)}
        if not matched:
            raise ConfigError(
                f"model.freeze {pattern!r} matches no parameter; names are such as {names[0]}, {names[len(names) // 2]}"
            )
        frozen |= matched
    if len(frozen) == len(names):
        raise ConfigError(f"model.freeze {', '.join(patterns)} leaves nothing to train")
    return frozenset(frozen)
