"""`jeffnet validate`: score models on labelled pictures."""

import argparse
import contextlib
import json
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jeffnet.arch.preprocessing import CROP_MODES
from jeffnet.cli.devices import add_device_options, add_process_options, connect, start_devices
from jeffnet.cli.model import (
    DATA_TEXT,
    add_backend_options,
    add_crop_options,
    add_model_file_option,
    add_source_options,
    add_switch,
    add_table_options,
    check_model_file,
    image_size,
    local_path,
    model_name,
    positive,
)
from jeffnet.cli.parser import usage
from jeffnet.cli.text import table
from jeffnet.data.choices import LOADERS, RESIZES, SUBSETS
from jeffnet.errors import JeffnetError, OutputError, UsageError
from jeffnet.inference.choices import EXPLANATIONS
from jeffnet.text.names import counted, printable, printable_lines

if TYPE_CHECKING:
    from jeffnet.validation.candidates import Candidate
    from jeffnet.validation.settings import Settings

# Percentage points by which a score may differ from the published one.
_TOLERANCE = 0.1
_SHOWN_MISTAKES = 24


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "validate",
        parents=[common],
        help="score models on labelled pictures",
        description="Compute loss, top-1 and top-5 on labelled pictures. Every picture counts exactly once.",
    )
    parser.add_argument("data", help=DATA_TEXT)
    _add_model_options(parser.add_argument_group("model"))
    _add_data_options(parser.add_argument_group("data"))
    tables = parser.add_argument_group("data sets that are tables")
    add_table_options(tables)
    text = "text between several labels in a cell, such as ';'"
    tables.add_argument("--label-separator", metavar="TEXT", help=text)
    _add_pixel_options(parser.add_argument_group("pixels (default: the model's)"))
    _add_output_options(parser.add_argument_group("output"))
    add_device_options(parser)
    add_process_options(parser)
    parser.set_defaults(run=run)


def _add_model_options(group: Any) -> None:
    group.add_argument(
        "--model",
        metavar="NAMES",
        help="a name, wildcards ('tf_*_b[0-3]'), several of them separated by commas, or `all` models with published "
        "weights; required unless the weights name their model",
    )
    group.add_argument(
        "--weights",
        metavar="SOURCE",
        help="a file or checkpoint in any format, hf:owner/name, or a URL; {model} stands for the name of the model "
        "(default: the published weights)",
    )
    add_model_file_option(group)
    text = "number of classes that the weights must have (default: any)"
    group.add_argument("--num-classes", type=positive, metavar="N", help=text)
    add_backend_options(group)
    text = "pictures per batch on every host, or `auto` (default)"
    group.add_argument("--batch-size", type=_batch_size, default="auto", help=text)
    text = "how devices share the work, such as data=2 (default: all of them)"
    group.add_argument("--mesh", default="auto", help=text)
    text = "test-time pooling, for pictures larger than in training"
    group.add_argument("--test-pool", action="store_true", help=text)
    group.add_argument("--no-jit", action="store_true", help="run operation by operation, not compiled")


def _add_data_options(group: Any) -> None:
    group.add_argument(
        "--loader",
        choices=LOADERS,
        default="grain",
        help="grain; tf: TensorFlow, with the pixels of the papers' authors; pt: PyTorch's DataLoader, with the pixels "
        "of grain and timm (default: %(default)s)",
    )
    add_source_options(group)
    text = "JSON or CSV that maps the data set's classes to the model's"
    group.add_argument("--label-map", type=local_path, metavar="FILE", help=text)
    text = "ImageNet's reassessed labels (ReaL's real.json)"
    group.add_argument("--real-labels", type=local_path, metavar="FILE", help=text)
    group.add_argument("--subset", choices=SUBSETS, help="predict only these classes; data: those of the data set")


def _add_pixel_options(group: Any) -> None:
    group.add_argument(
        "--img-size", "--image-size", dest="size", type=image_size, metavar="PIXELS", help="side, or HEIGHTxWIDTH"
    )
    add_crop_options(group)
    group.add_argument("--crop-mode", choices=CROP_MODES, help="as in timm")
    add_switch(group, "--exif", False, "rotate pictures by their EXIF orientation, which timm and TensorFlow do not")
    group.add_argument(
        "--tf-resize",
        choices=RESIZES,
        help="with --loader tf: legacy, as in the papers' evaluation (default of tf_ models); half_pixel and "
        "antialias, as in TensorFlow 2; pillow, at the positions of Pillow's pixels (default of other models)",
    )


def _add_output_options(group: Any) -> None:
    text = "print one object, or an array for several models, as the last line"
    group.add_argument("--json", action="store_true", help=text)
    text = ".csv or .json to add a row per model to; models that it already has are not run again"
    group.add_argument("--results", type=local_path, metavar="FILE", help=text)
    text = f"fail if a top-1 differs from the published one by over {_TOLERANCE} points (ImageNet's validation set)"
    group.add_argument("--check", action="store_true", help=text)
    text = ".csv or .parquet; {model} stands for the name of the model"
    group.add_argument("--save-predictions", type=local_path, metavar="FILE", help=text)
    text = "folder for figures and tables: confusion, calibration, classes, most confident mistakes"
    group.add_argument("--report", type=local_path, metavar="DIR", help=text)
    text = "show in the report what the model looked at when it made these mistakes"
    group.add_argument("--explain", choices=EXPLANATIONS, help=text)


def run(options: argparse.Namespace) -> None:
    """Validate, and print the scores."""
    # Usage and weights are looked at before JAX is imported, unless other processes may wait for this one.
    several = options.coordinator or options.num_processes not in (None, 1) or options.process_id is not None
    prepared = None if several else _prepared(options, find=True)

    from jeffnet.parallel.distributed import lost_processes_reported, wait_for_all

    if options.loader == "tf" and options.arguments is None:
        from jeffnet._tensorflow import hide_gpus

        with contextlib.suppress(ImportError):  # the loader raises a better one
            hide_gpus()
    connect(options)
    with lost_processes_reported():
        _run(options, *(prepared or _prepared(options, find=False)))
        wait_for_all()  # the first process may still be writing files


def _prepared(options: argparse.Namespace, find: bool) -> "tuple[list[Candidate], Settings]":
    """The models and the settings; with `find`, the weights of a single model are found."""
    from dataclasses import replace

    from jeffnet.validation.candidates import select_models

    check_model_file(options)
    pattern = options.model and ",".join(map(model_name, options.model.split(",")))
    candidates, settings = select_models(pattern, options.weights, options.model_file), _settings(options)
    _check_outputs(options, len(candidates))
    if find and len(candidates) == 1 and not options.model_file and not options.results:  # whose row may do
        from jeffnet.weights.load import describe_weights

        found, _ = describe_weights(candidates[0].weights or True, candidates[0].name)
        candidates = [replace(candidates[0], found=found)]
    return candidates, settings


def _run(options: argparse.Namespace, candidates: "list[Candidate]", settings: "Settings") -> None:
    from jeffnet.export.run import content_hash
    from jeffnet.parallel.distributed import check_agreement, is_primary
    from jeffnet.validation.results import ResultsFile
    from jeffnet.validation.validate import stated_settings, validate

    start_devices(options)
    local = ("run", "process_id", "debug", "arguments")
    check_agreement({f"--{name.replace('_', '-')}": text for name, text in vars(options).items() if name not in local})
    results = ResultsFile(options.results) if options.results else None
    rows, failures, waiting = [], [], []
    for candidate in candidates:
        digest = content_hash(candidate.file) if results and candidate.file else None
        stated = stated_settings(candidate, settings)
        row = results.find(candidate.name, candidate.source, stated, digest) if results else None
        if row:
            text = f"{row['model']}: already in {options.results}"
            if candidate.weights and os.path.exists(candidate.weights):
                text += f"; if {candidate.weights} has changed since, remove its row"
            print(printable(text), file=sys.stderr)
            rows.append(row)
        else:
            waiting.append(candidate)
    single = len(candidates) == 1
    for outcome in validate(waiting, settings, progress=True, keep_going=not single, check=options.check):
        if isinstance(outcome, tuple):
            candidate, error = outcome
            failures.append(candidate.name)
            print(printable_lines(f"{candidate.name}: {error}"), file=sys.stderr)
            continue
        rows.append(outcome.row)
        if not is_primary():
            continue
        report = _write_files(options, outcome, single)
        if results:  # after the files: a model that has a row is not run again
            results.add(outcome.row)
        if report:  # last: nothing is lost if standard error is closed
            print(f"report: {printable(str(report))}", file=sys.stderr)
        if options.json or not single:
            print(describe(outcome.row), file=sys.stderr)
        if skipped := outcome.answers.skipped:
            names = [f"  {printable(outcome.name(index))}" for index in skipped]
            print(
                f"skipped {counted(len(skipped), 'picture')} that cannot be decoded:", *names, sep="\n", file=sys.stderr
            )
    if is_primary():
        _print_rows(options, rows, single)
    if failures:
        raise JeffnetError(f"{len(failures)} of {len(candidates)} models could not be validated: {', '.join(failures)}")
    if options.check:
        _check_scores(rows)


def describe(row: dict[str, Any]) -> str:
    """A result as text."""
    pre = row["preprocessing"]
    size = pre["image_size"] if isinstance(pre["image_size"], int) else "x".join(map(str, pre["image_size"]))
    lines = [
        printable(f"{row['model']} on {counted(row['num_examples'], row['split'] + ' picture')} of {row['data']}"),
        *_scores(row),
        f"{size} px, crop {pre['crop_pct']} {pre['crop_mode']}, {pre['interpolation']}"
        + (f" ({pre['resize']})" if "resize" in pre else "")
        + f", mean {tuple(pre['mean'])}, std {tuple(pre['std'])}, EXIF orientation "
        + ("applied" if pre.get("exif") else "not applied"),
    ]
    if "computed_by" in row:  # which rows of earlier versions lack
        lines.append(f"computed by {row['computed_by']}")
    if row["published_top1"] is not None:
        lines.append(f"published: top-1 {row['published_top1']:.3f} %, difference {row['top1_difference']:+.3f}")
    return "\n".join(lines)


# Lines of scores, and how they are written; a row has those of its task.
_SCORES = (
    {"top1": "top-1 {:.3f} %", "top5": "top-5 {:.3f} %", "mean_average_precision": "mAP {:.3f} %", "mae": "MAE {:.4f}"}
    | {"r2": "R2 {:.4f}", "loss": "loss {:.4f}"},
    {"balanced_accuracy": "balanced accuracy {:.3f} %", "macro_f1": "macro F1 {:.3f} %"},
)


def _scores(row: dict[str, Any]) -> list[str]:
    """Scores as text; those in which all classes count alike are not in rows of earlier versions."""
    lines = ([form.format(row[name]) for name, form in line.items() if row.get(name) is not None] for line in _SCORES)
    return ["  ".join(line) for line in lines if line]


def _settings(options: argparse.Namespace) -> "Settings":
    from jeffnet.validation.settings import Settings

    derived = ("jit", "mistakes")  # from options of other names
    chosen = {field.name: getattr(options, field.name) for field in fields(Settings) if field.name not in derived}
    with usage():
        return Settings(**chosen, jit=not options.no_jit, mistakes=_SHOWN_MISTAKES if options.report else 0)


def _check_outputs(options: argparse.Namespace, models: int) -> None:
    from jeffnet.validation.results import check_predictions_path

    if options.explain and not options.report:
        raise UsageError("--explain draws into --report: give its folder too")
    if options.report and Path(options.report).exists() and not Path(options.report).is_dir():
        raise OutputError(f"--report {options.report!r} is a file: give the name of a folder")
    if options.save_predictions:
        if models > 1 and "{model}" not in options.save_predictions:
            raise UsageError(
                f"--save-predictions {options.save_predictions!r}: put {{model}} into the name for several models"
            )
        check_predictions_path(options.save_predictions)


def _write_files(options: argparse.Namespace, outcome: Any, single: bool) -> Path | None:
    """Write the predictions and the report if asked; returns the report's folder, if there is one."""
    from jeffnet.validation.report import write_report
    from jeffnet.validation.results import save_predictions

    model = outcome.row["model"]
    if options.save_predictions:
        save_predictions(options.save_predictions.replace("{model}", model), outcome)
    if not options.report or not len(outcome.answers.predictions.index):
        return None
    folder = Path(options.report) if single else Path(options.report) / model
    write_report(folder, outcome)
    return folder


def _print_rows(options: argparse.Namespace, rows: list[dict[str, Any]], single: bool) -> None:
    if options.json:
        print(json.dumps(rows[0] if single else rows))
    elif single:
        print(describe(rows[0]))
    elif rows:
        head = ("model", "top-1, %", "top-5, %", "loss", "pictures", "pictures/s", "to published")
        print(table(head, [_cells(row) for row in rows]))


def _cells(row: dict[str, Any]) -> list[str]:
    formats = {"model": "", "top1": ".3f", "top5": ".3f", "loss": ".4f", "num_examples": "", "images_per_second": ".1f"}
    difference = "" if row["published_top1"] is None else f"{row['top1_difference']:+.3f}"
    cells = ("" if row[name] is None else format(row[name], form) for name, form in formats.items())
    return [*cells, difference]


def _check_scores(rows: list[dict[str, Any]]) -> None:
    from jeffnet.validation.validate import check_published

    check_published({row["model"]: row["published_top1"] for row in rows})
    off = [row for row in rows if abs(row["top1_difference"]) > _TOLERANCE]
    if off:
        listed = ", ".join(f"{row['model']} by {row['top1_difference']:+.3f}" for row in off)
        raise JeffnetError(f"top-1 differs from the published score by more than {_TOLERANCE} points: {listed}")


def _batch_size(text: str) -> int | str:
    return text if text == "auto" else positive(text)
