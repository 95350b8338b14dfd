"""`jeffnet data`: what a data set holds, before one trains on it."""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from jeffnet.cli.model import local_path, positive, whole
from jeffnet.cli.text import table
from jeffnet.system import figures
from jeffnet.system.files import check_not_read, check_output
from jeffnet.text.names import listed, printable, printable_lines

if TYPE_CHECKING:
    from jeffnet.data.inspection import Duplicates, Inspection

_MOST_LINES = 20  # of broken files, and of duplicates; --json has all


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "data",
        parents=[common],
        help="check a data set: broken files, sizes, classes, duplicates",
        description="Read every picture of a data set once, and report broken files, sizes, formats, classes, "
        "duplicates within and between splits, and the mean and standard deviation of pixels. An interrupted command "
        "goes on where it stopped.",
    )
    text = "image folder with train/<class>/ and val/<class>/, or what `jeffnet validate` takes"
    parser.add_argument("data", help=text)
    text = "splits to read, joined by commas (default: %(default)s)"
    parser.add_argument("--split", default="train,val", metavar="NAMES", help=text)
    text = "how many of 64 bits may differ in the perceptual hashes of near duplicates, 0 to 7 (default: %(default)s)"
    parser.add_argument("--near", type=whole, default=6, metavar="BITS", help=text)
    text = "threads that read pictures (default: one for each processor)"
    parser.add_argument("--threads", type=positive, metavar="N", help=text)
    parser.add_argument("--data-dir", metavar="DIR", help="folder of prepared TensorFlow Datasets")
    text = "draw class counts, sizes, examples and duplicates on one page"
    parser.add_argument("--output", type=local_path, metavar="FILE", help=text)
    parser.add_argument("--json", action="store_true", help="print the whole report as one object")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Inspect, and print the report."""
    from jeffnet.cli.parser import usage
    from jeffnet.data.inspection import inspect_data

    if options.output:
        check_output(options.output, figures.FORMS)
        check_not_read(options.output, [options.data])
    splits = [name for name in options.split.split(",") if name]
    settings = {name: getattr(options, name) for name in ("near", "threads", "data_dir")}
    try:
        with usage():
            report = inspect_data(options.data, splits, progress=True, **settings)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where it stopped", file=sys.stderr)
        raise SystemExit(130) from None
    if options.output:
        from jeffnet.data.inspection.page import draw_page

        draw_page(report, options.output)
    if options.json:
        print(json.dumps(report.entries()))
        return
    for line in _lines(report):
        print(printable_lines(line))
    if options.output:
        print(f"page: {printable(options.output)}")


def _lines(report: "Inspection") -> Iterator[str]:
    """The report for a person to read."""
    head = (
        "split",
        "pictures",
        "broken",
        "classes",
        "fewest in a class",
        "median",
        "most",
        "EXIF-turned",
        "one colour",
    )
    yield table(head, [_counts(name, split) for name, split in report.splits.items()])
    for name, error in report.unopened.items():
        yield f"{name} is not read: {error}"
    for name, split in report.splits.items():
        if split.width:
            yield ""
            yield f"{name}: width {_spread(split.width)}; height {_spread(split.height)}"
            yield f"{name}: {_parts(split.formats, 'pixels alone')}; {_parts(split.modes)}"
            yield f"{name}: mean {_numbers(split.mean)}, std {_numbers(split.std)}"
        if len({*split.classes} ^ {*next(iter(report.splits.values())).classes}):
            yield f"{name}: {_differing(report, name)}"
    broken = [f"{picture.split}: {picture.name}: {picture.reason}" for picture in report.broken]
    yield from _section("broken pictures", broken)
    for what, groups in (
        ("groups of the same file", report.duplicates),
        ("groups that look the same", report.near_duplicates),
    ):
        yield from _section(what, list(map(_described, groups)), groups)


def _counts(name: str, split: Any) -> list[str]:
    counts = list(split.classes.values())
    numbers = (split.pictures, split.broken, len(counts), min(counts), statistics.median(counts), max(counts))
    return [name, *(f"{number:,g}" for number in (*numbers, split.turned, len(split.flat)))]


def _spread(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:,.0f}" for name, value in values.items())


def _parts(counts: dict[str, int], unnamed: str = "") -> str:
    return ", ".join(f"{count:,} {name or unnamed}" for name, count in counts.items())


def _numbers(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


def _differing(report: "Inspection", name: str) -> str:
    first = next(iter(report.splits))
    ours, theirs = ({*report.splits[split].classes} for split in (name, first))
    parts = [(f"only in {name}", ours - theirs), (f"only in {first}", theirs - ours)]
    return "classes " + "; ".join(f"{what}: {listed(sorted(names))}" for what, names in parts if names)


def _section(what: str, lines: Sequence[str], groups: "Sequence[Duplicates]" = ()) -> Iterator[str]:
    """A heading with numbers, and the first lines."""
    across = [
        f"{count:,} {where}"
        for where, count in (
            ("across splits", sum(group.across_splits for group in groups)),
            ("across classes", sum(group.across_classes for group in groups)),
        )
        if count
    ]
    yield ""
    yield f"{what}: {len(lines):,}" + (f" ({', '.join(across)})" if across else "")
    yield from (f"  {line}" for line in lines[:_MOST_LINES])
    if len(lines) > _MOST_LINES:
        yield f"  and {len(lines) - _MOST_LINES:,} more; --json has all"


def _described(group: "Duplicates") -> str:
    names = [picture.name for picture in group.pictures]
    how = "" if group.bits is None else f"  ({group.bits} bits differ)"
    return " = ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") + how
