"""Metrics for TensorBoard and for Weights & Biases."""

import logging
import math
import re
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from jeffnet.errors import ConfigError, OutputError, first_line
from jeffnet.system.extras import install
from jeffnet.system.files import write_file, writing
from jeffnet.train.config import LogConfig

# Metrics whose names begin with one of these are shown together.
_GROUP = re.compile("^(train|val|ema_val|averaged_val)_")
# A flush of TensorBoard's file waits for the disk, which may be busy with a checkpoint.
_SECONDS_TO_FLUSH = 10
# How long the end of a run waits until its last metrics are sent; the rest stays on disk, for `wandb sync`.
_SECONDS_TO_FINISH = 120

_log = logging.getLogger("jeffnet.train")


class Board(Protocol):
    """Shows rows of metrics, each with `step`."""

    def write(self, row: Mapping[str, float]) -> None:
        """Show a row; raises OutputError where a file cannot be written."""
        ...

    def close(self) -> None:
        """Show the rest; raises OutputError where a file cannot be written."""
        ...


def tags(row: Mapping[str, float]) -> dict[str, float]:
    """The values of a row without `step`, with grouped names: `ema_val/top1` for `ema_val_top1`."""
    return {_GROUP.sub(r"\1/", name): value for name, value in row.items() if name != "step"}


def check_boards(log: LogConfig) -> None:
    """Raises ConfigError if Weights & Biases is configured and not installed, before a run's folder is made."""
    if log.wandb_project is not None:
        _wandb(log.wandb_project)


class TensorBoard(Board):
    """An event file for TensorBoard. A killed process loses the rows of the last seconds."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """Begins a new file. TensorBoard drops `first_step` and later ones from files of the run that are there."""
        # tensorboardX's SummaryWriter waits forever on a full disk, and names files after the host.
        with _without_torch():
            from tensorboardX import RecordWriter
            from tensorboardX.proto import event_pb2, summary_pb2
        self._protocol: Any = event_pb2
        self._summary = summary_pb2.Summary  # pyright: ignore[reportAttributeAccessIssue]
        self._path = folder / f"events.out.tfevents.{time.time_ns()}"
        self._flushed = -math.inf
        with writing(self._path):
            self._file = RecordWriter(str(self._path))
        try:
            self._add(file_version="brain.Event:2")
            session_log = self._protocol.SessionLog
            self._add(step=first_step, session_log=session_log(status=session_log.START))
            self._flush()
        except OutputError:
            with suppress(OSError):
                self._file.close()
            raise

    def write(self, row: Mapping[str, float]) -> None:
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in tags(row).items()]
        self._add(step=int(row["step"]), summary=self._summary(value=values))
        if time.monotonic() - self._flushed > _SECONDS_TO_FLUSH:
            self._flush()

    def close(self) -> None:
        with writing(self._path), closing(self._file):
            self._file.flush()

    def _add(self, **entries: Any) -> None:
        event = self._protocol.Event(wall_time=time.time(), **entries)
        with writing(self._path):
            self._file.write(event.SerializeToString())

    def _flush(self) -> None:
        with writing(self._path):
            self._file.flush()
        self._flushed = time.monotonic()


class WeightsAndBiases(Board):
    """A run at Weights & Biases. Once it began, its failures do not stop the training."""

    def __init__(self, folder: Path, project: str, config: Mapping[str, Any]) -> None:
        """Begins a run there, or continues the one of `wandb_id.txt`; raises ConfigError where the client refuses.

        Rows of steps that a resumed run takes again are there twice: rows cannot be deleted.
        """
        wandb = _wandb(project)
        self._run: Any = None
        self._warned = False
        try:
            self._run = wandb.init(
                project=project,
                dir=str(folder),
                config=dict(config),
                id=_identifier(folder / "wandb_id.txt"),
                name=folder.resolve().name,
                resume="allow",
                settings=wandb.Settings(finish_timeout=_SECONDS_TO_FINISH),
            )
            # The client's count of rows would go on where the run was interrupted, not where it is resumed.
            self._run.define_metric("*", step_metric="step")
        except (wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
            raise ConfigError(
                f"log.wandb_project {project!r} is refused: {first_line(error).rstrip('.')}; run `wandb login`, set "
                "WANDB_MODE=offline, or set it to none"
            ) from error
        except OutputError:
            raise
        except Exception as error:  # whatever a network does
            self._warn(error)

    def write(self, row: Mapping[str, float]) -> None:
        if self._run is not None:
            with self._warning():
                self._run.log({"step": row["step"], **tags(row)})

    def close(self) -> None:
        if self._run is not None:
            with self._warning():
                self._run.finish()  # waits a while until everything is sent

    @contextmanager
    def _warning(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            _log.warning("Weights & Biases fails, the run goes on without it: %s", first_line(error))
        self._warned = True


def _wandb(project: str) -> Any:
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(
            f"log.wandb_project {project!r} needs Weights & Biases: {install('wandb')}, or set it to none"
        ) from None
    return wandb


def _identifier(path: Path) -> str:
    if path.exists():
        return path.read_text().strip()
    identifier = secrets.token_hex(8)
    write_file(path, identifier + "\n")
    return identifier


@contextmanager
def _without_torch() -> Iterator[None]:
    """Hide torch from tensorboardX, which would import it, in seconds, without need."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        del sys.modules["torch"]
