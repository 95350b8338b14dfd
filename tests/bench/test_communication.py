"""What is read from the text of compiled programs: every notation, and programs of eight virtual devices."""

import json
import os
import subprocess
import sys

import pytest

from jeffnet.bench.communication import by_kind, collectives

pytestmark = pytest.mark.runs

PROGRAM = """
import json, jax, jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from jeffnet.bench.communication import collectives
mesh = Mesh(jax.devices(), "d", axis_types=(AxisType.Auto,))
rows, whole = NamedSharding(mesh, P("d")), NamedSharding(mesh, P())
shape = lambda shape, sharding: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
def found(f, *arguments, **how):
    text = jax.jit(f, **how).lower(*arguments).compile().as_text()
    return [(each.kind, each.bytes, each.group, each.times) for each in collectives(text)]
def gradient(w, x):
    w = jax.lax.with_sharding_constraint(w, whole)
    return jax.grad(lambda w: jnp.square(x @ w).sum())(w)
psum = jax.shard_map(lambda x: jax.lax.psum(x, "d"), mesh=mesh, in_specs=P("d"), out_specs=P())
def loop(x):
    return jax.lax.fori_loop(0, 5, lambda i, x: psum(jnp.tile(x, (8, 1))) / 9, x)
print(json.dumps({
    "psum": found(psum, shape((8, 100), rows)),
    "data": found(gradient, shape((64, 32), whole), shape((16, 64), rows), out_shardings=whole),
    "fsdp": found(gradient, shape((64, 32), rows), shape((16, 64), rows), out_shardings=rows),
    "loop": found(loop, shape((1, 100), whole)),
}))
"""


@pytest.fixture(scope="module")
def compiled():
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr
    return {name: [tuple(each) for each in found] for name, found in json.loads(done.stdout).items()}


def test_a_sum(compiled):
    assert compiled["psum"] == [("all-reduce", 400, 8, 1)]


def test_gradients_of_copied_parameters_are_summed(compiled):
    assert compiled["data"] == [("all-reduce", 64 * 32 * 4, 8, 1)]


def test_split_parameters_have_gradients_of_the_same_size(compiled):
    size = 64 * 32 * 4
    found = [each for each in compiled["fsdp"] if each[1] == size and each[2] == 8]
    # The parameters are gathered; on CPUs the gradients are summed everywhere, and each device keeps its part.
    assert {each[0] for each in found} in ({"all-gather", "all-reduce"}, {"all-gather", "reduce-scatter"})


def test_what_a_loop_sends_counts_as_often_as_it_runs(compiled):
    assert compiled["loop"] == [("all-reduce", 400, 8, 5)]


def program(instruction):
    return f"HloModule m, num_partitions=8\n\nENTRY %main (p: f32[10]) -> f32[10] {{\n  {instruction}\n}}\n"


@pytest.mark.parametrize(
    ("instruction", "kind", "sizes", "group", "sent"),
    [
        ("%a = f32[10]{0} all-reduce(%p), replica_groups={{0,1},{2,3}}, to_apply=%s", "all-reduce", (40,), 2, 40),
        ("%a = bf16[10]{0} all-reduce(%p), replica_groups=[2,4]<=[8], to_apply=%s", "all-reduce", (20,), 4, 30),
        ("%a = f32[8]{0} all-reduce(%p), replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%s", "all-reduce", (32,), 2, 32),
        ("%a = f32[8]{0} all-reduce(%p), replica_groups={}, to_apply=%s", "all-reduce", (32,), 8, 56),
        (
            "%a = f32[8]{0} all-reduce(%p), replica_groups=mesh['x'=4,'y'=2] {'y'}, to_apply=%s",
            "all-reduce",
            (32,),
            2,
            32,
        ),
        ("%a = (f32[2]{0}, f32[]) all-reduce-start(%p, %q), replica_groups={{0,1}}", "all-reduce", (8, 4), 2, 12),
        ("%a = (f32[2]{0}, f32[8]{0}) all-gather-start(%p), replica_groups={{0,1,2,3}}", "all-gather", (32,), 4, 24),
        ("%a = f32[2]{0} reduce-scatter(%p), replica_groups=[2,4]<=[8]", "reduce-scatter", (32,), 4, 24),
        (
            "%a = (f32[2]{0}, f32[2]{0}, u32[], u32[]) collective-permute-start(%p), source_target_pairs={{0,1}}",
            "collective-permute",
            (8,),
            8,
            8,
        ),
    ],
)
def test_notations(instruction, kind, sizes, group, sent):
    (found,) = collectives(program(instruction))
    assert (found.kind, found.sizes, found.group) == (kind, sizes, group)
    assert found.sent == pytest.approx(sent)
    assert by_kind([found, found]) == {kind: (2, pytest.approx(2 * sent))}
