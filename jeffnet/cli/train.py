"""`jeffnet train`: train a model."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jeffnet.cli.devices import add_device_options, start_devices
from jeffnet.cli.model import local_path
from jeffnet.cli.processes import add_process_options, connect
from jeffnet.errors import UsageError
from jeffnet.text.names import printable, printable_lines, shell_word

if TYPE_CHECKING:
    from jeffnet.train.config import Config
    from jeffnet.train.reports.scores import Result

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); from jeffnet.cli.main import main; sys.exit(main())"
)
_FILES = (
    ("model", "model.safetensors"),
    ("EMA", "model_ema.safetensors"),
    ("averaged", "averaged.safetensors"),
    ("curves", "curves.png"),
    ("metrics", "metrics.jsonl"),
    ("card", "README.md"),
)


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "train",
        parents=[common],
        allow_abbrev=False,  # `--out` may be an entry of the recipe, not `--output`
        help="train a model",
        description="Train a model from a recipe, or continue a run. SIGTERM and Ctrl-C save a checkpoint and stop, "
        "with status 75 and 130.",
        epilog="Any entry of the recipe can be set: --epochs 20 --optimizer.learning_rate 0.05 --data.path pictures. "
        "--print-config shows them all; docs/training.md explains them.",
        usage="jeffnet train (--config FILE --output RUN | --resume RUN) [--ENTRY VALUE ...] [options]",
    )
    parser.add_argument(
        "--config", type=local_path, metavar="FILE", help="recipe: a Python file that defines `config`, see configs/"
    )
    parser.add_argument("--output", type=local_path, metavar="RUN", help="folder to create for the run")
    parser.add_argument(
        "--resume", type=local_path, metavar="RUN", help="continue the run in this folder from its last checkpoint"
    )
    parser.add_argument(
        "--continue",
        action="store_true",
        help="with --config: continue the run if RUN already has it; for commands that may be started again",
    )
    parser.add_argument(
        "--max-restarts",
        type=int,
        default=0,
        metavar="N",
        help="restart at most N times after a crash or the loss of another process; implies --continue",
    )
    parser.add_argument("--seeds", metavar="N,N,...", help="train once per seed, in RUN/seed_N")
    parser.add_argument("--print-config", action="store_true", help="print the whole configuration and stop")
    parser.add_argument(
        "--plot-schedule", type=local_path, metavar="FILE", help="draw the learning rate over time and stop"
    )
    parser.add_argument(
        "--plot-augment", type=local_path, metavar="FILE", help="draw some training pictures, augmented, and stop"
    )
    parser.add_argument("--json", action="store_true", help="print the result as one object, or a list with --seeds")
    add_device_options(parser)
    add_process_options(parser)
    parser.set_defaults(run=run, overrides=[], own=parser.options)


def run(options: argparse.Namespace) -> None:
    """Train, and print the result."""
    from jeffnet.parallel.distributed import lost_processes_reported
    from jeffnet.train.interrupt import InterruptedRunError

    if options.max_restarts:
        raise SystemExit(_supervised(options))
    if not options.debug:
        sys.unraisablehook = _without_closed_loops
    try:
        connect(options)
        with lost_processes_reported():
            _run(options)
    except InterruptedRunError as interrupted:
        way = "the same command" if options.seeds else f"`jeffnet train --resume {shell_word(_folder(options))}`"
        print(printable_lines(f"{interrupted}; continue with {way}"), file=sys.stderr)
        raise SystemExit(interrupted.exit_code) from None


def _supervised(options: argparse.Namespace) -> int:
    """Run the same command without --max-restarts, and restart it when it fails."""
    from jeffnet.parallel.restarts import supervise

    if options.max_restarts < 0:
        raise UsageError(f"--max-restarts {options.max_restarts} is negative")
    # The last value of a repeated option counts.
    command = [*_same_command(options.arguments), "--max-restarts=0"]
    if not (options.resume or options.seeds or vars(options)["continue"]):
        command.append("--continue")
    return supervise(
        command, options.max_restarts, lambda text: print(f"restarts: {text}", file=sys.stderr, flush=True)
    )


def _same_command(arguments: Sequence[str] | None) -> list[str]:
    """The command line that runs this command in another process."""
    own = sys.argv[1:]
    if arguments is None and sys.orig_argv[len(sys.orig_argv) - len(own) :] == own:
        return [sys.executable, *sys.orig_argv[1:]]
    # A program called `main`: the process gets its import path.
    return [sys.executable, "-c", _START, json.dumps(sys.path), *(own if arguments is None else arguments)]


def _without_closed_loops(unraisable: "sys.UnraisableHookArgs") -> None:
    """Ignore callbacks to a closed event loop, which remain after a checkpoint could not be written: that is raised."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _run(options: argparse.Namespace) -> None:
    from jeffnet.train.recipe import load_recipe, override

    overrides = _pairs(options.overrides, options.own)
    if options.resume:
        _refuse(options, "config", "output", "continue", "seeds", "print-config", "plot-schedule", "plot-augment")
        from jeffnet.train.loop import resume

        start_devices(options)
        _report(options, [resume(options.resume, overrides)])
        return
    if not options.config:
        raise UsageError("give --config FILE and --output RUN, or --resume RUN")
    config = override(load_recipe(options.config), overrides)
    if _shown(options, config):
        return
    if not options.output:
        raise UsageError("give --output RUN, a folder for the run")
    from jeffnet.train.loop import train
    from jeffnet.train.seeds import train_seeds

    start_devices(options)
    if options.seeds:
        _report(options, train_seeds(config, options.output, _seeds(options.seeds)))
    else:
        _report(options, [train(config, options.output, go_on=vars(options)["continue"])])


def _shown(options: argparse.Namespace, config: "Config") -> bool:
    """Print or draw the configuration if asked; returns whether it was."""
    if options.print_config:
        from jeffnet.train.recipe import to_json

        print(to_json(config), end="")
    if options.plot_schedule or options.plot_augment:
        _check_plots(options)
        start_devices(options)
    if options.plot_schedule:
        from jeffnet.train.reports.preview import plot_schedule

        print(printable(plot_schedule(config, options.plot_schedule)))
    if options.plot_augment:
        from jeffnet.train.reports.preview import plot_augment

        print(printable(plot_augment(config, options.plot_augment)))
    return bool(options.print_config or options.plot_schedule or options.plot_augment)


def _check_plots(options: argparse.Namespace) -> None:
    from jeffnet.data.augment import sheet
    from jeffnet.system.figures import check_output, form_of

    for path, form in ((options.plot_schedule, form_of), (options.plot_augment, sheet.form_of)):
        if path:
            form(path)
            check_output(path)


def _refuse(options: argparse.Namespace, *names: str) -> None:
    given = [name for name in names if vars(options)[name.replace("-", "_")]]
    if given:
        raise UsageError(
            f"--resume continues a run as it was configured: remove --{given[0]}, or set single entries, such as "
            "--epochs 20"
        )


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--seeds {text!r} is not whole numbers joined by commas") from None


def _folder(options: argparse.Namespace) -> str:
    return options.resume or options.output


def _report(options: argparse.Namespace, results: "list[Result]") -> None:
    from jeffnet.parallel.distributed import is_primary

    if not is_primary():
        return
    folder = Path(_folder(options))
    if options.json:
        folders = [folder / f"seed_{seed}" for seed in _seeds(options.seeds)] if options.seeds else [folder]
        rows = [{"run": str(one), **result.as_dict()} for one, result in zip(folders, results, strict=True)]
        print(json.dumps(rows if options.seeds else rows[0]))
        return
    for result in results:
        _print_result(result)
    if options.seeds:
        import statistics

        scores = [result.best.top1 for result in results]
        spread = f", standard deviation {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
        print(f"mean of {len(scores)} seeds: best top-1 {statistics.mean(scores):.2f} %{spread}")
    for what, name in _FILES:
        if (folder / name).exists():
            print(f"{what:<10}{printable(str(folder / name))}")


def _print_result(result: "Result") -> None:
    print(
        f"best top-1 {result.best.top1:.2f} % after epoch {result.best_epoch:g}, on {result.best.examples} validation "
        f"pictures; last {result.last.top1:.2f} %"
    )
    if result.best_ema and result.last_ema:
        print(
            f"moving average: best top-1 {result.best_ema.top1:.2f} % after epoch {result.best_ema_epoch:g}; last "
            f"{result.last_ema.top1:.2f} %"
        )
    if result.averaged:
        print(f"average of the best: top-1 {result.averaged.top1:.2f} %")


def _pairs(arguments: list[str], own: Sequence[str] = ()) -> list[tuple[str, str]]:
    """`['--epochs', '3', '--seed=1']` as names of entries and values.

    Args:
      arguments: those that are not options of the command.
      own: names of the command's options, to suggest for a name that is not an entry.
    """
    pairs, rest = [], list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise UsageError(f"{word!r} is not an option: set entries of the recipe by --name value")
        name, equals, value = word[2:].partition("=")
        pairs.append((_entry(name, own), value))
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UsageError(f"option --{name} needs a value")
            pairs[-1] = (pairs[-1][0], rest.pop(0))
    return pairs


def _entry(name: str, own: Sequence[str]) -> str:
    """The entry of the recipe that an option names, with dashes or underscores."""
    from jeffnet.train.recipe import check_name

    plain = name.replace("-", "_")
    plain = {"img_size": "data.image_size", "image_size": "data.image_size"}.get(plain, plain)  # as of other commands
    check_name(plain, name, own)
    return plain
