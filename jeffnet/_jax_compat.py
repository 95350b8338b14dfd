"""All that jeffnet uses of JAX's internals: when a new JAX breaks something, it is here.

Nothing else imports `jax._src`, `jax.interpreters`, `jax.extend` or `jax.ffi`, which have no promise of stability.
"""

import ctypes
import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import jax
import numpy as np
from jax import Array, lax
from jax._src import distributed  # no public name has the key-value store
from jax._src.core import Primitive  # `jax.extend.core` has it too, but takes 50 ms to import
from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage] - or makes clients of the service
from jax.interpreters import batching, mlir
from jax.interpreters.ad import (
    defbilinear,
    instantiate_zeros,
    is_undefined_primal,
    primitive_jvps,
    primitive_transposes,
)

__all__ = [
    "PLUGIN_LOGGER", "Primitive", "clients_call", "coordination", "defbilinear", "define_primitive", "foreign_call",
    "include_folder", "instantiate_zeros", "is_exported", "is_partitioned", "is_undefined_primal", "primitive_jvps",
    "primitive_transposes", "register_kernel", "same_axes",
]  # fmt: skip

# Logs why a platform's plugin does not start.
PLUGIN_LOGGER = logging.getLogger("jax._src.xla_bridge")


# --------------------------------------------------------------------------------------------------------- primitives


def define_primitive(
    name: str,
    function: Callable[..., Any],
    *,
    shape: Callable[..., Any],
    on_cpu: Callable[..., Callable[..., Any]] | None = None,
    batch: Callable[..., Any] | None = None,
    multiple_results: bool = False,
) -> Primitive:
    """A primitive without derivatives. Its lowering is chosen when it is compiled, for the platform at hand.

    Args:
      name: shown in jaxprs.
      function: computes it in JAX's operations, from arrays and parameters by name.
      shape: of the result, or of each of several, from the operands' abstract values and the parameters; the dtype is
        the first operand's. To trace `function` instead would take most of the time in which a model is traced.
      on_cpu: returns the function that computes it on CPUs, from the lowering's context, the operands' abstract values
        and the parameters; None uses `function`.
      batch: rule for `jax.vmap`; None maps `function`.
      multiple_results: whether the results are a sequence.
    """
    primitive = Primitive(name)
    primitive.multiple_results = multiple_results

    def abstract(*operands: Any, **parameters: Any) -> Any:
        shapes = shape(*operands, **parameters)
        results = [
            operands[0].update(shape=each, weak_type=False) for each in (shapes if multiple_results else [shapes])
        ]
        return results if multiple_results else results[0]

    @functools.partial(jax.jit, static_argnums=0)
    def compiled(parameters: tuple[tuple[str, Any], ...], *operands: Array) -> Any:
        return primitive.bind(*operands, **dict(parameters))

    def run(*operands: Array, **parameters: Any) -> Any:
        # As JAX runs its own primitives outside of `jax.jit`; under `jax.disable_jit` too.
        with jax.disable_jit(False):
            return compiled(tuple(parameters.items()), *operands)

    def mapped(operands: Any, axes: Any, **parameters: Any) -> tuple[Any, Any]:
        results = jax.vmap(functools.partial(function, **parameters), tuple(axes))(*operands)
        return results, [0] * len(results) if multiple_results else 0

    def lowering(choose: Callable[..., Callable[..., Any]]) -> Callable[..., Any]:
        def lower(ctx: Any, *operands: Any, **parameters: Any) -> Any:
            form = functools.partial(choose(ctx, *ctx.avals_in, **parameters), **parameters)
            return mlir.lower_fun(form, multiple_results=multiple_results)(ctx, *operands)

        return lower

    primitive.def_abstract_eval(abstract)
    primitive.def_impl(run)
    batching.primitive_batchers[primitive] = batch or mapped
    mlir.register_lowering(primitive, lowering(lambda *_, **__: function))
    if on_cpu is not None:
        mlir.register_lowering(primitive, lowering(on_cpu), platform="cpu")
    return primitive


def same_axes(*operands: Array) -> list[Array]:
    """The operands, typed under `shard_map` as varying over the same axes of the mesh.

    JAX does that for its own operations. Without it the gradient of an operand that all devices share would miss the
    sum over them.
    """
    axes = [jax.typeof(array).manual_axis_type.varying for array in operands]  # pyright: ignore[reportAttributeAccessIssue]
    union = frozenset[str]().union(*axes)
    return [
        lax.pcast(array, tuple(union - varying), to="varying") if union - varying else array
        for array, varying in zip(operands, axes, strict=True)
    ]


def is_exported(ctx: Any) -> bool:
    """Whether a lowering is part of `jax.export`."""
    return ctx.module_context.lowering_parameters.for_export


def is_partitioned(ctx: Any) -> bool:
    """Whether XLA splits what is lowered between devices; what is inside `shard_map` is split already."""
    axis_context = ctx.module_context.axis_context
    if (mesh := getattr(axis_context, "mesh", None)) is not None:
        return any(size > 1 for name, size in mesh.shape.items() if name not in axis_context.manual_axes)
    return getattr(axis_context, "num_devices", 1) not in (1, None)


# ------------------------------------------------------------------------------------------------------ foreign calls


def include_folder() -> str:
    """The folder of the headers for kernels that XLA calls."""
    return jax.ffi.include_dir()


def register_kernel(library: ctypes.CDLL, name: str) -> None:
    """Make a function of a library callable on CPUs, by its name.

    Raises:
      AttributeError: the library has no such function.
      RuntimeError: XLA does not support the version of the interface that it was compiled for.
    """
    # While there is no CPU backend JAX only takes note, and a refusal later would leave the process without one.
    with suppress(RuntimeError):  # `JAX_PLATFORMS` may leave out CPUs
        jax.local_devices(backend="cpu")
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")


def foreign_call(name: str, results: Any, *operands: Array, **attributes: Any) -> Any:
    """Call a registered kernel, whose result is shaped and typed like `results`, or like each of a list of them.

    Attributes are booleans, or whole numbers and tuples of them, which are passed as 64-bit integers.
    """
    numbers = {key: np.asarray(value, np.int64)[()] for key, value in attributes.items() if not isinstance(value, bool)}
    shapes = jax.tree.map(lambda like: jax.ShapeDtypeStruct(like.shape, like.dtype), results)
    return jax.ffi.ffi_call(name, shapes)(*operands, **attributes | numbers)


# -------------------------------------------------------------------------------------------- the coordination service


def coordination() -> Any:
    """The state of `jax.distributed`: its `client`, None in a process that is alone, and `num_processes`."""
    return distributed.global_state


@contextmanager
def clients_call(function: Callable[[], None]) -> Iterator[bool]:
    """In this context, new clients of the coordination service call a function if they lose it, instead of aborting.

    Yields:
      Whether this jaxlib can do so.
    """
    make = getattr(_jax, "get_distributed_runtime_client", None)
    if make is None:
        yield False
        return
    _jax.get_distributed_runtime_client = functools.partial(make, missed_heartbeat_callback=lambda *_: function())
    try:
        yield True
    finally:
        _jax.get_distributed_runtime_client = make
