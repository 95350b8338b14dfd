"""The mesh of devices for training and validation, from one device to many hosts.

The mesh has two axes. `data` splits batches; `fsdp` splits batches too, and with them parameters, averages and the
state of the optimizer, which are copied along `data`. Under `jax.jit` XLA puts in the communication (Xu et al.,
"GSPMD", arXiv:2105.04663; the split state is that of Rajbhandari et al., "ZeRO", arXiv:1910.02054).
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jeffnet.errors import ConfigError
from jeffnet.text.names import counted

AUTO = "auto"

_AXES = ("data", "fsdp")
# Arrays with fewer elements are copied: to gather them takes longer than they are worth.
_LEAST_SPLIT = 2**12
# Of a device's memory that the state may take before it is split; the rest is for activations.
_STATE_SHARE = 0.4


@dataclass(frozen=True)
class Layout:
    """Where batches and states lie.

    Attributes:
      mesh: of the axes `data` and `fsdp`; its devices are in the order of the processes, so that each process's share
        of a batch is one piece of it.
    """

    mesh: Mesh

    @classmethod
    def of(cls, devices: Sequence[Any], fsdp: int = 1) -> "Layout":
        """The layout on these devices, in their order."""
        return cls(Mesh(np.array(devices).reshape(-1, fsdp), _AXES, axis_types=(AxisType.Auto,) * 2))

    def __str__(self) -> str:
        return ",".join(f"{axis}={length}" for axis, length in self.mesh.shape.items())

    @property
    def devices(self) -> int:
        """Number of devices that share a batch, on all hosts."""
        return self.mesh.size

    @property
    def fsdp(self) -> int:
        """Number of parts of the state."""
        return self.mesh.shape["fsdp"]

    @property
    def batch(self) -> NamedSharding:
        """The sharding of arrays whose first axis counts examples."""
        return NamedSharding(self.mesh, PartitionSpec(_AXES))

    @property
    def whole(self) -> NamedSharding:
        """The sharding of arrays that every device has a copy of."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def is_shared(self) -> bool:
        """Whether other processes have some of the devices."""
        return any(device.process_index != jax.process_index() for device in self.mesh.devices.flat)

    def shardings(self, state: Any) -> Any:
        """Shardings of a state's arrays, which may be abstract: split along the longest axis possible, or copied."""
        return jax.tree.map(lambda leaf: self._sharding_of(np.shape(leaf)), state)

    def place(self, state: Any) -> Any:
        """Put a state, of which every process has all, on the devices."""

        def put(leaf: Any, sharding: NamedSharding) -> Array:
            if not self.is_shared or (isinstance(leaf, Array) and not leaf.is_fully_addressable):
                return jax.device_put(leaf, sharding)
            values = np.asarray(leaf)
            return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

        return jax.tree.map(put, state, self.shardings(state))

    def place_batch(self, batch: Any) -> Any:
        """This process's rows of a batch, as many as any other's (`padded_rows`), as the whole batch on all devices."""
        if self.is_shared:
            return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(self.batch, rows), batch)
        return jax.device_put(batch, self.batch)

    def gather(self, state: Any) -> Any:
        """Gather a state on every device; waits for it. All processes must call this."""
        if all(leaf.is_fully_replicated for leaf in jax.tree.leaves(state)):
            return state
        return jax.block_until_ready(jax.jit(_same, out_shardings=self.whole)(state))

    def padded_rows(self, rows: int) -> int:
        """The least number of rows, from `rows` on, that this process's devices can share evenly."""
        local = sum(device.process_index == jax.process_index() for device in self.mesh.devices.flat)
        return -(-rows // local) * local

    def _sharding_of(self, shape: tuple[int, ...]) -> NamedSharding:
        able = [axis for axis, size in enumerate(shape) if size % self.fsdp == 0]
        if self.fsdp == 1 or not able or math.prod(shape) < _LEAST_SPLIT:
            return self.whole
        axis = max(able, key=lambda axis: shape[axis])
        return NamedSharding(self.mesh, PartitionSpec(*[None] * axis, "fsdp"))


def make_layout(text: str = AUTO, state_bytes: int = 0) -> Layout:
    """The layout for a text such as `data=4,fsdp=2`.

    Args:
      text: a length for one axis or both; together at most the number of devices, and on several hosts that number.
        Without `data` that is as long as the devices allow, without `fsdp` that is 1. 'auto' puts all devices on
        `data`, and on `fsdp` so many of them as it takes to keep the state below 40 % of each device's memory.
      state_bytes: of the whole state, for 'auto'.

    Returns:
      The layout.

    Raises:
      ConfigError: the text is malformed, or there are not so many devices.
    """
    # Processes follow each other, and so do the devices of each.
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    if text == AUTO:
        data, fsdp = _automatic(devices, state_bytes)
    else:
        lengths = _parse(text)
        fsdp = lengths.get("fsdp", 1)
        data = lengths.get("data", max(len(devices) // fsdp, 1))
    count = data * fsdp
    if count > len(devices) or (count < len(devices) and jax.process_count() > 1):
        raise ConfigError(
            f"mesh {text!r} is of {counted(count, 'device')}, not of {len(devices)}, which there are"
            + (" on all hosts together, which must all take part" if jax.process_count() > 1 else "")
        )
    return Layout.of(devices[:count], fsdp)


def check_mesh(text: str) -> None:
    """Raises ConfigError if `make_layout` takes no such text for any number of devices."""
    if text != AUTO:
        _parse(text)


def local_rows(array: Array) -> np.ndarray:
    """This process's rows of a result `(N, ...)`, split along its first axis alone or copied; waits for them."""
    if array.is_fully_addressable:
        return np.asarray(array)
    parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def _same(state: Any) -> Any:
    return state


def _parse(text: str) -> dict[str, int]:
    lengths: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\w+)\s*=\s*([1-9]\d*)\s*", part)
        if not match or match[1] not in _AXES or match[1] in lengths:
            raise ConfigError(f"mesh {text!r} is not understood: give 'auto', or such as data=4,fsdp=2")
        lengths[match[1]] = int(match[2])
    return lengths


def _automatic(devices: list[Any], state_bytes: int) -> tuple[int, int]:
    memory = min((device.memory_stats() or {}).get("bytes_limit", math.inf) for device in jax.local_devices())
    wanted = state_bytes / (_STATE_SHARE * memory)
    # Along the devices of a host first: those are connected best.
    able = [count for count in range(1, len(devices) + 1) if len(devices) % count == 0]
    fsdp = next((count for count in able if count >= wanted), len(devices))
    return len(devices) // fsdp, fsdp
