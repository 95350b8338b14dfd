"""Settings of a benchmark."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from jeffnet.backends import BACKENDS, DTYPES
from jeffnet.bench.contenders import PEERS
from jeffnet.errors import ConfigError, check_choice
from jeffnet.system.processor import processors

TASKS = ("inference", "training")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A benchmark, but for the models.

    Attributes:
      tasks: 'inference', 'training', or both.
      batch_sizes: pictures at once.
      dtypes: in which layers compute: 'float32', 'bfloat16' or 'float16'.
      image_sizes: pixels along each side; none takes the model's own.
      backends: of jeffnet.
      fused: also measure `jeffnet.inference.fused`, of inference.
      compare: peers, of `jeffnet.bench.contenders.PEERS`, and paths of exported files, see `jeffnet.export`.
      baseline: the contender to which ratios are; None takes the first.
      threads: that each contender may use; None takes all processors that this process may.
      repeats: rounds, in each of which every contender has its turn.
      seconds: that a turn takes at least.
      peak: also measure the machine, by a large matrix product and a large copy.
      device: on which to measure, see `jeffnet.system.devices.start_devices`; None takes what each contender finds.
      num_devices: how many devices there must be.

    Raises:
      ConfigError: an entry outside its range.
    """

    tasks: tuple[str, ...] = ("inference",)
    batch_sizes: tuple[int, ...] = (1, 16)
    dtypes: tuple[str, ...] = ("float32",)
    image_sizes: tuple[int, ...] = ()
    backends: tuple[str, ...] = ("linen",)
    fused: bool = True
    compare: tuple[str, ...] = ()
    baseline: str | None = None
    threads: int | None = None
    repeats: int = 5
    seconds: float = 0.5
    peak: bool = True
    device: str | None = None
    num_devices: int | None = None

    def __post_init__(self) -> None:
        _check_choices("task", self.tasks, TASKS)
        _check_choices("dtype", self.dtypes, DTYPES)
        _check_choices("backend", self.backends, tuple(BACKENDS))
        _check_choices("compare", self.compare, (*PEERS, *self.files))
        if not self.contenders:
            raise ConfigError("nothing to measure: give --backend, --fused or --compare")
        if self.baseline is not None and self.baseline not in self.contenders:
            raise ConfigError(f"baseline {self.baseline!r} is not measured: choose from {', '.join(self.contenders)}")
        if "training" in self.tasks and "float16" in self.dtypes:
            raise ConfigError("training in float16 needs a scaled loss, which is not measured: take bfloat16")
        if min(self.repeats, *self.batch_sizes, *self.image_sizes) < 1:
            raise ConfigError("repeats, batch sizes and image sizes are 1 or more")
        if not self.seconds > 0:
            raise ConfigError(f"seconds {self.seconds} of a turn: give more than 0")
        available = len(processors())
        if self.threads is not None and not 1 <= self.threads <= available:
            raise ConfigError(f"threads {self.threads}: this process may use 1 to {available} processors")

    @property
    def files(self) -> tuple[str, ...]:
        """Exported files among the contenders."""
        return tuple(name for name in self.compare if name not in PEERS and os.path.exists(name))

    @property
    def contenders(self) -> tuple[str, ...]:
        """Names of all contenders, in order."""
        return (*self.backends, *(("fused",) if self.fused else ()), *self.compare)

    @property
    def processors(self) -> tuple[int, ...]:
        """Processors that the contenders use."""
        return processors()[: self.threads]


@dataclass(frozen=True)
class Case:
    """The task that all contenders do in the same rounds.

    Attributes:
      model: its name in the zoo; if only weights were given, the name that is in them.
      task: 'inference' or 'training'.
      batch_size: pictures at once.
      dtype: in which layers compute.
      image_size: pixels along each side.
      parameters: of the model.
      macs: multiply-accumulates of one picture; training counts three times those of a forward pass, since the
        backward pass has twice as many.
    """

    model: str
    task: str
    batch_size: int
    dtype: str
    image_size: int
    parameters: int = field(default=0, compare=False)
    macs: int = field(default=0, compare=False)


def _check_choices(entry: str, values: Sequence[str], choices: Sequence[str]) -> None:
    for value in values:
        check_choice(entry, value, choices)
    if len({*values}) < len(values):
        raise ConfigError(f"{entry} {', '.join(values)}: each once")
