"""The machine's peak: a large matrix product and a large copy in JAX."""

import time
from typing import Any

from jeffnet.bench.child import Channel

# Side of the matrices, and bytes that are copied: far beyond the caches, and some tenths of a second at most.
_SIDES = {"cpu": 2048}
_SIDE_ELSEWHERE = 8192
_BYTES = {"cpu": 2**27}
_BYTES_ELSEWHERE = 2**30
_LEAST_CALLS = 3


def serve(arguments: dict[str, Any], channel: Channel) -> None:
    """Answer requests.

    Args:
      arguments: none are needed.
      channel: gets the `platform` and `device`; then for each request, `{'dtype': ..., 'seconds': ...}`,
        `macs_per_second` of a matrix product of this dtype and `bytes_per_second`, read and written, of a copy.
    """
    import jax
    import jax.numpy as jnp

    device = jax.devices()[0]
    channel.send({"platform": device.platform, "device": device.device_kind})
    side = _SIDES.get(device.platform, _SIDE_ELSEWHERE)
    product = jax.jit(jnp.matmul)
    # Into memory that is there: where the system gives new pages, they take longer than the copy.
    copy = jax.jit(lambda source, _: source + 1, donate_argnums=1, keep_unused=True)
    source = jnp.zeros(_BYTES.get(device.platform, _BYTES_ELSEWHERE) // 4, jnp.float32)
    target = [jnp.zeros_like(source)]

    def copied() -> Any:
        target[0] = copy(source, target[0])
        return target[0]

    matrices: dict[str, Any] = {}
    for request in channel.requests():
        name = request["dtype"]
        if name not in matrices:
            matrices[name] = jax.random.normal(jax.random.key(0), (side, side), jnp.dtype(name))
        matrix = matrices[name]
        channel.send(
            {
                "macs_per_second": side**3 / _shortest(lambda matrix=matrix: product(matrix, matrix), request),
                "bytes_per_second": 2 * source.nbytes / _shortest(copied, request),
            }
        )


def describe(arguments: dict[str, Any], channel: Channel) -> None:
    """Start the devices and describe them.

    Args:
      arguments: of `jeffnet.system.devices.start_devices`.
      channel: gets the `platform` and the number of `devices`.
    """
    import jax

    from jeffnet.system.devices import start_devices

    start_devices(**arguments)
    channel.send({"platform": jax.default_backend(), "devices": jax.local_device_count()})


def _shortest(call: Any, request: dict[str, Any]) -> float:
    """Seconds of the fastest call, since a limit is asked for; the first does not count."""
    call().block_until_ready()
    calls: list[float] = []
    began = time.perf_counter()
    while len(calls) < _LEAST_CALLS or time.perf_counter() - began < request["seconds"] / 2:
        start = time.perf_counter()
        call().block_until_ready()
        calls.append(time.perf_counter() - start)
    return min(calls)
