"""What is trained, whatever its module system: pure functions of arrays by canonical name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from jeffnet.arch.plan import Plan, with_frozen_norms, with_norm_groups
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.summary import array_specs
from jeffnet.arch.zoo import model_plan
from jeffnet.backends import load_backend
from jeffnet.errors import ConfigError
from jeffnet.ops.image import normalize
from jeffnet.ops.precision import at_least_float32
from jeffnet.train.config import ModelConfig
from jeffnet.train.state import Arrays
from jeffnet.weights.start import Start, abstract_arrays, start_arrays


@dataclass(frozen=True)
class Network:
    """A model as a backend computes it.

    Attributes:
      plan: what it computes.
      preprocessing: mean and standard deviation of its pictures.
      backend: whose layers compute it.
      dtype: in which they do.
      remat: compute blocks again in the backward pass.
    """

    plan: Plan
    preprocessing: Preprocessing
    backend: str = "linen"
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @property
    def num_classes(self) -> int:
        """Width of the logits."""
        return self.plan.classifier.out_features if self.plan.classifier else 0

    @property
    def compute_dtype(self) -> DTypeLike:
        """Of pixels, losses and gradients: at least float32."""
        return at_least_float32(self.dtype)

    def train(self, arrays: Mapping[str, Array], pixels: Array, key: Array) -> tuple[Array, Arrays]:
        """A pass in training mode, inside `jax.jit`.

        Args:
          arrays: all of the model's.
          pixels: `(N, H, W, C)`, 0 to 255.
          key: of dropout and drop path.

        Returns:
          Logits `(N, classes)` and the updated running statistics.
        """
        return load_backend(self.backend).training(self._start(arrays, key), self._normalized(pixels))

    def evaluate(self, arrays: Mapping[str, Array], pixels: Array) -> Array:
        """Logits `(N, classes)` of a pass without training, inside `jax.jit`; arguments as of `train`."""
        backend = load_backend(self.backend)
        model = backend.build(self._start(arrays))
        apply, variables = backend.inference(*model if isinstance(model, tuple) else (model,))
        return apply(variables, self._normalized(pixels))

    def _start(self, arrays: Mapping[str, Array], key: Any = 0) -> Start:
        return Start(self.plan, arrays, self.dtype, self.compute_dtype, self.remat, key)

    def _normalized(self, pixels: Array) -> Array:
        return normalize(pixels, self.preprocessing.mean, self.preprocessing.std, self.compute_dtype)


def make_network(config: ModelConfig, preprocessing: Preprocessing, num_classes: int, devices: int = 1) -> Network:
    """The network that a configuration describes.

    Args:
      config: the configuration.
      preprocessing: of its pictures.
      num_classes: width of the logits.
      devices: how many share a batch.

    Raises:
      UnknownModelError: no such model.
      ArchitectureError: an option outside its range.
      ConfigError: a pattern of `freeze` that no array matches, or one that leaves nothing to train; or `bn_devices`
        does not divide the devices.
      JeffnetError: the backend is not installed.
    """
    load_backend(config.backend)
    plan = model_plan(
        config.known_name,
        num_classes=num_classes,
        in_chans=config.in_chans,
        drop_rate=config.drop_rate,
        drop_path_rate=config.drop_path_rate,
        global_pool=config.global_pool or "avg",
        output_stride=config.output_stride or 32,
        bn_momentum=config.bn_momentum,
    )
    frozen = frozen_parameters(plan, config.freeze)
    # A norm is frozen with its scale: statistics that went on moving would change what the frozen layers compute.
    plan = with_frozen_norms(plan, (name.removesuffix(".scale") for name in frozen if name.endswith(".scale")))
    together = config.bn_devices or devices
    if devices % together:
        raise ConfigError(f"model.bn_devices {together} does not divide the {devices} devices")
    plan = with_norm_groups(plan, devices // together)
    return Network(plan, preprocessing, config.backend, jnp.dtype(config.dtype), config.remat)


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


def initial_arrays(
    config: ModelConfig,
    network: Network,
    seed: int,
    classes: Sequence[str] = (),
    place: Callable[[np.ndarray], Array] = jnp.asarray,
) -> Arrays:
    """The arrays with which training starts: drawn by a seed, or those of `config.pretrained` for these classes.

    Args:
      config: of the model.
      network: which it describes.
      seed: of what is drawn.
      classes: names of the model's classes.
      place: puts an array on devices; each is, before the next is drawn or read.

    Raises:
      WeightsError: the weights cannot be had or read, or do not fit.
    """
    return start_arrays(
        network.plan,
        seed,
        network.compute_dtype,
        model=config.known_name,
        pretrained=config.pretrained,
        adapt=True,
        classes=classes,
        place=place,
    )


def array_shapes(network: Network) -> Arrays:
    """Shapes and dtypes of all arrays; allocates nothing."""
    return abstract_arrays(network.plan, network.compute_dtype)
