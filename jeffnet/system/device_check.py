"""A self test of about a second: every device's arithmetic, sums over devices, and reading pictures.

`jeffnet info --env` runs it. The results of a small network on each device are compared with constants computed in
float64, so that a driver or kernel that is wrong on all devices is noticed too.
"""

import io
import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

from jeffnet.arch.lower import lower
from jeffnet.arch.spec import ModelSpec
from jeffnet.arch.summary import array_specs
from jeffnet.data.images import read_image
from jeffnet.errors import JeffnetError, first_line
from jeffnet.functional import ImageClassifier, to_variables

# Every kind of layer: dense, depthwise and pointwise convolution, BatchNorm, squeeze-and-excitation, a sum.
_SPEC = ModelSpec(stages=(("ds_r1_k3_s1_c8_se0.25",), ("ir_r1_k3_s1_e2_c8",)), stem=8, features=16, act="silu")
_PLAN = lower(_SPEC, num_classes=4, drop_rate=0.0, drop_path_rate=0.0)
_IMAGES = (4, 16, 16, 3)

# Results of the network below, in float64.
EXPECTED = {"logits": 30.546353931193025, "loss": 1.0317702799617225, "gradient": 4.9629187401715695}
# Relative. float32 is off by less than 1e-6 on CPUs; this leaves room for functions that others approximate.
TOLERANCE = 1e-4

_JPEG_ERROR = 4  # 8-bit levels on average, of a smooth picture at quality 90


class SelfTestError(JeffnetError):
    """The self test failed; says on which device, with the computed and the expected value."""


def self_test() -> float:
    """Test every device of this process, their sum where there are several, and the decoding of a picture.

    Returns:
      Seconds that it took, nearly all of them to compile.

    Raises:
      SelfTestError: a result is wrong, or an operation fails.
    """
    start = time.perf_counter()
    check_picture()
    check_devices()
    return time.perf_counter() - start


def check_devices() -> None:
    """Compare a network's logits, loss and gradient on every local device with `EXPECTED`; sum over the devices."""
    devices = jax.local_devices()
    try:
        results, total = _results(devices)
    except Exception as error:  # XLA's errors have no common class, and their messages many lines
        raise SelfTestError(f"self test: the devices cannot compute a small network: {first_line(error)}") from error
    for index, device in enumerate(devices):
        for name, expected in EXPECTED.items():
            # Written so that a NaN fails too.
            if not abs(results[name][index] - expected) <= TOLERANCE * abs(expected):
                raise SelfTestError(
                    f"self test: {device} ({device.device_kind}) computes the {name} of a small network as "
                    f"{results[name][index]:.7g} instead of {expected:.7g}: check the device, its driver and JAX"
                )
    expected_total = len(devices) * (len(devices) + 1) // 2
    for device, sum_there in zip(devices, total, strict=True):
        if sum_there != expected_total:
            raise SelfTestError(
                f"self test: the sum over {len(devices)} devices is {sum_there:g} on {device} instead of "
                f"{expected_total}: check the links between the devices"
            )


def check_picture() -> None:
    """Write a picture as JPEG in memory, read it, and compare."""
    rows, columns = np.mgrid[0:32, 0:48]
    pixels = np.stack([4 * rows + columns, 5 * columns, 7 * rows], axis=-1).astype(np.uint8)
    content = io.BytesIO()
    try:
        Image.fromarray(pixels).save(content, "JPEG", quality=90)
        decoded = np.asarray(read_image(content.getvalue(), name="of the self test"))
    except (JeffnetError, OSError) as error:
        raise SelfTestError(f"self test: a JPEG cannot be written and read: {first_line(error)}") from error
    difference = np.abs(decoded.astype(np.int16) - pixels).mean() if decoded.shape == pixels.shape else math.inf
    if not difference <= _JPEG_ERROR:
        raise SelfTestError(
            f"self test: a JPEG that was written and read differs by {difference:.1f} levels: reinstall Pillow"
        )


def measure(arrays: Mapping[str, Array], images: Array) -> dict[str, Array]:
    """The scalars that `EXPECTED` names: of the logits in inference, of a loss in training, and of all its gradients.

    The arguments are those of `network_arrays` and `network_images`, in any float dtype.
    """
    variables = to_variables(arrays)
    network = ImageClassifier(_PLAN, dtype=images.dtype)
    weights = jnp.arange(1, 5, dtype=images.dtype)

    def loss(parameters: Mapping[str, Array]) -> Array:
        logits, _ = network.apply({**variables, "params": parameters}, images, train=True)
        return (weights * logits**2).mean()

    value, gradients = jax.value_and_grad(loss)(variables["params"])
    squares = [jnp.sum(gradient**2) for gradient in jax.tree.leaves(gradients)]
    logits = network.apply(variables, images)
    return {"logits": jnp.sum(jnp.abs(weights * logits)), "loss": value, "gradient": jnp.sqrt(sum(squares))}


def network_arrays() -> dict[str, np.ndarray]:
    """Arrays of the network by canonical name, float64: sines, which depend on no generator of random numbers."""
    arrays = {}
    for place, (name, spec) in enumerate(array_specs(_PLAN).items()):
        values = np.sin(0.7 * np.arange(math.prod(spec.shape)) + place).reshape(spec.shape)
        kind = name.rpartition(".")[2]
        if kind == "kernel":
            values *= math.sqrt(2 / math.prod(spec.shape[:-1]))
        elif kind in ("scale", "var"):
            values = 1 + 0.5 * values
        arrays[name] = values
    return arrays


def network_images() -> np.ndarray:
    """`(4, 16, 16, 3)`, float64, within [-1, 1]."""
    return np.cos(0.1 * np.arange(math.prod(_IMAGES)) ** 1.1).reshape(_IMAGES)


def _results(devices: list[Any]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What each device measures, and its sum of 1, 2, ... over all of them: one program, compiled once."""
    mesh = Mesh(np.array(devices), ("device",))
    split, everywhere = PartitionSpec("device"), PartitionSpec()

    def on_each(arrays: dict[str, Array], images: Array, numbers: Array) -> tuple[dict[str, Array], Array]:
        # GPUs and TPUs round the factors of products otherwise.
        with jax.default_matmul_precision("highest"):
            results = measure(arrays, images)
        return {name: value[None] for name, value in results.items()}, lax.psum(numbers, "device")

    # Unchecked: gradients are each device's own, and not summed because the parameters are the same everywhere.
    program = jax.jit(
        jax.shard_map(
            on_each, mesh=mesh, in_specs=(everywhere, everywhere, split), out_specs=(split, split), check_vma=False
        )
    )
    single = jax.tree.map(np.float32, (network_arrays(), network_images()))
    arrays, images = jax.device_put(single, NamedSharding(mesh, everywhere))
    numbers = jax.device_put(np.arange(1, len(devices) + 1, dtype=np.float32), NamedSharding(mesh, split))
    results, total = program(arrays, images, numbers)
    return jax.tree.map(np.asarray, (results, total))
