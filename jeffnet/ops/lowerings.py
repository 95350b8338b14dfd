"""What the primitives of this package share: operands under `shard_map`, and when C++ may compute a result."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import mlir

from jeffnet.errors import ConfigError
from jeffnet.ops import native


def same_axes(*operands: Array) -> list[Array]:
    """The operands, typed under `shard_map` as varying over the same axes of the mesh.

    JAX does that for its own operations. Without it the gradient of an operand that all devices share would miss the
    sum over them.
    """
    axes = [jax.typeof(each).manual_axis_type.varying for each in operands]  # pyright: ignore[reportAttributeAccessIssue]
    union = frozenset[str]().union(*axes)
    return [
        lax.pcast(each, tuple(union - own), to="varying") if union - own else each
        for each, own in zip(operands, axes, strict=True)
    ]


def calls_fit(ctx: Any, lowering: str) -> bool:
    """Whether a foreign call may stand in what is lowered: C++ is wanted and can be built, and nobody looks inside.

    To the partitioner, which shares work out to several devices, a call is opaque; and who gets an exported program
    does not have its target.

    Args:
      ctx: of the lowering.
      lowering: 'auto', 'native' or 'shifted'.

    Raises:
      ConfigError: 'native', but the C++ kernels cannot be built.
    """
    if lowering == "shifted" or ctx.module_context.lowering_parameters.for_export:
        return False
    if is_partitioned(ctx):
        return False
    if lowering == "native" and (reason := native.failure()):
        raise ConfigError(f"lowering 'native': {reason}; choose 'auto' or 'shifted' to do without")
    return native.available()


def is_partitioned(ctx: Any) -> bool:
    """Whether XLA splits what is lowered between devices; what is inside `shard_map` is split already."""
    axis_context = ctx.module_context.axis_context
    if (mesh := getattr(axis_context, "mesh", None)) is not None:
        return any(size > 1 for name, size in mesh.shape.items() if name not in axis_context.manual_axes)
    return getattr(axis_context, "num_devices", 1) not in (1, None)


def run_compiled(primitive: Primitive, evaluate: Callable[..., Any]) -> None:
    """Run a primitive outside of `jax.jit` by a compiled function, as JAX runs its own; under `jax.disable_jit` too."""

    def run(*operands: Array, **parameters: Any) -> Any:
        with jax.disable_jit(False):
            return evaluate(*operands, **parameters)

    primitive.def_impl(run)


def define_lowerings(
    primitive: Primitive,
    plain: Callable[..., Any],
    on_cpu: Callable[..., Any],
    choose: Callable[..., bool],
    native_function: Callable[..., Any],
) -> None:
    """How a primitive is computed.

    Args:
      primitive: whose operands and parameters all functions take; the latter by name.
      plain: in JAX's operations, where not compiled for CPUs.
      on_cpu: in JAX's operations, for CPUs.
      choose: of the lowering's context and the parameters: whether `native_function` is to be used on a CPU.
      native_function: by foreign calls.
    """

    def lower(function: Callable[..., Any], ctx: Any, operands: tuple, parameters: dict) -> Any:
        return mlir.lower_fun(functools.partial(function, **parameters), multiple_results=primitive.multiple_results)(
            ctx, *operands
        )

    def for_cpu(ctx: Any, *operands: Any, **parameters: Any) -> Any:
        return lower(native_function if choose(ctx, **parameters) else on_cpu, ctx, operands, parameters)

    mlir.register_lowering(primitive, lambda ctx, *operands, **parameters: lower(plain, ctx, operands, parameters))
    mlir.register_lowering(primitive, for_cpu, platform="cpu")
