"""What the modules of formats take and return."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.spec import ModelSpec
from jeffnet.errors import WeightsError, first_line
from jeffnet.weights.card import ModelCard
from jeffnet.weights.hub_config import HubConfig
from jeffnet.weights.naming import OURS, Naming
from jeffnet.weights.stored import Stored

# What has checksums in a file, for `WeightsFile.checksums`.
OF_ARRAYS, OF_MEMBERS = "of every array", "of every member of the archive"


@dataclass(frozen=True)
class WeightsFile:
    """What a weights file holds.

    Attributes:
      source: its path, or the URL or repository that it came from.
      arrays: by the source's names and in its layouts.
      naming: the names and layouts.
      title: what to call it in messages, where many files have these names; else the naming's.
      card: the description of the model, if the file is one of jeffnet's own.
      model: the name of the model, if the file states it in another way.
      preprocessing: what the weights expect of pictures, if the file states it and it differs from the zoo's.
      config: the contents of the `config.json` beside the file.
      checksums: which parts of the file have checksums, which are compared when arrays are read; may be empty.
    """

    source: str
    arrays: Mapping[str, Stored]
    naming: Naming = OURS
    title: str = ""
    card: ModelCard | None = None
    model: str | None = None
    preprocessing: Preprocessing | None = None
    config: HubConfig = field(default_factory=HubConfig)
    checksums: str = ""

    @property
    def stated_model(self) -> str | None:
        """The model's name, if the file or its `config.json` states it."""
        return self.card.model if self.card else self.model or self.config.model

    @property
    def stated_architecture(self) -> str | ModelSpec | None:
        """What `jeffnet.arch.zoo.model_plan` takes for this model: the name, or the card's own architecture."""
        return self.card.architecture if self.card else self.stated_model


@dataclass(frozen=True)
class Probe:
    """What a format is detected by: a path, the first bytes if it is of a file, and the names in a zip archive.

    The path may also be of a folder, or the prefix of several files.
    """

    path: Path
    start: bytes = b""
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contents:
    """A model to write, in one of the format's `forms`.

    Its arrays have canonical names. `build` gives the model as the module system of a name builds it.
    """

    arrays: Mapping[str, np.ndarray]
    card: ModelCard
    form: str
    build: Callable[[str], Any]


def guarded(array: Stored, path: str | Path, fault: str) -> Stored:
    """An array whose reading is within `reading`."""

    def read() -> np.ndarray:
        with reading(path, fault):
            return array.read()

    return Stored(array.shape, array.dtype, read)


@contextmanager
def reading(path: str | Path, fault: str) -> Iterator[None]:
    """Turn whatever a broken file makes a library raise into a WeightsError with the file, its fault and the reason."""
    try:
        yield
    except WeightsError:
        raise
    except Exception as error:
        raise WeightsError(f"weights {str(path)!r} {fault}: {first_line(error)}") from error
