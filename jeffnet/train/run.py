"""The folder of a run, with everything that the run writes and needs to continue.

* `config.json`: the whole configuration, which is a recipe too.
* `environment.json`: versions, devices and the state of the code at every start.
* `split.csv`: which pictures are trained on and which validated, where the run divides them itself.
* `metrics.jsonl`: a JSON object with `step` and other numbers per line; the same for TensorBoard in `events*`.
* `curves.png`: learning curves.
* `checkpoints/`: the last states, for `jeffnet train --resume`.
* `model.safetensors`: the best model so far, for `jeffnet validate` and `jeffnet predict`; `model_ema.safetensors` the
  best moving average; `best/` the best few; `averaged.safetensors` their average.
* `README.md`: the model card, at the end.
* `start.safetensors`: of `jeffnet.train.fine_tune`, the weights from which the run starts.
* `wandb_id.txt`, `wandb/`: with Weights & Biases, the identifier of the run, and the client's files.
* `train.lock`: during training, which process trains.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jax

from jeffnet.data.division import Division
from jeffnet.errors import ConfigError, OutputError
from jeffnet.parallel.distributed import gathered, on_primary
from jeffnet.system.files import LockedError, check_orbax_name, locked, remove_partials, write_file
from jeffnet.system.reading import read_file, read_text
from jeffnet.text.names import shell_word
from jeffnet.train.checkpoint import Checkpoints
from jeffnet.train.config import Config
from jeffnet.train.data_sets import SPLIT_FILE
from jeffnet.train.recipe import from_json, to_json

START_FILE = "start.safetensors"
_LOCK = "train.lock"
# How long a command that continues a run waits for the command before it: network disks keep the locks of a crashed
# host for 90 seconds.
_SECONDS_TO_WAIT = 100

_log = logging.getLogger("jeffnet.train")


@contextmanager
def locked_run(folder: str | os.PathLike, waits: bool = False) -> Iterator[None]:
    """Make and lock a run's folder, so that no other command trains in it, and remove files that were half written.

    The first of several processes holds the lock. With `waits`, it waits for a command that is about to end.

    Raises:
      OutputError: another command trains in the folder, it cannot be written to, or Orbax does not accept its name.
    """
    with ExitStack() as stack:
        on_primary(lambda: _lock(stack, Path(folder), waits))
        yield


def _lock(stack: ExitStack, folder: Path, waits: bool) -> None:
    check_orbax_name(folder)  # or the run would fail at the end of its first epoch
    path = folder / _LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            stack.enter_context(locked(path))
        except LockedError as error:
            if not waits:
                raise
            _log.warning("%s: waiting up to %d s for it", error, _SECONDS_TO_WAIT)
            stack.enter_context(locked(path, _SECONDS_TO_WAIT))
    except LockedError as error:
        raise OutputError(
            f"run {str(folder)!r} is being trained: {error}; wait for it or stop it. If it runs no more, as after the "
            f"crash of another host, remove {str(path)!r}"
        ) from error
    except OSError as error:
        raise OutputError(f"output folder {str(folder)!r} cannot be written to: {error.strerror}") from error
    remove_partials(folder)
    remove_partials(folder / "best")


class Run:
    """The folder of a run, which exists and is locked.

    Attributes:
      folder: its path.
      config: with which the run goes on.
      checkpoints: in the folder.
    """

    def __init__(self, folder: str | os.PathLike, config: Config) -> None:
        """Raises OutputError where a process does not see the first one's files, or no checkpoints can be written."""
        folder = Path(folder)
        unseen = [number for number, seen in enumerate(gathered((folder / "config.json").exists())) if not seen]
        if unseen and len(unseen) < jax.process_count():
            raise OutputError(
                f"process {unseen[0]} does not see what process 0 wrote into {str(folder)!r}: give a folder on storage "
                "that all hosts share"
            )
        self.folder, self.config = folder, config
        self.checkpoints = Checkpoints(folder / "checkpoints", config.checkpoint.keep_last)

    def path(self, name: str) -> Path:
        """The path of a file in the folder."""
        return self.folder / name

    def write_config(self) -> None:
        """Write `config.json`, or raise OutputError; on several hosts the first does."""
        on_primary(lambda: _write_config(self.folder, self.config))


def create_run(folder: str | os.PathLike, config: Config, division: str | None = None) -> None:
    """Make a run of a folder, which exists and is locked; on several hosts the first does.

    Args:
      folder: of the run.
      config: of the run.
      division: text of `split.csv`, if the run divides its pictures.

    Raises:
      OutputError: the folder cannot be written to, or holds a run already.
    """

    def create() -> None:
        check_no_run(folder)
        if division is not None:  # before the configuration, which makes the folder a run
            write_file(Path(folder, SPLIT_FILE), division.encode("utf-8", "surrogateescape"))
        _write_config(folder, config)

    on_primary(create)


def check_no_run(folder: str | os.PathLike) -> None:
    """Raises OutputError where a folder holds a run already."""
    if is_run(folder):
        raise OutputError(
            f"output folder {str(folder)!r} holds a run already: continue it with "
            f"`jeffnet train --resume {shell_word(str(folder))}`, or give another"
        )


def _write_config(folder: str | os.PathLike, config: Config) -> None:
    write_file(Path(folder, "config.json"), to_json(config))


def is_run(folder: str | os.PathLike) -> bool:
    """Whether a folder holds a run, or checkpoints of one, from which a new run would continue."""
    return Path(folder, "config.json").exists() or any(Path(folder, "checkpoints").glob("[0-9]*"))


def read_division(folder: str | os.PathLike, config: Config) -> Division | None:
    """How the run in a folder divides its pictures; None where its configuration does not, or the file is missing.

    Raises:
      DatasetError: the file is damaged.
      ConfigError: it cannot be read.
    """
    path = Path(folder) / SPLIT_FILE
    if not config.data.is_divided or not path.exists():
        return None
    try:
        return Division.parse(read_file(path, None).decode("utf-8", "surrogateescape"), str(path))
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {error.strerror}") from error


def read_config(folder: str | os.PathLike) -> Config:
    """The configuration of the run in a folder.

    Raises:
      ConfigError: it holds no run, or one whose configuration this version cannot read.
    """
    path = Path(folder) / "config.json"
    try:
        return from_json(read_text(path), str(path))
    except OSError as error:
        raise ConfigError(f"{str(folder)!r} is no run folder: cannot read config.json ({error.strerror})") from error
