"""Measurements, and figures derived from them."""

import statistics
from dataclasses import dataclass

from jeffnet.bench.settings import Case

# The largest difference of an answer that counts as agreement: of logits, as a share of the largest; of the losses
# before and after a step, as a share of the loss. With the random weights of `jeffnet.bench.prepare` contenders differ
# in logits by up to 3e-6 (float32) and 7e-2 (bfloat16), in losses by 3e-4 and 1e-2; an array that is swapped or
# forgotten makes a difference of the logits' own size, a step that is not taken one of 3 to 15 % of the loss.
TOLERANCES = {
    "inference": {"float32": 1e-3, "bfloat16": 0.2, "float16": 0.05, "int8": 1.0},
    "training": {"float32": 1e-2, "bfloat16": 5e-2},
}


@dataclass(frozen=True)
class Measured:
    """Measurements of one contender in one case.

    Attributes:
      platform: 'cpu', 'gpu' or 'tpu'.
      import_seconds: until its framework was imported and its device ready.
      create_seconds: until the model had its weights.
      compile_seconds: that the first call took.
      peak_bytes: the most memory that it took for the model, from building on: of the accelerator, or else of the
        process, compiler included.
      rounds: seconds of each call, turn by turn; there are as many turns as rounds.
      difference: of its logits from the reference, as a share of the largest; in training, of the loss before the
        first step from the reference, or if that is larger of the loss after it from the baseline's.
      dtype: in which it computes, where that is not the case's.
    """

    contender: str
    platform: str
    device: str
    versions: dict[str, str]
    import_seconds: float
    create_seconds: float
    compile_seconds: float
    peak_bytes: int
    rounds: tuple[tuple[float, ...], ...]
    difference: float
    dtype: str | None = None

    @property
    def call_seconds(self) -> float:
        """Seconds of a call: the median of the rounds' medians."""
        return statistics.median(self.round_seconds)

    @property
    def round_seconds(self) -> tuple[float, ...]:
        """Median of a call in each round."""
        return tuple(statistics.median(calls) for calls in self.rounds)

    def latency(self, share: float) -> float:
        """Seconds within which that share of all calls was done: 0.5 is the median call, 0.95 a slow one."""
        calls = sorted(call for calls in self.rounds for call in calls)
        return calls[min(int(share * len(calls)), len(calls) - 1)]


@dataclass(frozen=True)
class Failure:
    """A contender that was not measured.

    Attributes:
      reason: in one line.
      expected: it is not installed, or has no such model; no defect.
    """

    contender: str
    reason: str
    expected: bool


@dataclass(frozen=True)
class Ratio:
    """Ratio of two contenders: median, lowest and highest over the rounds."""

    median: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class CaseResult:
    """All contenders in one case.

    Attributes:
      baseline: the contender to which ratios are; one that was measured.
      peak_macs: multiply-accumulates per second of a large matrix product, of the same dtype, in each round.
      peak_bytes: per second, read and written, of a large copy, in each round.
    """

    case: Case
    measured: tuple[Measured, ...]
    failures: tuple[Failure, ...]
    baseline: str | None = None
    peak_macs: tuple[float, ...] = ()
    peak_bytes: tuple[float, ...] = ()

    def tolerance(self, measured: Measured) -> float:
        """Largest difference of an answer that agrees."""
        tolerances = TOLERANCES[self.case.task]
        if measured.dtype in tolerances:
            return tolerances[measured.dtype]
        # Accelerators by default round the factors of float32 products to 10 bits or fewer.
        rounded = "bfloat16" if measured.platform != "cpu" and self.case.dtype == "float32" else self.case.dtype
        return tolerances[rounded]

    def agrees(self, measured: Measured) -> bool:
        """Whether its answer is within the tolerance; NaN is not."""
        return measured.difference <= self.tolerance(measured)

    def images_per_second(self, measured: Measured) -> float:
        """Throughput."""
        return self.case.batch_size / measured.call_seconds

    def macs_per_second(self, measured: Measured) -> float:
        """Of convolutions and matrix products."""
        return self.case.macs * self.images_per_second(measured)

    def speed(self, measured: Measured) -> Ratio | None:
        """How many times as fast as the baseline, round by round."""
        baseline = next((other for other in self.measured if other.contender == self.baseline), None)
        if baseline is None:
            return None
        ratios = [a / b for a, b in zip(baseline.round_seconds, measured.round_seconds, strict=True)]
        return Ratio(statistics.median(ratios), min(ratios), max(ratios))

    def share_of_peak(self, measured: Measured) -> float | None:
        """Share of the speed of the large matrix product, per round; None if that was not measured."""
        if not self.peak_macs:
            return None
        work = self.case.macs * self.case.batch_size
        pairs = zip(measured.round_seconds, self.peak_macs, strict=True)
        return statistics.median(work / seconds / peak for seconds, peak in pairs)


def cost_per_million(images_per_second: float, price_per_hour: float) -> float:
    """Cost of a million images, in the currency of the price."""
    return 1e6 / images_per_second / 3600 * price_per_hour


def energy_per_million(images_per_second: float, watts: float) -> float:
    """kWh for a million images at a constant power."""
    return 1e6 / images_per_second / 3600 * watts / 1000
