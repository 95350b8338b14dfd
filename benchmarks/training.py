"""The same model trained by timm's parts and by ours: validation after each epoch, for several seeds.

    python benchmarks/training.py PICTURES --output training.jsonl --epochs 12 --seeds 0 1 2
    python benchmarks/training.py PICTURES --output training.jsonl --libraries timm
    python benchmarks/training.py --summary training.jsonl --plot training.png

PICTURES holds JPEGs as `PICTURES/{train,val}/<class>/*.jpg`. Both sides read their settings from `--recipe`. Every run
is a process of its own, and the libraries take turns. `--output` gets a line for each epoch (ours: after the run), and
one for the whole run with its seconds and CPU seconds, start, compilation and validation included: CPU time says the
same on a machine that is busy with other things. A run that has this line is not done again, and one of ours continues
from its last checkpoint in `--runs`; a file and a folder are of one set of settings.
"""

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jeffnet.system import figures

if TYPE_CHECKING:
    from jeffnet.train.config import Config

LIBRARIES = ("timm", "jeffnet")
RECIPE = "small_from_scratch"

Options = argparse.Namespace
Row = dict[str, Any]


def train_timm(config: "Config", options: Options) -> Iterator[Row]:
    import training_timm

    return training_timm.train(config, options.pictures)


def train_jeffnet(config: "Config", options: Options) -> Iterator[Row]:
    from jeffnet.train.loop import resume, train
    from jeffnet.train.reports.journal import read_rows
    from jeffnet.train.run import is_run

    with contextlib.ExitStack() as stack:
        runs = options.runs or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = runs / f"seed_{config.seed}"
        if is_run(folder):
            resume(folder)
        else:
            train(config, folder)
        rows = read_rows(folder)
    yield from by_epoch(rows, config.batch_size)


def by_epoch(rows: list[Row], batch_size: int) -> Iterator[Row]:
    """One row for each epoch of the lines of `metrics.jsonl`, which has one of its training and one of its scores."""
    last = 0
    for trained, scored in zip(
        [row for row in rows if "train_loss" in row], [row for row in rows if "val_top1" in row], strict=True
    ):
        assert trained["step"] == scored["step"]
        seconds = (trained["step"] - last) * batch_size / trained["images_per_second"]
        last = trained["step"]
        scores = {name: scored[name] for name in ("epoch", "val_loss", "val_top1")}
        yield {"train_loss": trained["train_loss"], **scores, "seconds": seconds}


def train_one(library: str, seed: int, options: Options) -> None:
    """One run, in this process."""
    from jeffnet.train.recipe import load_recipe

    if options.cores:  # before any library counts them
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-options.cores :])
    config = load_recipe(options.recipe)
    data = replace(config.data, path=str(options.pictures), image_size=options.image_size or config.data.image_size)
    # One line of training for each epoch.
    log = replace(config.log, steps=10**9, tensorboard=False)
    config = replace(config, data=data, log=log, epochs=options.epochs or config.epochs, seed=seed)
    for row in {"timm": train_timm, "jeffnet": train_jeffnet}[library](config, options):
        append(options.output, {"library": library, "seed": seed, **row})


def train_all(options: Options) -> None:
    """All runs that are not done, each in its own process."""
    for seed in options.seeds:
        for library in options.libraries:
            run = {"library": library, "seed": seed}
            if any(run.items() <= row.items() and "cpu_seconds" in row for row in read(options.output)):
                continue
            began, used = time.perf_counter(), _children_seconds()
            command = [sys.executable, __file__, *sys.argv[1:], "--one", library, str(seed)]
            subprocess.run(command, check=True, env={**os.environ, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""})
            seconds, cpu_seconds = time.perf_counter() - began, _children_seconds() - used
            append(options.output, run | {"run_seconds": seconds, "cpu_seconds": cpu_seconds})


def _children_seconds() -> float:
    """CPU time of all processes that have ended, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def append(path: Path, row: Row) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def curves(rows: list[Row], library: str) -> dict[int, list[Row]]:
    """The epochs of each seed, in order; of an epoch that was run twice the later run."""
    found: dict[int, dict[int, Row]] = {}
    for row in rows:
        if row["library"] == library and "epoch" in row:
            found.setdefault(row["seed"], {})[row["epoch"]] = row
    return {seed: [epochs[epoch] for epoch in sorted(epochs)] for seed, epochs in sorted(found.items())}


@dataclass(frozen=True)
class Summary:
    """All runs of a library: of each its last and its best top-1, in per cent, and what it took."""

    epochs: int
    last: list[float]
    best: list[float]
    last_loss: float
    seconds: float
    cpu_seconds: float


def summarise(rows: list[Row], library: str) -> Summary | None:
    runs = list(curves(rows, library).values())
    if not runs:
        return None
    lengths = sorted({len(run) for run in runs})
    cpu_seconds = [row["cpu_seconds"] for row in rows if row["library"] == library and "cpu_seconds" in row]
    if len(lengths) > 1 or len(cpu_seconds) < len(runs):
        raise SystemExit(f"some runs of {library} are not finished: give the command that began them again")
    return Summary(
        epochs=lengths[0],
        last=[run[-1]["val_top1"] for run in runs],
        best=[max(row["val_top1"] for row in run) for run in runs],
        last_loss=statistics.mean(run[-1]["val_loss"] for run in runs),
        # Without the first epoch, in which ours compiles.
        seconds=statistics.median(row["seconds"] for run in runs for row in run[1:] or run),
        cpu_seconds=statistics.mean(cpu_seconds),
    )


def table(rows: list[Row]) -> str:
    """One line for each library, and what is between them."""
    lines = [
        "| library | seeds | epochs | last top-1, mean | std | lowest to highest | best top-1, mean | std | lowest to "
        "highest | last loss | training, s an epoch | CPU s a run |",
        f"|{'---|' * 12}",
    ]
    found = {library: summary for library in LIBRARIES if (summary := summarise(rows, library))}
    for library, summary in found.items():
        scores = (*_spread(summary.last), *_spread(summary.best), f"{summary.last_loss:.3f}")
        cells = (library, len(summary.last), summary.epochs, *scores, f"{summary.seconds:.1f}")
        lines.append(f"| {' | '.join(map(str, cells))} | {summary.cpu_seconds:.0f} |")
    if len(found) == 2:
        timm, ours = (found[library] for library in LIBRARIES)
        lines += ["", f"jeffnet beside timm: last top-1 {_difference(ours.last, timm.last)}, best "]
        lines[-1] += (
            f"{_difference(ours.best, timm.best)} points; seconds of training {ours.seconds / timm.seconds:.2f} "
        )
        lines[-1] += f"times, CPU seconds of a run {ours.cpu_seconds / timm.cpu_seconds:.2f} times"
    return "\n".join(lines)


def _difference(ours: list[float], theirs: list[float]) -> str:
    """Of the means, with its standard error."""
    error = sum(statistics.variance(each) / len(each) for each in (ours, theirs) if len(each) > 1) ** 0.5
    return f"{statistics.mean(ours) - statistics.mean(theirs):+.2f} ± {error:.2f}"


def _spread(values: list[float]) -> tuple[str, str, str]:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} %", f"{deviation:.2f}", f"{min(values):.2f} to {max(values):.2f}"


@figures.house_style()
def draw(rows: list[Row], path: Path) -> None:
    """A thin line for each seed, a thick one for their mean."""
    figure = figures.new_figure(7, 4)
    axes = figure.subplots()
    for library, colour in zip(LIBRARIES, (figures.RED, figures.BLUE), strict=True):
        runs = list(curves(rows, library).values())
        for run in runs:
            axes.plot([row["epoch"] for row in run], [row["val_top1"] for row in run], color=colour, linewidth=0.7)
        if runs:
            means = [statistics.mean(row["val_top1"] for row in epoch) for epoch in zip(*runs, strict=False)]
            label = f"{library}, mean of {len(runs)} seeds"
            axes.plot(range(1, len(means) + 1), means, color=colour, linewidth=2.2, label=label)
    axes.set(xlabel="epoch", ylabel="validation top-1, per cent")
    figures.whole_ticks(axes.xaxis)
    axes.legend()
    figures.save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, nargs="?", help="folder with {train,val}/<class>/*.jpg")
    parser.add_argument("--output", type=Path, default=Path("training.jsonl"), help="rows are appended there")
    parser.add_argument("--runs", type=Path, help="folder that keeps our runs; none is kept without it")
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--image-size", type=int, help="instead of the recipe's")
    parser.add_argument("--cores", type=int, help="processors that a run may use, its loader included; all without it")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="table of what an --output has; trains nothing")
    parser.add_argument("--plot", type=Path, help="draw the validation curves there, with --summary")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.summary:
        print(table(read(options.summary)))
        if options.plot:
            draw(read(options.summary), options.plot)
    elif not options.pictures:
        parser.error("give PICTURES, or --summary")
    elif options.one:
        library, seed = options.one
        train_one(library, int(seed), options)
    else:
        train_all(options)


if __name__ == "__main__":
    main()
