"""`jeffnet train`: train a model."""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jeffnet.cli.devices import add_device_options, add_process_options, connect, start_devices
from jeffnet.cli.manual import print_manual
from jeffnet.cli.model import local_path, positive
from jeffnet.cli.text import table
from jeffnet.errors import UsageError
from jeffnet.system import figures
from jeffnet.system.files import check_output
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
    ("folds", "folds.json"),
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
        "--help-config lists them all.",
        usage="jeffnet train (--config RECIPE --output RUN | --resume RUN) [--ENTRY VALUE ...] [options]",
    )
    _add_recipe_options(parser.add_argument_group("recipe"))
    _add_run_options(parser.add_argument_group("run"))
    add_device_options(parser)
    add_process_options(parser)
    parser.set_defaults(run=run, overrides=[], known=parser.options)


def _add_recipe_options(group: Any) -> None:
    text = "a name that `jeffnet recipes` lists, or a Python file that defines `config`"
    group.add_argument("--config", type=local_path, metavar="RECIPE", help=text)
    text = "list the entries of a recipe with their types, defaults and choices, with --config also its values; those "
    text += "of PART, such as optimizer, "
    group.add_argument("--help-config", nargs="?", const="", metavar="PART", help=f"{text}in full, and stop")
    group.add_argument("--print-config", action="store_true", help="print the whole configuration and stop")
    text = "draw the learning rate over time and stop"
    group.add_argument("--plot-schedule", type=local_path, metavar="FILE", help=text)
    text = "draw some training pictures, augmented, and stop"
    group.add_argument("--plot-augment", type=local_path, metavar="FILE", help=text)
    text = "train a few steps at rising learning rates, draw their losses, suggest a rate and stop; keeps no run"
    group.add_argument("--lr-find", type=local_path, metavar="FILE", help=text)


def _add_run_options(group: Any) -> None:
    group.add_argument("--output", type=local_path, metavar="RUN", help="folder to create for the run")
    text = "continue the run in this folder from its last checkpoint"
    group.add_argument("--resume", type=local_path, metavar="RUN", help=text)
    text = "with --config: continue the run if RUN already has it; for commands that may be started again"
    group.add_argument("--continue", action="store_true", help=text)
    text = "restart at most N times after a crash or the loss of another process; implies --continue"
    group.add_argument("--max-restarts", type=int, default=0, metavar="N", help=text)
    text = "do some steps, a validation and a checkpoint, print their time and memory and the run's, and keep nothing"
    group.add_argument("--dry-run", action="store_true", help=text)
    group.add_argument("--seeds", type=_seeds, metavar="N,N,...", help="train once per seed, in RUN/seed_N")
    text = "cross-validation: divide the pictures into N folds, and train once for each, in RUN/fold_N"
    group.add_argument("--folds", type=positive, metavar="N", help=text)
    text = "print the result, or with --help-config the entries, as one object; an array with several"
    group.add_argument("--json", action="store_true", help=text)


def run(options: argparse.Namespace) -> None:
    """Train, and print the result."""
    from jeffnet.parallel.distributed import lost_processes_reported
    from jeffnet.train.interrupt import InterruptedRunError

    if options.help_config is not None:
        config = _configured(options) if options.config else None
        print_manual(options.help_config, options.json, config)
        return
    if options.max_restarts:
        raise SystemExit(_supervised(options))
    if not options.debug:
        sys.unraisablehook = _without_closed_loops
    try:
        connect(options)
        with lost_processes_reported():
            _run(options)
    except InterruptedRunError as interrupted:
        folder = options.resume or options.output
        way = "the same command" if options.seeds or options.folds else f"`jeffnet train --resume {shell_word(folder)}`"
        print(printable_lines(f"{interrupted}; continue with {way}"), file=sys.stderr)
        raise SystemExit(interrupted.exit_code) from None


def _supervised(options: argparse.Namespace) -> int:
    """Run the same command without --max-restarts, and restart it when it fails."""
    from jeffnet.parallel.restarts import supervise

    if options.max_restarts < 0:
        raise UsageError(f"--max-restarts {options.max_restarts} is negative")
    # The last value of a repeated option counts.
    command = [*_same_command(options.arguments), "--max-restarts=0"]
    if not (options.resume or options.seeds or options.folds or vars(options)["continue"]):
        command.append("--continue")
    return supervise(
        command, options.max_restarts, lambda line: print(f"restarts: {line}", file=sys.stderr, flush=True)
    )


def _same_command(arguments: Sequence[str] | None) -> list[str]:
    """The command line that runs this command in another process."""
    words = sys.argv[1:]
    if arguments is None and sys.orig_argv[len(sys.orig_argv) - len(words) :] == words:
        return [sys.executable, *sys.orig_argv[1:]]
    # A program called `main`: the process gets its import path.
    return [sys.executable, "-c", _START, json.dumps(sys.path), *(words if arguments is None else arguments)]


def _without_closed_loops(unraisable: "sys.UnraisableHookArgs") -> None:
    """Ignore callbacks to a closed event loop, which remain after a checkpoint could not be written: that is raised."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _run(options: argparse.Namespace) -> None:
    if options.resume:
        own = ("print-config", "plot-schedule", "plot-augment", "lr-find", "dry-run")
        _refuse(options, "config", "output", "continue", "seeds", "folds", *own)
        from jeffnet.train.loop import resume

        start_devices(options)
        _report(options, [resume(options.resume, _pairs(options.overrides, options.known))])
        return
    if not options.config:
        raise UsageError("give --config RECIPE and --output RUN, or --resume RUN")
    _check_one(options)
    config = _configured(options)
    if _shown(options, config):
        return
    if options.lr_find:
        _find_learning_rate(options, config)
        return
    if options.dry_run:
        _rehearse(options, config)
        return
    if not options.output:
        raise UsageError("give --output RUN, a folder for the run")
    if options.seeds and options.folds:
        raise UsageError("--seeds and --folds: give one of them")
    from jeffnet.train.folds import train_folds
    from jeffnet.train.loop import train
    from jeffnet.train.seeds import train_seeds

    start_devices(options)
    if options.folds:
        _report_folds(options, train_folds(config, options.output, options.folds))
    elif options.seeds:
        _report(options, train_seeds(config, options.output, options.seeds))
    else:
        _report(options, [train(config, options.output, go_on=vars(options)["continue"])])


def _configured(options: argparse.Namespace) -> "Config":
    """The recipe with the entries that are set on the command line."""
    from jeffnet.train.recipe import load_recipe, override

    return override(load_recipe(options.config), _pairs(options.overrides, options.known))


def _check_one(options: argparse.Namespace) -> None:
    """Raises UsageError for several options that each do something else than train."""
    shown = ("print-config", "plot-schedule", "plot-augment")  # which go together
    asked = [name for name in (*shown, "lr-find", "dry-run") if vars(options)[name.replace("-", "_")]]
    if len(asked) > 1 and not set(asked) <= set(shown):
        raise UsageError(f"{' and '.join(f'--{name}' for name in asked)}: give one of them")


def _shown(options: argparse.Namespace, config: "Config") -> bool:
    """Print or draw the configuration if asked; returns whether it was."""
    if options.print_config:
        from jeffnet.train.recipe import to_json

        print(to_json(config), end="")
    if options.plot_schedule or options.plot_augment:
        _draw(options, config)
    return bool(options.print_config or options.plot_schedule or options.plot_augment)


def _draw(options: argparse.Namespace, config: "Config") -> None:
    from jeffnet.data.augment import sheet
    from jeffnet.train.reports.preview import plot_augment, plot_schedule

    plots = ((options.plot_schedule, plot_schedule, figures.FORMS), (options.plot_augment, plot_augment, sheet.FORMS))
    for path, _, endings in plots:
        if path:
            check_output(path, endings)
    start_devices(options)
    for path, plot, _ in plots:
        if path:
            print(printable(plot(config, path)))


def _find_learning_rate(options: argparse.Namespace, config: "Config") -> None:
    check_output(options.lr_find, figures.FORMS)
    start_devices(options)
    from jeffnet.parallel.distributed import is_primary
    from jeffnet.train.range_test import find_learning_rate
    from jeffnet.train.reports.curves import draw_range_test

    found = find_learning_rate(config, progress=is_primary())
    if not is_primary():
        return
    title = f"range test: {config.model.name or config.model.pretrained}, {config.optimizer.name}"
    draw_range_test(found, options.lr_find, f"{title}, batches of {config.batch_size}")
    if options.json:
        curves = {name: _with_null(getattr(found, name)) for name in ("rates", "losses", "smoothed")}
        print(json.dumps(asdict(found) | curves))
        return
    first, last = found.rates[0], found.rates[-1]
    end = ", where the loss diverged" if found.diverged else ""
    print(printable(f"{options.lr_find}: {len(found.rates)} steps, learning rates {first:.3g} to {last:.3g}{end}"))
    if found.steepest is None or found.lowest is None:
        print("no learning rate of these lowers the loss: check the data and --model.pretrained")
    else:
        print(f"suggestion: --optimizer.learning_rate {found.steepest:.2g}, where the loss falls fastest")
        print(f"a tenth of the rate with the lowest loss: {found.lowest / 10:.2g}")


def _with_null(values: Any) -> list[float | None]:
    """For JSON, which has no NaN and no infinity."""
    return [value if math.isfinite(value) else None for value in values.tolist()]


def _rehearse(options: argparse.Namespace, config: "Config") -> None:
    start_devices(options)
    from jeffnet.system.environment import format_bytes
    from jeffnet.train.dry_run import rehearse

    done = rehearse(config, options.output, progress=True)
    if options.json:
        print(json.dumps(asdict(done) | {"seconds": done.seconds}))
        return
    print(printable(done.description))
    rows = []
    for part in done.parts:
        memory = "" if part.memory is None else format_bytes(part.memory)
        total = f"{part.seconds * part.times / 60:,.1f}"
        rows.append([part.name, f"{part.seconds:.3f}", f"{part.times:,}", total, memory])
    print(table(("part", "seconds", "times", "minutes in all", "memory"), rows))
    hours, minutes = divmod(round(done.seconds / 60), 60)
    print(f"a checkpoint has {format_bytes(done.bytes_of_checkpoint)}; nothing was kept")
    print(f"the whole run takes about {hours} h {minutes:02d} min")


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
        raise argparse.ArgumentTypeError(f"{text!r} is not whole numbers joined by commas") from None


def _report(options: argparse.Namespace, results: "list[Result]") -> None:
    from jeffnet.parallel.distributed import is_primary
    from jeffnet.validation.metrics import METRICS

    if not is_primary():
        return
    folder = Path(options.resume or options.output)
    if options.json:
        folders = [folder / f"seed_{seed}" for seed in options.seeds] if options.seeds else [folder]
        rows = [{"run": str(one), **asdict(result)} for one, result in zip(folders, results, strict=True)]
        print(json.dumps(rows if options.seeds else rows[0]))
        return
    for result in results:
        _print_result(result)
    if options.seeds:
        metric = METRICS[results[0].metric]
        scores = [getattr(result.best, result.metric) for result in results]
        spread = f", standard deviation {statistics.stdev(scores):.{metric.digits}f}" if len(scores) > 1 else ""
        print(f"mean of {len(scores)} seeds: best {metric.title} {metric.text(statistics.mean(scores))}{spread}")
    _print_files(folder)


def _print_files(folder: Path) -> None:
    for what, name in _FILES:
        if (folder / name).exists():
            print(f"{what:<10}{printable(str(folder / name))}")


def _report_folds(options: argparse.Namespace, results: "list[Result]") -> None:
    from jeffnet.parallel.distributed import is_primary
    from jeffnet.train.folds import summarize_folds
    from jeffnet.validation.metrics import METRICS

    if not is_primary():
        return
    summary = summarize_folds(results)
    if options.json:
        print(json.dumps(summary))
        return
    shown = [name for name in METRICS if name in summary["mean"]]

    def cells(scores: dict[str, Any]) -> list[str]:
        return [f"{scores[name]:.{METRICS[name].digits}f}" for name in shown]

    rows = [
        [str(row["fold"]), f"{row['best_epoch']:g}", f"{row['examples']:,}", *cells(row)] for row in summary["folds"]
    ]
    rows += [[name, "", "", *cells(summary[key])] for name, key in (("mean", "mean"), ("deviation", "std"))]
    print(table(("fold", "best epoch", "pictures", *(METRICS[name].title for name in shown)), rows))
    _print_files(Path(options.output))


def _print_result(result: "Result") -> None:
    from jeffnet.validation.metrics import METRICS

    title, text = METRICS[result.metric].title, result.text
    print(
        f"best {title} {text(result.best)} after epoch {result.best_epoch:g}, on {result.best.examples} validation "
        f"pictures; last {text(result.last)}"
    )
    if result.best_ema and result.last_ema:
        print(
            f"moving average: best {title} {text(result.best_ema)} after epoch {result.best_ema_epoch:g}; last "
            f"{text(result.last_ema)}"
        )
    if result.averaged:
        print(f"average of the best: {title} {text(result.averaged)}")


def _pairs(arguments: list[str], known: Sequence[str] = ()) -> list[tuple[str, str]]:
    """`['--epochs', '3', '--seed=1']` as names of entries and values; names in `known` are suggested too."""
    pairs, rest = [], list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise UsageError(f"{word!r} is not an option: set entries of the recipe by --name value")
        name, equals, value = word[2:].partition("=")
        entry = _entry(name, known)
        if not equals and (not rest or rest[0].startswith("--")):
            raise UsageError(f"option --{name} needs a value")
        pairs.append((entry, value if equals else rest.pop(0)))
    return pairs


def _entry(name: str, known: Sequence[str]) -> str:
    """The entry of the recipe that an option names, with dashes or underscores."""
    from jeffnet.train.recipe import entry_type

    plain = name.replace("-", "_")
    plain = {"img_size": "data.image_size", "image_size": "data.image_size"}.get(plain, plain)  # as of other commands
    entry_type(plain, name, known)  # or a UsageError
    return plain
