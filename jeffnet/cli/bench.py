"""`jeffnet bench`: measure models."""

import argparse
import json
import sys
from typing import Any

from jeffnet.backends import BACKENDS, DTYPES
from jeffnet.bench.contenders import PEERS
from jeffnet.bench.settings import TASKS
from jeffnet.cli.devices import add_device_options
from jeffnet.cli.model import add_switch, local_path, model_name, positive, positive_number
from jeffnet.cli.parser import usage
from jeffnet.cli.scaling import add_scaling_options, run_scaling
from jeffnet.cli.text import table
from jeffnet.errors import JeffnetError, UsageError
from jeffnet.system.figures import FORMS
from jeffnet.system.files import check_output
from jeffnet.system.progress import progress_line


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "bench",
        parents=[common],
        usage="jeffnet bench MODEL [MODEL ...] [options]",
        help="measure speed and memory, beside other frameworks",
        description="Measure throughput, latency, compile time and memory of models and of the same models in other "
        "frameworks, in separate processes that take turns; see docs/benchmarking.md.",
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="names, wildcards ('tf_*_b[0-3]'), or `all`")
    text = "as for `jeffnet validate` (default: random weights, which are as fast)"
    parser.add_argument("--weights", metavar="SOURCE", help=text)
    _add_case_options(parser.add_argument_group("what"))
    _add_turn_options(parser.add_argument_group("how"))
    add_device_options(parser)
    add_scaling_options(parser.add_argument_group("over several devices"))
    _add_output_options(parser.add_argument_group("output"))
    parser.set_defaults(run=run)


def _add_case_options(group: Any) -> None:
    group.add_argument("--task", choices=(*TASKS, "both"), default="inference", help="(default: %(default)s)")
    group.add_argument("--batch-size", nargs="+", type=positive, default=(1, 16), metavar="N", help="(default: 1 16)")
    group.add_argument("--dtype", nargs="+", choices=DTYPES, default=("float32",), help="(default: float32)")
    group.add_argument(
        "--image-size", "--img-size", nargs="+", type=positive, default=(), metavar="N", help="(default: the model's)"
    )
    group.add_argument("--backend", nargs="+", choices=BACKENDS, default=("linen",), help="(default: linen)")
    add_switch(group, "--fused", True, "jeffnet.inference.fused, for inference")
    text = f"the same models in {', '.join(PEERS)}; exported files (of --weights); or `all`"
    group.add_argument("--compare", metavar="PEER,...", default="", help=text)
    group.add_argument("--baseline", metavar="NAME", help="contender whose speed is 1 (default: the first backend)")


def _add_turn_options(group: Any) -> None:
    group.add_argument("--threads", type=positive, metavar="N", help="threads per contender (default: all processors)")
    group.add_argument("--repeats", type=positive, default=5, metavar="N", help="rounds (default: %(default)s)")
    group.add_argument("--seconds", type=positive_number, default=0.5, help="length of a turn (default: %(default)s)")
    add_switch(group, "--peak", True, "also measure the machine, by a large matrix product and a large copy")


def _add_output_options(group: Any) -> None:
    text = "price of the machine; shows the cost of a million images"
    group.add_argument("--price-per-hour", type=positive_number, metavar="X", help=text)
    text = "power of the machine; shows the kWh of a million images"
    group.add_argument("--watts", type=positive_number, metavar="W", help=text)
    group.add_argument("--csv", type=local_path, metavar="FILE", help="table of results, rewritten after every case")
    group.add_argument("--json", action="store_true", help="print one object, with the seconds of every call")
    text = "draw published top-1 against throughput: .png, .jpg, .pdf, .svg, ..."
    group.add_argument("--plot", type=local_path, metavar="FILE", help=text)


def run(options: argparse.Namespace) -> None:
    """Measure, and print."""
    from jeffnet.bench.measure import bench
    from jeffnet.bench.plot import draw, points_of, title_of
    from jeffnet.bench.report import Prices, device_of, document_of, write_csv

    settings, prices = _settings(options), Prices(options.price_per_hour, options.watts)
    candidates = _candidates(options)
    if settings.files and options.weights is None:
        raise UsageError(
            f"--compare {settings.files[0]}: also give --weights, the weights that the file was exported from (for the "
            "published ones, the name of the model)"
        )
    if options.scaling:
        if len(candidates) != 1 or options.weights:
            raise UsageError("--scaling takes the name of one model, and no weights")
        with progress_line() as progress:
            run_scaling(options, candidates[0].name, settings, progress)
        return
    for path, endings in ((options.csv, [".csv"]), (options.plot, FORMS)):
        if path is not None:
            check_output(path, endings)
    results = []
    with progress_line() as progress:
        for result in bench(candidates, settings, progress):
            results.append(result)
            if options.csv:
                write_csv(options.csv, results, prices)
    if options.json:
        print(json.dumps(document_of(results, settings, prices)))
    else:
        _print(results, prices)
    if options.plot:
        if points := points_of(results):
            draw(points, options.plot, title_of(results), device_of(results, settings))
        else:
            print(f"{options.plot}: not drawn, since no measured model has a published score", file=sys.stderr)
    _check(results)


def _candidates(options: argparse.Namespace) -> list:
    from jeffnet.validation.candidates import Candidate, select_models

    if not options.models and options.weights is None:
        raise UsageError("give the name of a model, wildcards, or --weights SOURCE; `jeffnet list` shows the models")
    # Without a source, wildcards would only match models with published weights.
    selected = select_models(",".join(map(model_name, options.models)) or None, options.weights or "{model}")
    return selected if options.weights else [Candidate(candidate.name) for candidate in selected]


def _settings(options: argparse.Namespace):
    from jeffnet.bench.settings import Settings

    names = ("fused", "baseline", "threads", "repeats", "seconds", "peak", "device", "num_devices")
    with usage():
        return Settings(
            tasks=TASKS if options.task == "both" else (options.task,),
            batch_sizes=tuple(options.batch_size),
            dtypes=tuple(options.dtype),
            image_sizes=tuple(options.image_size),
            backends=tuple(options.backend),
            compare=PEERS if options.compare == "all" else tuple(filter(None, options.compare.split(","))),
            **{name: getattr(options, name) for name in names},
        )


def _print(results: list, prices: Any) -> None:
    from jeffnet.bench.report import notes_of, table_of

    shared, head, cells = table_of(results, prices)
    if cells:
        print(shared)
        print(table(head, cells))
    for line in notes_of(results):
        print(line)


def _check(results: list) -> None:
    """Raises JeffnetError if a contender failed or disagreed, or nothing was measured."""
    wrong = [
        f"{measured.contender} ({result.case.model}, {result.case.task}, {result.case.dtype}) by "
        f"{measured.difference:.1e}"
        for result in results
        for measured in result.measured
        if not result.agrees(measured)
    ]
    failed = {failure.contender for result in results for failure in result.failures if not failure.expected}
    faults = []
    if wrong:
        faults.append(f"answers differ: {', '.join(wrong)}")
    if failed:
        faults.append(f"failed: {', '.join(sorted(failed))}")
    if not any(result.measured for result in results):
        faults.append("nothing could be measured")
    if faults:
        raise JeffnetError("; ".join(faults))
