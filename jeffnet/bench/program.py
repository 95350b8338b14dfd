"""The interface of a contender's process: its job and its program."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jeffnet.bench.settings import Case
from jeffnet.weights.card import ModelCard, parse_card

# All contenders train by stochastic gradient descent with momentum.
LEARNING_RATE, MOMENTUM = 0.01, 0.9
# Number of pictures whose answers are compared.
COMPARED = 2


@dataclass(frozen=True, kw_only=True)
class Job(Case):
    """One contender's part of a case, as JSON can hold it.

    Attributes:
      program: `module:class` of a `Program`.
      folder: where `jeffnet.bench.prepare` has written the model and its pictures.
      threads: that it may use.
      answers: file for the answers that are compared.
      exported: the file that the program runs, see `jeffnet.export`; None for other programs.
    """

    program: str
    folder: str
    threads: int
    answers: str
    exported: str | None = None

    @property
    def trains(self) -> bool:
        """Whether the task is training."""
        return self.task == "training"

    @property
    def onnx_file(self) -> Path:
        """The exported model, of this image and batch size."""
        return self.file(f"model_{self.image_size}_{self.batch_size}.onnx")

    def file(self, name: str) -> Path:
        """A file of the model's folder."""
        return Path(self.folder) / name

    def card(self) -> ModelCard:
        """The description of the model."""
        return parse_card(self.file("card.json").read_text(encoding="utf-8"), "card.json")

    def pictures(self) -> np.ndarray:
        """float32 `(N, H, W, C)`, normalised; a smaller batch takes the first ones."""
        return np.array(np.load(pictures_file(self.folder, self.image_size), mmap_mode="r")[: self.batch_size])

    def labels(self) -> np.ndarray:
        """int32 `(N,)`."""
        return np.load(self.file("labels.npy"))[: self.batch_size]


class UnsupportedError(Exception):
    """The contender lacks the model or feature: nothing to measure, but not a failure."""


class Program(ABC):
    """A contender's program. Its methods are called in this order, then `call` again and again."""

    def __init__(self, job: Job) -> None:
        self.job = job

    @abstractmethod
    def load(self) -> None:
        """Import the framework and start its device."""

    @abstractmethod
    def create(self) -> None:
        """Build the model, with its weights and its pictures in the device's memory.

        Raises:
          UnsupportedError: there is no such model, or it cannot do the task.
        """

    def compile(self) -> None:  # noqa: B027
        """Compile the model, if that is a separate step; the first call does the rest."""

    @abstractmethod
    def call(self) -> Any:
        """Compute one batch, or take one step of training, and wait until it is done."""

    def answer(self, result: Any) -> np.ndarray:
        """From what `call` returned: logits `(N, classes)`, or in training the loss before the step, `()`."""
        return np.array(result, np.float32)

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """The `device` by name, its `platform` ('cpu', 'gpu', 'tpu'), and `versions` by package.

        Also the `dtype` of a program that computes in another than the case's.
        """

    def device_bytes(self) -> int | None:
        """Peak memory of the accelerator; None on a CPU."""
        return None


def pictures_file(folder: str | Path, image_size: int) -> Path:
    """File of the pictures of a size."""
    return Path(folder) / f"pictures_{image_size}.npy"


def reference_file(folder: str | Path, task: str, image_size: int, batch_size: int) -> Path:
    """File of the reference answers of a case; inference has one for all batch sizes."""
    batch = batch_size if task == "training" else 0
    return Path(folder) / f"reference_{task}_{image_size}_{batch}.npy"
