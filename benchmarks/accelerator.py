"""Models, layers and XLA's flags on an accelerator, within minutes: `benchmarks/accelerator.sh` starts it.

Every measurement runs in a process of its own, one after the other, the most important first: the first model at the
first batch size and dtype, its largest layers, and some variants of its inference; then the other models, variants and
layers; then the other batch sizes and dtypes. Results are written after each one, as `accelerator.json` and as a table,
`accelerator.md`. What fails is a row with its error. What there was no time for is a row, too; `--continue FILE`
measures such rows of an earlier file. Without an accelerator it measures a little on the CPU.
"""

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

NEEDED = ("numpy", "jax", "flax", "optax", "safetensors")
if missing := [name for name in NEEDED if find_spec(name) is None]:
    raise SystemExit(f"error: {sys.executable} has no {', '.join(missing)}: install it, or set PYTHON to another one")

import accelerator_report as report  # noqa: E402
import numpy as np  # noqa: E402
from accelerator_layers import layer_cases, model_elements  # noqa: E402
from accelerator_report import MEASURED, OUT_OF_TIME, Row  # noqa: E402

from jeffnet.arch.summary import count_macs, count_parameters  # noqa: E402
from jeffnet.arch.zoo import model_plan, model_preprocessing  # noqa: E402
from jeffnet.bench.child import Channel, Child, ChildError, LateError, Setting, run  # noqa: E402
from jeffnet.bench.contenders import CONTENDERS  # noqa: E402
from jeffnet.bench.measure import setting_of  # noqa: E402
from jeffnet.bench.program import Job  # noqa: E402
from jeffnet.bench.settings import TASKS, Settings  # noqa: E402
from jeffnet.cli.model import positive, positive_number  # noqa: E402
from jeffnet.errors import JeffnetError  # noqa: E402
from jeffnet.system.files import not_written  # noqa: E402

# What is measured unless it is given: on an accelerator, and on a CPU.
DEFAULTS = {
    "models": ["efficientnet_b0", "mobilenetv3_large_100", "efficientnetv2_s", "efficientnet_b4"],
    "dtypes": ["bfloat16", "float32"],
    "batch_sizes": [128, 1, 512],
}
CPU_DEFAULTS = {"models": ["efficientnet_b0"], "dtypes": ["float32"], "batch_sizes": [8, 1]}
ITEMSIZE = {"bfloat16": 2, "float32": 4}
# Other ways to run our inference: the contender, and variables of its process. XLA reads its flags when it starts.
VARIANTS: list[tuple[str, dict[str, str]]] = [
    ("functional", {"JEFFNET_CONV": "shifted"}),  # 1x1 convolutions as matrix products
    ("fused", {}),
    ("functional", {"XLA_FLAGS": "--xla_gpu_experimental_enable_conv_fusion=true"}),
    ("functional", {"XLA_FLAGS": "--xla_gpu_triton_gemm_any=true", "JEFFNET_CONV": "shifted"}),
    ("functional", {"XLA_FLAGS": "--xla_gpu_force_conv_nhwc=true"}),
    ("functional", {"XLA_FLAGS": "--xla_gpu_enable_command_buffer="}),
    ("functional", {"XLA_FLAGS": "--xla_gpu_enable_triton_gemm=false", "JEFFNET_CONV": "shifted"}),
    ("functional", {"XLA_FLAGS": "--xla_gpu_enable_latency_hiding_scheduler=true"}),
    ("functional", {"XLA_FLAGS": "--xla_gpu_autotune_level=0"}),
]
# Rows of layers and of variants that are measured before other models.
FIRST_LAYERS, FIRST_VARIANTS = 24, 4
_PREPARED = 300.0  # seconds that preparing a model may take
_LEAST = 1.0  # seconds: with less than that left, time is over


def plan_rows(options: argparse.Namespace) -> list[Row]:
    """All measurements, in their order.

    Raises:
      JeffnetError: there are none, or there is no such model.
    """
    cases = itertools.product(options.dtypes, options.batch_sizes, options.tasks, options.models, options.contenders)
    models = [
        _model_row(model, options.image_size, task, dtype, batch, contender)
        for dtype, batch, task, model, contender in cases
        if task in CONTENDERS[contender].tasks
    ]
    if not models:
        raise JeffnetError(f"{', '.join(options.contenders)}: no training, give another of --contenders")
    near = [row for row in models if (row.dtype, row.batch_size) == (options.dtypes[0], options.batch_sizes[0])]
    first = [row for row in near if row.what == options.models[0]]
    layers = _layer_rows(options, first[0].image_size)
    variants = [
        replace(first[0], by=contender, environment=environment)
        for contender, environment in VARIANTS[: options.variants]
        if first[0].task in CONTENDERS[contender].tasks
    ]
    early = *first, *layers[:FIRST_LAYERS], *variants[:FIRST_VARIANTS]
    ordered = *early, *near, *variants, *layers, *models
    return list({row.key: row for row in ordered}.values())


def _model_row(model: str, size: int | None, task: str, dtype: str, batch: int, contender: str) -> Row:
    plan, passes = model_plan(model), 3 if task == "training" else 1
    size = size or model_preprocessing(model).image_size
    numbers = passes * (model_elements(plan, size) * batch + count_parameters(plan))
    macs = passes * count_macs(plan, size) * batch
    return Row("model", model, size, task, dtype, batch, contender, bytes=ITEMSIZE[dtype] * numbers, macs=macs)


def _layer_rows(options: argparse.Namespace, size: int) -> list[Row]:
    """Rows of the first model's layers, at the first batch size and dtype."""
    dtype, batch = options.dtypes[0], options.batch_sizes[0]
    return [
        Row(
            "layer", case.name, size, "inference", dtype, batch, form,
            bytes=case.bytes(batch, ITEMSIZE[dtype]), macs=case.macs * batch, count=case.count,
        )
        for case in layer_cases(model_plan(options.models[0]), size)[: options.layers]
        for form in case.forms
    ]  # fmt: skip


class Bench:
    """Measures rows, until the time is over."""

    def __init__(self, options: argparse.Namespace, deadline: float, platform: str, folder: str) -> None:
        self.options, self.deadline, self.platform, self.folder = options, deadline, platform, Path(folder)
        self.settings = Settings()
        self.prepared: dict[str, str | None] = {}
        self.torch: str | None = None
        self.layers: Child | None = None

    def measure(self, rows: Sequence[Row], written: Callable[[], None]) -> None:
        """Measure those that are not measured yet; `written` is called after each."""
        try:
            for number, row in enumerate(rows):
                if row.outcome != OUT_OF_TIME:
                    continue
                if self._left() < _LEAST:
                    break
                self._fill(row, rows, number)
                written()
                result = f"{1e3 * row.seconds:.3f} ms" if row.seconds else row.outcome
                name = " ".join(map(str, row.key[1:]))
                print(f"{max(0.0, self._left()):4.0f} s left: {name}: {result}", file=sys.stderr, flush=True)
        finally:
            self._close_layers()

    def _fill(self, row: Row, rows: Sequence[Row], number: int) -> None:
        try:
            if row.kind == "layer":
                self._layer(row)
            else:
                self._close_layers()  # it keeps memory of the device
                self._model(row, next(i for i, each in enumerate(rows) if each.case == row.case), number)
            row.outcome = MEASURED
        except LateError as error:
            # It had all the time that was left, or all that one measurement may take.
            row.outcome = OUT_OF_TIME if self._left() < _LEAST else str(error)
        except ChildError as error:
            unknown = "Unknown flag" in str(error)
            reason = str(error) if error.expected else f"failed: {error}"
            row.outcome = "this jaxlib does not know the flag" if unknown else reason

    def _model(self, row: Row, first: int, number: int) -> None:
        contender = CONTENDERS[row.by]
        if absent := contender.missing():
            raise ChildError(absent, expected=True)
        if "torch" in contender.packages:
            self._check_torch()
        self._prepare(row)
        folder, answers = self.folder / row.what, self.folder / f"{number}.npy"
        job = Job(
            model=row.what, task=row.task, batch_size=row.batch_size, dtype=row.dtype, image_size=row.image_size,
            program=contender.program, folder=str(folder), threads=len(self.settings.processors), answers=str(answers),
        )  # fmt: skip
        cache = {"TORCHINDUCTOR_CACHE_DIR": str(self.folder / f"inductor_{number}")}
        setting = self._setting({**cache, **contender.environment, **row.environment})
        with closing(Child("jeffnet.bench.worker:serve", asdict(job), setting)) as child:
            described = child.receive(self._limit())
            reply = child.ask({"seconds": self.options.seconds}, self._limit())
        row.seconds, row.peak_bytes = statistics.median(reply["seconds"]), reply["peak_bytes"]
        row.compile_seconds = described["create_seconds"] + described["compile_seconds"]
        if first != number and (reference := self.folder / f"{first}.npy").exists():
            row.difference = _difference(row.task, np.load(answers), np.load(reference))

    def _check_torch(self) -> None:
        """Raise ChildError unless torch finds the same device: compiling on a CPU would take all the time."""
        if self.torch is None:
            found = run("accelerator:torch_platform", {}, self._setting({}), self._limit())
            self.torch = found["platform"]
        if self.torch != self.platform:
            raise ChildError(f"torch runs on the {self.torch} here, JAX on the {self.platform}", expected=True)

    def _prepare(self, row: Row) -> None:
        """Write the model's weights and pictures, once."""
        if row.what not in self.prepared:
            folder = self.folder / row.what
            folder.mkdir(exist_ok=True)
            arguments = {
                "folder": str(folder), "model": row.what, "weights": None, "image_sizes": [row.image_size],
                "batch_sizes": self.options.batch_sizes, "registered": None,
                "tasks": [],  # no reference answers: on the CPU they would take minutes
            }  # fmt: skip
            setting = self._setting({"JAX_PLATFORMS": "cpu", "JEFFNET_CONV": "xla"})
            self.prepared[row.what] = None
            try:
                run("jeffnet.bench.prepare:prepare", arguments, setting, min(_PREPARED, max(0.0, self._left())))
            except ChildError as error:
                if self._left() < _LEAST:
                    raise
                self.prepared[row.what] = str(error)
        if reason := self.prepared[row.what]:
            raise ChildError(f"the model cannot be prepared: {reason}")

    def _layer(self, row: Row) -> None:
        """Layers that follow each other share a process, unless one fails."""
        try:
            if self.layers is None:
                arguments = {name: getattr(row, name) for name in ("image_size", "batch_size", "dtype")}
                arguments["model"] = self.options.models[0]
                self.layers = Child("accelerator_layers:serve", arguments, self._setting({}))
                self.layers.receive(self._limit())
            request = {"layer": row.what, "form": row.by, "seconds": self.options.seconds / 10}
            row.seconds = self.layers.ask(request, self._limit())["seconds"]
        except ChildError:
            self._close_layers()
            raise

    def _close_layers(self) -> None:
        if self.layers is not None:
            self.layers.close()
            self.layers = None

    def _setting(self, extra: dict[str, str]) -> Setting:
        if flags := extra.get("XLA_FLAGS"):
            extra = {**extra, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()}
        return setting_of(self.settings, extra)

    def _left(self) -> float:
        return self.deadline - time.monotonic()

    def _limit(self) -> float:
        return max(0.0, min(self._left(), self.options.limit))


def _difference(task: str, answers: np.ndarray, reference: np.ndarray) -> float | None:
    """The largest: of logits, as a share of the largest one; of the losses before and after a step."""
    if task == "training":
        found = np.abs(answers / reference - 1).max()
    else:
        found = np.abs(answers - reference).max() / np.abs(reference).max()
    return float(found) if np.isfinite(found) else None


def torch_platform(arguments: dict[str, Any], channel: Channel) -> None:
    """Send the `platform` that torch finds, 'gpu' or 'cpu'."""
    import torch

    channel.send({"platform": "gpu" if torch.cuda.is_available() else "cpu"})


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """The header of the results; completes the options by what suits the device."""
    with closing(Child("jeffnet.bench.machine:serve", {}, setting_of(Settings()))) as child:
        found = child.receive(options.limit)
        for name, value in (CPU_DEFAULTS if found["platform"] == "cpu" else DEFAULTS).items():
            if getattr(options, name) is None:
                setattr(options, name, value)
        request = {"seconds": min(options.seconds, 0.5)}
        peaks = {dtype: child.ask({"dtype": dtype, **request}, options.limit) for dtype in options.dtypes}
    return report.header(found, peaks)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    contenders = [name for name, contender in CONTENDERS.items() if contender.prepares is None]
    parser.add_argument("--output", type=Path, default=Path("build/accelerator"), metavar="FOLDER")
    parser.add_argument("--minutes", type=positive_number, default=8.0, help="for everything (default: %(default)s)")
    parser.add_argument(
        "--continue", type=Path, dest="earlier", metavar="FILE", help="accelerator.json of an earlier run"
    )
    parser.add_argument("--models", nargs="+", metavar="MODEL", help=f"(default: {' '.join(DEFAULTS['models'])})")
    parser.add_argument("--image-size", type=positive, metavar="N", help="(default: the model's)")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--dtypes", nargs="+", choices=ITEMSIZE, help="(default: bfloat16 float32)")
    parser.add_argument("--batch-sizes", nargs="+", type=positive, metavar="N", help="(default: 128 1 512)")
    parser.add_argument("--contenders", nargs="+", choices=contenders, default=["functional", "torch-compile"])
    parser.add_argument("--layers", type=int, metavar="N", help="of the first model, the largest ones (default: all)")
    text = "of the first model and task, the first ones (default: all)"
    parser.add_argument("--variants", type=int, metavar="N", help=text)
    parser.add_argument("--seconds", type=positive_number, default=1.0, help="of a measurement (default: %(default)s)")
    text = "seconds that one may take until it is given up (default: %(default)s)"
    parser.add_argument("--limit", type=positive_number, default=180.0, metavar="SECONDS", help=text)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the table."""
    deadline = time.monotonic()
    options = parse(arguments)
    deadline += 60 * options.minutes
    try:
        head = machine(options)
        if head["platform"] == "cpu":
            print("JAX found no accelerator: this measures a little on the CPU", file=sys.stderr)
        rows = plan_rows(options)
        if options.earlier:
            report.take_over(rows, options.earlier, head)
        try:
            options.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise not_written(options.output, error) from None
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}

        def write() -> None:
            report.write(options.output, head, settings, rows)

        write()
        with tempfile.TemporaryDirectory(prefix="accelerator-") as folder:
            Bench(options, deadline, head["platform"], folder).measure(rows, write)
    except (JeffnetError, ChildError) as error:
        raise SystemExit(f"error: {error}") from None
    print((options.output / "accelerator.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
