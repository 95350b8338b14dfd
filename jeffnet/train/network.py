"""The trained model as pure functions of arrays by canonical name, in any backend."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jeffnet import functional
from jeffnet.arch.execution import Execution
from jeffnet.arch.plan import Plan
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.quantization import Quantization
from jeffnet.arch.summary import array_specs
from jeffnet.backends import load_backend
from jeffnet.errors import ConfigError
from jeffnet.inference.plain_norms import fixed_parameters, folded_arrays, folded_plan
from jeffnet.inference.quantized import quantized_network
from jeffnet.ops.image import normalize
from jeffnet.ops.network import Outputs
from jeffnet.ops.precision import at_least_float32
from jeffnet.text.names import counted
from jeffnet.train.config import Config, ModelConfig
from jeffnet.train.state import Arrays
from jeffnet.weights.start import Start, start_model, statistics


@dataclass(frozen=True)
class Network:
    """A model as a backend computes it, without its arrays.

    Attributes:
      start: the model; its arrays are shapes, which a pass replaces by what it is given.
      preprocessing: mean and standard deviation of its pictures.
      backend: whose layers compute it.
      quantization: the grids to which a pass rounds; None for floats. With it the arrays are those of
        `jeffnet.inference.plain_norms`, and a pass is the same function whichever the backend.
    """

    start: Start
    preprocessing: Preprocessing
    backend: str = "linen"
    quantization: Quantization | None = None

    @property
    def plan(self) -> Plan:
        """What it computes."""
        return self.start.plan

    @property
    def compute_dtype(self) -> DTypeLike:
        """Of pixels, losses and gradients: at least float32."""
        return self.start.param_dtype

    def with_plan(self, plan: Plan) -> "Network":
        """The same arrays in another plan."""
        return replace(self, start=replace(self.start, plan=plan))

    def shared_by(self, devices: int, bn_devices: int | None) -> "Network":
        """The same network for batches that devices share, `bn_devices` of which, or all, normalise together.

        Raises:
          ConfigError: `bn_devices` does not divide the devices.
        """
        together = bn_devices or devices
        if devices % together:
            raise ConfigError(f"model.bn_devices {together} does not divide {counted(devices, 'device')}")
        execution = replace(self.start.execution, norm_groups=devices // together)
        return replace(self, start=replace(self.start, execution=execution))

    def train(self, arrays: Mapping[str, Array], pixels: Array, key: Array) -> tuple[Array, Arrays]:
        """Logits `(N, classes)` and updated running statistics of a pass in training mode, inside `jax.jit`.

        It takes all arrays of the model, pixels `(N, H, W, C)`, 0 to 255, and the key of dropout and drop path.
        """
        if self.quantization:
            return self._quantized(arrays, pixels), statistics(arrays)
        start = replace(self.start, arrays=arrays, rng=key)
        return load_backend(self.backend).training(start, self._normalized(pixels))

    def train_outputs(
        self, arrays: Mapping[str, Array], pixels: Array, key: Array, indices: Sequence[int]
    ) -> tuple[Outputs, Arrays]:
        """As `train`, with the classifier's input and the maps of these numbers beside the logits; of floats.

        Args:
          arrays: as for `train`.
          pixels: as for `train`.
          key: as for `train`.
          indices: numbers of maps.
        """
        start = replace(self.start, arrays=arrays, rng=key)
        return load_backend(self.backend).training(start, self._normalized(pixels), indices)

    def evaluate(self, arrays: Mapping[str, Array], pixels: Array) -> Array:
        """Logits `(N, classes)` of a pass without training, inside `jax.jit`; arguments as for `train`."""
        if self.quantization:
            return self._quantized(arrays, pixels)
        backend = load_backend(self.backend)
        model = backend.build(replace(self.start, arrays=arrays))
        apply, variables = backend.inference(*model if isinstance(model, tuple) else (model,))
        return apply(variables, self._normalized(pixels))

    def outputs(self, arrays: Mapping[str, Array], pixels: Array, indices: Sequence[int]) -> Outputs:
        """As `evaluate`, with the classifier's input and the maps of these numbers beside the logits; of floats."""
        # Whichever the backend is: the others' functions for evaluation give logits alone.
        model, variables = functional.build(replace(self.start, arrays=arrays))
        return model.outputs(variables, self._normalized(pixels), indices)

    def _quantized(self, arrays: Mapping[str, Array], pixels: Array) -> Array:
        assert self.quantization
        network = quantized_network(folded_plan(self.plan), self.start.execution, self.quantization)
        return network.apply(folded_arrays(self.plan, arrays), self._normalized(pixels))

    def _normalized(self, pixels: Array) -> Array:
        return normalize(pixels, self.preprocessing.mean, self.preprocessing.std, self.compute_dtype)


def make_network(config: ModelConfig, preprocessing: Preprocessing, num_classes: int) -> Network:
    """The network that a configuration describes, for batches of one device.

    Raises:
      UnknownModelError: no such model.
      ArchitectureError: an option outside its range.
      ConfigError: a pattern of `freeze` that no array matches, or one that leaves nothing to train.
      JeffnetError: the backend is not installed.
    """
    load_backend(config.backend)
    dtype, names = jnp.dtype(config.dtype), ("remat", "in_chans", "drop_rate", "drop_path_rate", "bn_momentum")
    start = start_model(
        config.known_architecture,
        dtype=dtype,
        param_dtype=at_least_float32(dtype),
        abstract=True,
        num_classes=num_classes,
        global_pool=config.global_pool or "avg",
        output_stride=config.output_stride or 32,
        **{name: getattr(config, name) for name in names},
    )
    # A norm is frozen with its scale: if its statistics still moved, the frozen layers would compute something else.
    frozen = frozen_parameters(start.plan, config.freeze)
    norms = frozenset(name.removesuffix(".scale") for name in frozen if name.endswith(".scale"))
    start = replace(start, execution=Execution(frozen_norms=norms))
    return Network(start, preprocessing, config.backend)


def untrained_parameters(plan: Plan, config: Config) -> frozenset[str]:
    """The canonical names of parameters that a run leaves as they are; raises ConfigError as `frozen_parameters`."""
    frozen = frozen_parameters(plan, config.model.freeze)
    return frozen | fixed_parameters(plan) if config.quantize.to else frozen


def frozen_parameters(plan: Plan, patterns: tuple[str, ...]) -> frozenset[str]:
    """The canonical names of parameters that any of the patterns matches.

    Raises:
      ConfigError: a pattern matches none, or they leave no parameter to train.
    """
    names = [name for name, spec in array_specs(plan).items() if spec.is_parameter]
    matched = {pattern: {name for name in names if fnmatchcase(name, pattern)} for pattern in patterns}
    for pattern, frozen in matched.items():
        if not frozen:
            raise ConfigError(
                f"model.freeze {pattern!r} matches no parameter; names are such as {names[0]}, {names[len(names) // 2]}"
            )
    frozen = frozenset().union(*matched.values())
    if len(frozen) == len(names):
        raise ConfigError(f"model.freeze {', '.join(patterns)} leaves nothing to train")
    return frozen
