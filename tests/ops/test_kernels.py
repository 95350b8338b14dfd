"""The C++ kernels keep to their buffers and limits whatever they are called with, and say so instead of crashing."""

import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jeffnet.ops import native
from jeffnet.ops.dense import depthwise_act
from jeffnet.ops.depthwise import Window
from jeffnet.ops.native import limits

pytestmark = pytest.mark.skipif(not native.available(), reason=f"no C++ kernels: {native.failure()}")

FUZZER = Path(__file__).with_name("kernel_fuzz.py")
_spec = importlib.util.spec_from_file_location("kernel_fuzz", FUZZER)
assert _spec is not None and _spec.loader is not None
kernel_fuzz = sys.modules["kernel_fuzz"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(kernel_fuzz)


# -------------------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize("name", kernel_fuzz.CHECKS)
def test_any_problem_equals_xla(name):
    kernel_fuzz.fuzz(name, 30 if name == "call" else 5)


@pytest.mark.parametrize(
    ("rows", "strides", "dilation"), [(33, (1, 1), (1, 1)), (3, (1, 2**17), (1, 1)), (3, (1, 1), (1, -1))]
)
def test_what_is_outside_the_limits_is_refused(rows, strides, dilation):
    window, kernel = Window(strides, ((0, 0), (0, 0)), dilation), jnp.ones((rows, 3, 1, 32))
    assert not limits.depthwise(kernel.shape, window)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INVALID_ARGUMENT: depthwise: outside the limits"):
        jax.block_until_ready(depthwise_act(jnp.ones((1, 40, 40, 32)), kernel, jnp.ones(32), window))
