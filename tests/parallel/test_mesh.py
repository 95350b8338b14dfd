"""How arrays lie on devices."""

import jax
import numpy as np
import pytest

from jeffnet.errors import ConfigError
from jeffnet.parallel.mesh import check_mesh, local_rows, make_layout


@pytest.mark.parametrize(
    "text", ["data", "data=0", "data=2,data=2", "fsdp=-1", "rows=2", "", "data=2;fsdp=1", "data=1.5"]
)
def test_a_malformed_mesh_is_an_error_that_shows_how_to_write_one(text):
    with pytest.raises(ConfigError, match="data=4,fsdp=2"):
        check_mesh(text)


def test_more_devices_than_there_are_is_an_error():
    with pytest.raises(ConfigError, match=f"of 64 devices, not of {jax.device_count()}, which there are"):
        make_layout("data=32,fsdp=2")


def test_one_device_has_everything():
    layout = make_layout()
    assert (layout.devices, layout.fsdp, layout.is_shared) == (jax.device_count(), 1, False)
    placed = layout.place_batch({"image": np.arange(6).reshape(3, 2)})
    np.testing.assert_array_equal(local_rows(placed["image"]), [[0, 1], [2, 3], [4, 5]])


# The rest needs several devices, and so a process of its own.
PROGRAM = """
import os
os.environ["XLA_FLAGS"], os.environ["JAX_PLATFORMS"] = "--xla_force_host_platform_device_count=8", "cpu"
import jax, numpy as np
from jax.sharding import PartitionSpec as P
from jeffnet.errors import ConfigError
from jeffnet.parallel.mesh import local_rows, make_layout
import jeffnet.parallel.mesh as mesh

auto = make_layout()
assert dict(auto.mesh.shape) == {"data": 8, "fsdp": 1}
assert dict(make_layout("fsdp=2").mesh.shape) == {"data": 4, "fsdp": 2}
assert dict(make_layout("data=2").mesh.shape) == {"data": 2, "fsdp": 1}
layout = make_layout("data=4, fsdp=2")
state = {"large": np.zeros((3, 64, 128)), "odd": np.zeros((129, 65)), "small": np.zeros((64,)), "number": np.int32(3)}
specs = jax.tree.map(lambda sharding: sharding.spec, layout.shardings(state))
assert specs == {"large": P(None, None, "fsdp"), "odd": P(), "small": P(), "number": P()}, specs
placed = layout.place(state)
assert placed["large"].addressable_shards[0].data.shape == (3, 64, 64)
gathered = layout.gather(placed)
assert gathered["large"].is_fully_replicated and gathered["large"].shape == (3, 64, 128)
rows = np.arange(16 * 3).reshape(16, 3)
batch = layout.place_batch(rows)
assert [shard.data.shape for shard in batch.addressable_shards] == [(2, 3)] * 8
assert np.array_equal(local_rows(batch), rows)
# Neighbouring devices have neighbouring rows: groups of them are pieces of the batch.
order = [int(shard.data[0, 0]) // 6 for shard in sorted(batch.addressable_shards, key=lambda shard: shard.device.id)]
assert order == list(range(8)), order
assert (layout.padded_rows(9), layout.padded_rows(16)) == (16, 16)

# A state of 30 units on devices with room for 10 (a share of their memory) needs four of eight.
class Device:
    def memory_stats(self):
        return {"bytes_limit": 10 / mesh._STATE_SHARE}
jax.local_devices = lambda: [Device()]
assert mesh._automatic(list(range(8)), 30) == (2, 4)
assert mesh._automatic(list(range(8)), 9) == (8, 1)
assert mesh._automatic(list(range(8)), 1000) == (1, 8)
print("fine")
"""


def test_eight_devices():
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=200)
    assert done.stdout.strip() == "fine", done.stderr
