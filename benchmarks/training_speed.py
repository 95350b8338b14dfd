"""Pictures per second of the whole training loop, beside those of its compiled step alone.

    python benchmarks/training_speed.py PICTURES --model efficientnet_b0 --image-size 224 --batch-size 16

PICTURES holds JPEGs as `PICTURES/train/<class>/*.jpg`. The loop is `jeffnet.train.loop.train`: it reads and augments
pictures, brings them to the device, logs. The step alone is the same program on one batch that the device has already.
They take turns in one process. Of the loop some steps in the midst of an epoch count, logging included: no compilation,
no validation, no checkpoint, and not the first steps, after which the loader is under way.

Where the device is the processor, reading takes its share of it. So the loop is measured a second time, with batches
that are there already: that says whether it keeps the device waiting. CPU time, of all threads, says the same on a
machine that is busy.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

if TYPE_CHECKING:
    from jeffnet.train.config import Config

RECIPE = "small_from_scratch"

Options = argparse.Namespace


@dataclass(frozen=True)
class Cost:
    """Of one picture: seconds, and CPU seconds of this process."""

    seconds: float
    cpu_seconds: float


Clock = tuple[float, float]


def now() -> Clock:
    return time.perf_counter(), time.process_time()


def cost(start: Clock, end: Clock, images: int) -> Cost:
    return Cost((end[0] - start[0]) / images, (end[1] - start[1]) / images)


def measure(options: Options) -> list[tuple[Cost, Cost, Cost]]:
    """The loop's cost, that without reading, and the step's, turn by turn."""
    import jax

    from jeffnet.train.setup import Setup

    read = Setup.batches

    def prepared(setup: Setup, *args: Any) -> Any:
        return Prepared(read(setup, *args))

    turns = []
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        # Each turn's loop makes its program anew, which is then read, not compiled.
        jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
        config = make_config(folder / "pictures", options)
        step_alone = step_costs(config, options.steps)
        next(step_alone)  # compiled, and the caches warm
        for number in range(options.turns):
            whole = loop_cost(config, folder / f"run_{number}", options.steps)
            with patch.object(Setup, "batches", prepared):
                prepared_loop = loop_cost(config, folder / f"prepared_{number}", options.steps)
            turns.append((whole, prepared_loop, next(step_alone)))
            print("loop, on prepared batches, step alone:", *turns[-1], file=sys.stderr)
    return turns


def make_config(pictures: Path, options: Options) -> "Config":
    """The recipe with one epoch, as long as a turn, of links to the pictures."""
    from jeffnet.train.recipe import load_recipe

    config = load_recipe(options.recipe)
    if options.steps % config.log.steps:
        raise SystemExit(f"--steps {options.steps} is no multiple of the recipe's log.steps, {config.log.steps}")
    steps = config.log.steps + options.steps + 1
    for split, images in ("train", steps * options.batch_size), ("val", options.batch_size):
        link(options.pictures / "train", pictures / split, images)
    data = replace(config.data, path=str(pictures), image_size=options.image_size or config.data.image_size)
    return replace(
        config,
        model=replace(config.model, name=options.model or config.model.name),
        data=data if options.threads is None else replace(data, threads=options.threads),
        schedule=replace(config.schedule, warmup=0.0),
        epochs=1,
        batch_size=options.batch_size,
    )


class Prepared:
    """A loader that hands out its first batch again and again."""

    def __init__(self, loader: Any) -> None:
        self.loader, self.batch = loader, next(loader)

    def __next__(self) -> Any:
        return self.batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


def link(source: Path, folder: Path, images: int) -> None:
    """Fills a folder with links to pictures of an image folder, class by class in turn, at least one of each."""
    classes = [sorted(path.resolve() for path in label.iterdir()) for label in sorted(source.iterdir())]
    in_turn = [path for of_each in zip(*classes, strict=False) for path in of_each]
    for number, path in zip(range(max(images, len(classes))), itertools.cycle(in_turn), strict=False):
        target = folder / path.parent.name / f"{number:07}{path.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)


def loop_cost(config: "Config", folder: Path, steps: int) -> Cost:
    """Of so many steps of a run, after those up to the first line of its log."""
    from jeffnet.train.loop import train
    from jeffnet.train.setup import Setup

    calls: list[Clock] = []
    make_step = Setup.step

    def timed(setup: Setup, *args: Any) -> Any:
        step = make_step(setup, *args)

        def call(state: Any, batch: Mapping[str, Any]) -> Any:
            calls.append(now())
            return step(state, batch)

        return call

    with patch.object(Setup, "step", timed):
        train(config, folder, progress=False)
    # Both calls are the first after a line of the log, for which the loop waits until the device is done.
    first = config.log.steps
    return cost(calls[first], calls[first + steps], steps * config.batch_size)


def step_costs(config: "Config", steps: int) -> Iterator[Cost]:
    """Of so many calls of the compiled step, each time it is asked for."""
    import jax

    from jeffnet.train.setup import make_setup

    setup = make_setup(config)
    step, loader = setup.step(setup.phases[0]), setup.batches(setup.phases[0])
    batch = jax.device_put(next(loader))
    loader.close()
    state = setup.start()
    while True:
        start = now()
        for _ in range(steps):
            state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        yield cost(start, now(), steps * config.batch_size)


def table(turns: list[tuple[Cost, Cost, Cost]]) -> str:
    lines = [
        "| | images/s, median | to the step alone | CPU ms an image | to the step alone |",
        "|---|--:|--:|--:|--:|",
    ]
    for number, name in enumerate(("whole loop", "loop on prepared batches", "step alone")):
        costs = [turn[number] for turn in turns]
        # Ratios of each turn by itself, since the machine's speed changes from one to the next.
        speeds = sorted(turn[2].seconds / turn[number].seconds for turn in turns)
        rate = 1 / statistics.median(each.seconds for each in costs)
        cpu = 1000 * statistics.median(each.cpu_seconds for each in costs)
        cpu_ratio = statistics.median(turn[2].cpu_seconds / turn[number].cpu_seconds for turn in turns)
        spread = f"{statistics.median(speeds):.3f} ({speeds[0]:.3f} to {speeds[-1]:.3f})"
        lines.append(f"| {name} | {rate:.1f} | {spread} | {cpu:.2f} | {cpu_ratio:.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="folder with train/<class>/*.jpg")
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--model", help="instead of the recipe's")
    parser.add_argument("--image-size", type=int, help="instead of the recipe's")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, help="of the loader, instead of the recipe's")
    parser.add_argument("--steps", type=int, default=40, help="of a measurement: a multiple of the recipe's log.steps")
    parser.add_argument("--turns", type=int, default=3)
    print(table(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
