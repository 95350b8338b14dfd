"""The benchmark: contenders in separate processes take turns, round by round."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jeffnet.arch.spec import spec_attributes
from jeffnet.arch.zoo import model_preprocessing, own_spec
from jeffnet.bench.child import Child, ChildError, Setting, run
from jeffnet.bench.contenders import find_contender
from jeffnet.bench.program import COMPARED, Job, reference_file
from jeffnet.bench.results import CaseResult, Failure, Measured
from jeffnet.bench.settings import Case, Settings
from jeffnet.errors import JeffnetError
from jeffnet.system.devices import jax_platforms
from jeffnet.validation.candidates import Candidate

# After a turn, threads of some runtimes wait for more work, busily, for some hundredths of a second.
_REST = 0.1

Progress = Callable[[str], None]


def bench(
    candidates: Sequence[Candidate], settings: Settings, progress: Progress = lambda text: None
) -> Iterator[CaseResult]:
    """Measure models, which get random weights if they have none.

    Args:
      candidates: models, with their weights if any.
      settings: what to measure, and beside what.
      progress: called with a line for each step.

    Yields:
      The result of each case: of each model, image size, task, dtype and batch size.

    Raises:
      JeffnetError: the one model or its weights cannot be had; of several, that is the failure of a case.
    """
    missing = {name: find_contender(name).missing() for name in settings.contenders}
    absent = [Failure(name, text, expected=True) for name, text in missing.items() if text]
    present = [name for name, text in missing.items() if not text]
    if settings.device or settings.num_devices or os.environ.get("JAX_PLATFORMS"):
        count_devices(settings)
    with ExitStack() as stack:
        machine = _start_machine(settings, stack)
        for candidate in candidates:
            with tempfile.TemporaryDirectory(prefix="jeffnet-bench-") as folder:
                progress(f"{candidate.name or candidate.weights}: weights and reference")
                try:
                    cases = _prepare(candidate, settings, folder)
                except JeffnetError as error:
                    if len(candidates) == 1:
                        raise
                    name = candidate.name or str(candidate.weights)
                    yield CaseResult(Case(name, "", 0, "", 0), (), (Failure(name, str(error), expected=False),))
                    continue
                for case in cases:
                    yield _CaseRun(case, settings, folder, machine, progress).result(present, absent)


def _start_machine(settings: Settings, stack: ExitStack) -> Child | None:
    if not settings.peak:
        return None
    child = stack.enter_context(closing(Child("jeffnet.bench.machine:serve", {}, setting_of(settings))))
    with _peak_errors():
        child.receive()
    return child


@contextmanager
def _peak_errors() -> Iterator[None]:
    try:
        yield
    except ChildError as error:
        raise JeffnetError(f"the machine's peak cannot be measured, --no-peak leaves it out: {error}") from None


def _registered(name: str | None) -> dict[str, Any] | None:
    """What a process needs to register a model that is registered in this one; None for models of the zoo."""
    if name is None or (spec := own_spec(name)) is None:
        return None
    return {"spec": spec_attributes(spec), "preprocessing": asdict(model_preprocessing(name))}


def _prepare(candidate: Candidate, settings: Settings, folder: str) -> list[Case]:
    arguments = {
        "folder": folder,
        "model": candidate.name,
        "weights": candidate.weights,
        "image_sizes": settings.image_sizes,
        "batch_sizes": settings.batch_sizes,
        "tasks": settings.tasks,
        "registered": _registered(candidate.name),
    }
    # On the processor, and by operations that of all contenders `plain` alone takes.
    setting = setting_of(settings, {"JAX_PLATFORMS": "cpu", "JEFFNET_CONV": "xla"})
    try:
        described = run("jeffnet.bench.prepare:prepare", arguments, setting)
    except ChildError as error:
        raise JeffnetError(str(error)) from None
    model, parameters = described["model"], described["parameters"]
    return [
        Case(model, task, batch, dtype, int(size), parameters, macs * (3 if task == "training" else 1))
        for size, macs in described["macs"].items()
        for task in settings.tasks
        for dtype in settings.dtypes
        for batch in settings.batch_sizes
    ]


def setting_of(settings: Settings, extra: Mapping[str, str] | None = None) -> Setting:
    """Settings of the child processes: equal threads, no preallocated memory, no compilation cache."""
    ours = {
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(len(settings.processors))),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONWARNINGS": "ignore",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION_CACHE")}
    if settings.device:
        ours["JAX_PLATFORMS"] = jax_platforms(settings.device)
    if settings.device == "cpu":
        ours["CUDA_VISIBLE_DEVICES"] = ""  # for the peers too
    return Setting({**kept, **ours, **(extra or {})}, settings.processors)


def count_devices(settings: Settings) -> tuple[str, int]:
    """Platform and number of this host's devices.

    Raises:
      JeffnetError: JAX does not start, or devices that were asked for are missing.
    """
    arguments = {"platform": settings.device, "count": settings.num_devices}
    try:
        described = run("jeffnet.bench.machine:describe", arguments, setting_of(settings))
    except ChildError as error:
        raise JeffnetError(str(error)) from None
    return described["platform"], described["devices"]


@dataclass
class _CaseRun:
    """Measures one case."""

    case: Case
    settings: Settings
    folder: str
    machine: Child | None
    progress: Progress

    def result(self, names: Sequence[str], failures: Sequence[Failure]) -> CaseResult:
        """Start the contenders one after the other, then let them take turns."""
        failed, described = list(failures), {}
        with ExitStack() as stack:
            workers: dict[str, Child] = {}
            for name in names:
                try:
                    workers[name], described[name] = self._start(name, stack)
                except ChildError as error:
                    failed.append(Failure(name, str(error), error.expected))
            rounds, peaks = self._rounds(workers, described, failed)
        wanted = self.settings.baseline or self.settings.contenders[0]
        baseline = wanted if wanted in workers else next(iter(workers), None)
        return CaseResult(
            self.case,
            tuple(
                Measured(
                    contender=name,
                    rounds=tuple(rounds[name]),
                    difference=self._difference(name, baseline),
                    **described[name],
                )
                for name in workers
            ),
            tuple(failed),
            baseline,
            tuple(peak["macs_per_second"] for peak in peaks),
            tuple(peak["bytes_per_second"] for peak in peaks),
        )

    def _start(self, name: str, stack: ExitStack) -> tuple[Child, dict[str, Any]]:
        contender, case = find_contender(name), self.case
        if case.task not in contender.tasks:
            raise ChildError(f"no {case.task}", expected=True)
        threads, answers = len(self.settings.processors), str(self._answers(name))
        job = Job(
            **asdict(case),
            program=contender.program,
            folder=self.folder,
            threads=threads,
            answers=answers,
            exported=name if name in self.settings.files else None,
        )
        # torch keeps what it compiles: here it finds nothing, and nothing of it stays.
        compiled = {"TORCHINDUCTOR_CACHE_DIR": tempfile.mkdtemp(dir=self.folder)}
        setting = setting_of(self.settings, {**contender.environment, **compiled})
        arguments = asdict(job)
        if contender.prepares:
            self.progress(f"{self._title}: {name}: export")
            run(contender.prepares, arguments, setting)
        self.progress(f"{self._title}: {name}: start")
        child = stack.enter_context(closing(Child("jeffnet.bench.worker:serve", arguments, setting)))
        return child, child.receive()

    def _rounds(
        self, workers: dict[str, Child], described: dict[str, dict[str, Any]], failed: list[Failure]
    ) -> tuple[dict[str, list[tuple[float, ...]]], list[dict[str, float]]]:
        """Seconds of each call by contender and round, and the machine's figures of each round."""
        rounds: dict[str, list[tuple[float, ...]]] = {name: [] for name in workers}
        peaks = []
        for number in range(self.settings.repeats):
            self.progress(f"{self._title}: round {number + 1} of {self.settings.repeats}")
            if self.machine is not None and workers:
                with _peak_errors():
                    peaks.append(self.machine.ask({"dtype": self.case.dtype, "seconds": self.settings.seconds}))
                time.sleep(_REST)
            names = list(workers)
            first = number % max(len(names), 1)
            for name in names[first:] + names[:first]:
                try:
                    reply = workers[name].ask({"seconds": self.settings.seconds})
                except ChildError as error:
                    failed.append(Failure(name, str(error), error.expected))
                    del workers[name]
                    continue
                rounds[name].append(tuple(reply["seconds"]))
                described[name]["peak_bytes"] = reply["peak_bytes"]
                time.sleep(_REST)
        return rounds, peaks

    def _difference(self, name: str, baseline: str | None) -> float:
        case, answers = self.case, np.load(self._answers(name))
        reference = np.load(reference_file(self.folder, case.task, case.image_size, case.batch_size))
        if case.task == "training":
            expected = np.stack([reference, np.load(self._answers(baseline or name))[1]])
            return float(np.abs(answers / expected - 1).max())
        shown = min(case.batch_size, COMPARED)
        answer, reference = answers[0][:shown], reference[:shown]
        if answer.shape != reference.shape:
            return float("inf")
        return float(np.abs(answer - reference).max() / np.abs(reference).max())

    def _answers(self, name: str) -> Path:
        return Path(self.folder) / f"answers_{self.settings.contenders.index(name)}.npy"

    @property
    def _title(self) -> str:
        case = self.case
        return f"{case.model} {case.task} {case.dtype} batch {case.batch_size}"
