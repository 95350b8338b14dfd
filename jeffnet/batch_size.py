"""A batch size that fits the device's memory."""

import logging
from collections.abc import Callable
from typing import Any

import jax

from jeffnet.errors import ConfigError

LOG = logging.getLogger(__name__)

# Where to begin. More gains nothing on any device; a CPU's caches hold less.
_START = {"cpu": 64}
_START_ELSEWHERE = 512


class BatchSize:
    """The batch size, which shrinks when memory runs out if nobody chose it."""

    def __init__(self, chosen: int | str) -> None:
        self._is_free = chosen == "auto"
        devices = jax.local_devices()
        start = _START.get(devices[0].platform, _START_ELSEWHERE) * len(devices)
        self.value = start if self._is_free else int(chosen)

    def run(self, work: Callable[[int], Any]) -> Any:
        """Do it with this batch size, or with half of it as often as memory runs out."""
        while True:
            try:
                return work(self.value)
            except Exception as error:
                if not _is_out_of_memory(error):
                    raise
                if not self._is_free or self.value == 1:
                    raise ConfigError(
                        f"a batch of {self.value} does not fit the device's memory: give a smaller one, or 'auto'"
                    ) from error
            self.value //= 2
            LOG.warning("out of memory: going on with a batch size of %d", self.value)


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or (
        isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    )
