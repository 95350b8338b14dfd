"""Where the time of a model's inference goes: each layer beside what its arithmetic and its memory would take.

python benchmarks/layers.py tf_efficientnet_b0 --batch-size 1

Times come from JAX's profiler, of a fused model, medians over the runs. The floors are multiply-accumulates by those
per second of a large matrix product, and bytes of inputs, outputs and weights by those per second of a large copy, both
measured in the same process. A layer may beat the second: what the one before it wrote is still in a cache. Layers that
are computed together stand in one row, under their block's name.
"""

import argparse
import collections
import pathlib
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.profiler import ProfileData

from jeffnet.arch.operations import Conv
from jeffnet.arch.plan import Plan
from jeffnet.arch.summary import layers
from jeffnet.arch.zoo import model_plan, model_preprocessing
from jeffnet.functional import create_model
from jeffnet.inference.fused import fuse


@dataclass
class Row:
    """One layer, or several computed together: multiply-accumulates and bytes of a batch."""

    name: str
    macs: float = 0.0
    bytes: float = 0.0
    milliseconds: float = 0.0


def floors(plan: Plan, size: int, batch: int) -> list[Row]:
    """Work and traffic of each layer; a layer reads what the one before it wrote."""
    rows, before = [], size * size * plan.in_chans
    for layer in layers(plan, size):
        after = layer.out_size**2 * layer.out_channels
        rows.append(Row(layer.name, layer.macs * batch, 4 * ((before + after) * batch + layer.parameters)))
        before = after
    return rows


def measure(run: Callable[[], jax.Array], text: str, runs: int) -> dict[str, float]:
    """Milliseconds of each scope of the program's operations, of one run; the median over several.

    Args:
      run: runs the program.
      text: the compiled program, whose operations say from which scope they are.
      runs: how many.
    """
    scopes = dict(re.findall(r"%?([\w.\-]+) = .*?op_name=\"([^\"]*)\"", text))
    run().block_until_ready()
    totals: list[dict[str, float]] = []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                run().block_until_ready()
            (file,) = pathlib.Path(folder).rglob("*.xplane.pb")
            profile = ProfileData.from_file(str(file))
        spent: dict[str, float] = collections.defaultdict(float)
        for plane in profile.planes:
            for line in plane.lines:
                for event in line.events:
                    if event.name in scopes:
                        spent[scopes[event.name]] += event.duration_ns / 1e6
        totals.append(spent)
    return {name: statistics.median(each.get(name, 0.0) for each in totals) for name in totals[0]}


def assign(rows: list[Row], spent: dict[str, float], plan: Plan) -> list[Row]:
    """Give each row its time; what no layer's name is in is `the rest`."""
    blocks = {block.name: [op.name for op in block.ops if isinstance(op, Conv)] for block in plan.blocks}
    merged: dict[str, Row] = {}
    together = {name for name in blocks if any(name in scope.split("/") for scope in spent)}
    for row in rows:
        block = row.name.rpartition(".")[0]
        # With squeeze-and-excitation, which comes between, the last convolution stands by itself.
        joint = blocks[block][: 2 if len(blocks[block]) < _operations(plan, block) else 3] if block in together else []
        name = block if row.name in joint else row.name
        target = merged.setdefault(name, Row(name))
        target.macs, target.bytes = target.macs + row.macs, target.bytes + row.bytes
    for scope, milliseconds in spent.items():
        words = scope.split("/")
        name = next((word for word in reversed(words) if word in merged), None)
        if name is None:  # a part of a layer, or a norm
            whole = [each for word in words for each in merged if word.startswith(each + ".")]
            name = max(whole, key=len, default="the rest")
        merged.setdefault(name, Row(name)).milliseconds += milliseconds
    return list(merged.values())


def _operations(plan: Plan, name: str) -> int:
    return next(len(block.ops) for block in plan.blocks if block.name == name)


def peak() -> tuple[float, float]:
    """Multiply-accumulates a second of a large matrix product, and bytes a second, read and written, of a copy."""
    matrix, long = jnp.ones((2048, 2048)), jnp.ones(2**25)
    product, copy = jax.jit(jnp.matmul), jax.jit(lambda new, _: new + 1, donate_argnums=1, keep_unused=True)
    target = [jnp.zeros_like(long)]

    def copied() -> jax.Array:
        target[0] = copy(long, target[0])
        return target[0]

    return 2048**3 / _shortest(lambda: product(matrix, matrix)), 2 * long.nbytes / _shortest(copied)


def _shortest(call: Callable[[], jax.Array]) -> float:
    taken = []
    for _ in range(12):
        began = time.perf_counter()
        call().block_until_ready()
        taken.append(time.perf_counter() - began)
    return min(taken)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args()
    plan, batch = model_plan(options.model), options.batch_size
    size = options.image_size or model_preprocessing(options.model).image_size
    model, variables = create_model(options.model)
    images = jnp.zeros((batch, size, size, plan.in_chans))
    fused = fuse(model, variables, batch_size=batch, image_size=size)
    macs, copied = peak()
    rows = assign(floors(plan, size, batch), measure(lambda: fused(images), fused.program(), options.runs), plan)
    print(f"{options.model}, batch {batch}, {size} px: {macs / 1e9:.0f} GMACs/s, {copied / 1e9:.0f} GB/s\n")
    print(f"{'layer':24} {'ms':>8} {'GMACs/s':>8} {'arithmetic ms':>14} {'memory ms':>10} {'ms / larger':>12}")
    total = Row("all")
    for row in rows:
        _print(row, macs, copied)
        total.macs, total.bytes = total.macs + row.macs, total.bytes + row.bytes
        total.milliseconds += row.milliseconds
    _print(total, macs, copied)


def _print(row: Row, macs: float, copied: float) -> None:
    arithmetic, memory = 1e3 * row.macs / macs, 1e3 * row.bytes / copied
    speed = row.macs / row.milliseconds / 1e6 if row.milliseconds else 0.0
    over = row.milliseconds / max(arithmetic, memory) if max(arithmetic, memory) else 0.0
    print(f"{row.name:24} {row.milliseconds:8.3f} {speed:8.1f} {arithmetic:14.3f} {memory:10.3f} {over:12.1f}")


if __name__ == "__main__":
    main()
