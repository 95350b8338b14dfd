"""A batch size that fits the device's memory."""

import logging
import math
import os
from collections.abc import Callable
from typing import Any

import jax

from jeffnet.arch.plan import Plan
from jeffnet.arch.summary import layers
from jeffnet.errors import ConfigError
from jeffnet.parallel.distributed import gathered

LOG = logging.getLogger(__name__)

# The first batch size to try. Larger batches are no faster; a CPU's caches hold less.
_START = {"cpu": 64}
_START_ELSEWHERE = 512
# The share of free memory for pictures, and the free bytes to assume if a device does not report them.
_SHARE, _UNKNOWN = 0.7, 2**33


class BatchSize:
    """The batch size: what the user chose, or one that shrinks when memory runs out."""

    def __init__(self, chosen: int | str) -> None:
        self._is_free = chosen == "auto"
        devices = jax.local_devices()
        start = _START.get(devices[0].platform, _START_ELSEWHERE) * len(devices)
        self.value = start if self._is_free else int(chosen)

    def fit(self, picture_bytes: int) -> None:
        """Lower an automatic batch size to what is likely to fit, which avoids most failures; see `picture_bytes`."""
        if self._is_free:
            room = sum(map(_free_bytes, jax.local_devices())) * _SHARE
            most = max(int(room / picture_bytes), 1)
            # All hosts take the same steps, so they use what fits the smallest.
            self.value = min(gathered(min(self.value, 2 ** (most.bit_length() - 1))))

    def run(self, work: Callable[[int], Any]) -> Any:
        """Call `work` with the batch size, which is halved whenever memory runs out."""
        is_alone = jax.process_count() == 1
        while True:
            try:
                return work(self.value)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if not self._is_free or self.value == 1 or not is_alone:
                    text = f"a batch of {self.value} does not fit the device's memory: give a smaller one"
                    raise ConfigError(text + (", or 'auto'" if is_alone else "")) from error
            self.value //= 2
            LOG.warning("out of memory: going on with a batch size of %d", self.value)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error means that a device or this process ran out of memory."""
    return isinstance(error, MemoryError) or (
        isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    )


def picture_bytes(plan: Plan, height: int, width: int) -> int:
    """Estimated memory of a model per picture: its largest feature map, with the input and output of that layer."""
    side = math.ceil(math.sqrt(height * width))
    return 3 * 4 * max(layer.out_channels * layer.out_size**2 for layer in layers(plan, side))


def _free_bytes(device: Any) -> int:
    """Free memory of a device."""
    if stats := device.memory_stats():
        return stats["bytes_limit"] - stats["bytes_in_use"]
    if device.platform == "cpu" and hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return _UNKNOWN
