"""The machine's peak: a large matrix product and a large copy in JAX."""

import functools
from collections.abc import Callable
from typing import Any

from jeffnet.bench.child import Channel
from jeffnet.bench.worker import turn

_LEAST_CALLS = 3


def serve(arguments: dict[str, Any], channel: Channel) -> None:
    """Send the `platform`, the `device` and versions of `cuda`, then answer requests `{'dtype': ..., 'seconds': ...}`.

    Answers: `macs_per_second` of a matrix product of this dtype and `bytes_per_second`, read and written, of a copy.
    """
    import jax
    import jax.numpy as jnp

    from jeffnet.system.environment import cuda_versions

    device = jax.devices()[0]
    channel.send({"platform": device.platform, "device": device.device_kind, "cuda": cuda_versions()})
    # Side of the matrices, and bytes of the copy: far beyond the caches, and some tenths of a second at most.
    side, size = (2048, 2**27) if device.platform == "cpu" else (8192, 2**30)
    product = jax.jit(jnp.matmul)
    # Into memory that is there: where the system gives new pages, they take longer than the copy.
    copy = jax.jit(lambda source, _: source + 1, donate_argnums=1, keep_unused=True)
    source = jnp.zeros(size // 4, jnp.float32)
    target = [jnp.zeros_like(source)]

    def copied() -> Any:
        target[0] = copy(source, target[0])
        return target[0]

    @functools.cache
    def square(dtype: str) -> jax.Array:
        return jax.random.normal(jax.random.key(0), (side, side), jnp.dtype(dtype))

    for request in channel.requests():
        matrix = square(request["dtype"])
        channel.send(
            {
                "macs_per_second": side**3 / _shortest(lambda matrix=matrix: product(matrix, matrix), request),
                "bytes_per_second": 2 * source.nbytes / _shortest(copied, request),
            }
        )


def describe(arguments: dict[str, Any], channel: Channel) -> None:
    """Start the devices, by arguments of `start_devices`; send the `platform` and the number of `devices`."""
    import jax

    from jeffnet.system.devices import start_devices

    start_devices(**arguments)
    channel.send({"platform": jax.default_backend(), "devices": jax.local_device_count()})


def _shortest(call: Callable[[], Any], request: dict[str, Any]) -> float:
    """Seconds of the fastest call, since a limit is asked for."""
    return min(turn(lambda: call().block_until_ready(), request["seconds"] / 2, _LEAST_CALLS))
