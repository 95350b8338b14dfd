"""Initial values, as in the papers' own code.

Convolutions: normal, variance `2 / fan_out`, with `fan_out = height * width * out channels / groups`. Classifier:
uniform within `1 / sqrt(classes)`. Attention: uniform within `sqrt(6 / (fan_in + fan_out))`, as in timm. Biases and
means 0, scales and variances 1.

Source: tensorflow/tpu, models/official/efficientnet/efficientnet_model.py; there a depthwise kernel's fan-out is its
height times its width.
"""

import math
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from jeffnet.arch.plan import Plan
from jeffnet.arch.summary import ArraySpec, array_specs
from jeffnet.errors import ArchitectureError

Initializer = Callable[..., Array]


def conv_kernel_init(groups: int = 1, xavier: bool = False) -> Initializer:
    """A `(key, shape, dtype) -> array` initialiser of convolution kernels `(..., height, width, in / groups, out)`."""

    def init(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        if xavier:
            reach = math.sqrt(6 / (math.prod(shape[:-2]) * (shape[-2] + shape[-1])))
            return jax.random.uniform(key, shape, dtype, -reach, reach)
        return jax.random.normal(key, shape, dtype) * jnp.asarray(_conv_deviation(shape, groups), dtype)

    return init


def dense_kernel_init(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """An initialiser of classifier kernels `(features, classes)`."""
    reach = _dense_reach(shape)
    return jax.random.uniform(key, shape, dtype, -reach, reach)


# Of the weights of a classifier on a trained trunk.
_ADAPTED_DEVIATION = 0.01


def initial_arrays(plan: Plan, rng: int | Array, dtype: DTypeLike = jnp.float32) -> dict[str, np.ndarray]:
    """The initial value of every array of a model, by canonical name, without running or compiling anything.

    Each array depends on `rng` and its name alone: models that differ in their classifier start with the same trunk, in
    every module system.

    Args:
      plan: the model.
      rng: a seed, or a key of `jax.random`.
      dtype: of parameters; running statistics are at least float32.

    Raises:
      ArchitectureError: `rng` is neither.
    """
    words = _seed_words(rng)
    return {name: _initial_array(spec, words, np.dtype(dtype)) for name, spec in array_specs(plan).items()}


def new_classifier(plan: Plan, rng: int | Array, dtype: DTypeLike = jnp.float32) -> dict[str, np.ndarray]:
    """The initial values of a classifier that is put on a trained trunk, by canonical name; none if a model has none.

    The weights are normal with a deviation of 0.01. All classes are about equally probable then, so that the first
    steps do not pass the noise of the classifier on to the trunk. They are not 0, since LARS, LAMB and Adafactor scale
    a step by the length of what it changes.

    Args:
      plan: the model.
      rng: as for `initial_arrays`.
      dtype: of the arrays.

    Raises:
      ArchitectureError: as `initial_arrays`.
    """
    arrays = {}
    for name, spec in array_specs(plan).items():
        if name == "classifier.kernel":
            draw = _draw(_seed_words(rng), f"new {name}")
            arrays[name] = (draw.standard_normal(spec.shape) * _ADAPTED_DEVIATION).astype(dtype)
        elif name == "classifier.bias":
            arrays[name] = np.zeros(spec.shape, dtype)
    return arrays


def _initial_array(spec: ArraySpec, words: list[int], dtype: np.dtype) -> np.ndarray:
    if not spec.is_parameter:
        dtype = np.promote_types(dtype, np.float32) if dtype.kind == "f" and dtype.itemsize > 4 else np.dtype("float32")
    if spec.constant is not None:
        return np.full(spec.shape, spec.constant, dtype)
    if spec.leaf in ("bias", "mean"):
        return np.zeros(spec.shape, dtype)
    if spec.leaf in ("scale", "var"):
        return np.ones(spec.shape, dtype)
    draw = _draw(words, spec.name)
    # float32 draws are twice as fast and are what lower precisions are rounded from.
    precision = np.float64 if dtype == np.float64 else np.float32
    if spec.reach is not None or len(spec.shape) == 2:
        reach = _dense_reach(spec.shape) if spec.reach is None else spec.reach
        values = (2 * draw.random(spec.shape, precision) - 1) * precision(reach)
    else:
        values = draw.standard_normal(spec.shape, precision) * precision(_conv_deviation(spec.shape, spec.groups))
    return values.astype(dtype, copy=False)


def _draw(words: list[int], name: str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([*words, zlib.crc32(name.encode())])))


def _conv_deviation(shape: tuple[int, ...], groups: int) -> float:
    height, width, _, features = shape[-4:]
    return math.sqrt(2 / (height * width * features // groups))


def _dense_reach(shape: tuple[int, ...]) -> float:
    return 1 / math.sqrt(shape[1])


def _seed_words(rng: int | Array) -> list[int]:
    if isinstance(rng, (int, np.integer)):
        if rng < 0:
            raise ArchitectureError(f"rng {rng} is negative: give a seed of 0 or more, or a key of jax.random")
        return [int(rng)]
    if isinstance(rng, jax.Array) and (jnp.issubdtype(rng.dtype, jax.dtypes.prng_key) or rng.dtype == jnp.uint32):
        key = jax.random.key_data(rng) if jnp.issubdtype(rng.dtype, jax.dtypes.prng_key) else rng
        return [int(word) for word in np.asarray(key).reshape(-1)]
    raise ArchitectureError(f"rng {rng!r} is neither a seed nor a key of jax.random")
