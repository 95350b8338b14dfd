"""Metrics for TensorBoard and for Weights & Biases."""

import logging
import math
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from jeffnet.errors import ConfigError, OutputError, first_line
from jeffnet.system.extras import install
from jeffnet.system.files import write_file
from jeffnet.train.config import LogConfig

# Metrics whose names begin with one of these are shown together.
_GROUPS = ("train", "val", "ema_val", "averaged_val")
# A flush of TensorBoard's file waits for the disk, which may be busy with a checkpoint.
_SECONDS_TO_FLUSH = 10
# How long the end of a run waits until its last metrics are sent; the rest stays on disk, for `wandb sync`.
_SECONDS_TO_FINISH = 120

_log = logging.getLogger("jeffnet.train")


class Board(Protocol):
    """Shows rows of metrics."""

    def write(self, row: Mapping[str, float]) -> None:
        """Show a row, which has `step`."""
        ...

    def close(self) -> None:
        """Show the rest."""
        ...


def tags(row: Mapping[str, float]) -> dict[str, float]:
    """The values of a row without `step`, with grouped names: `ema_val/top1` for `ema_val_top1`."""
    return {_tag(name): value for name, value in row.items() if name != "step"}


def _tag(name: str) -> str:
    group = next((group for group in _GROUPS if name.startswith(f"{group}_")), None)
    return name if group is None else f"{group}/{name.removeprefix(f'{group}_')}"


def check_boards(log: LogConfig) -> None:
    """Raises ConfigError if Weights & Biases is configured and not installed, before a run's folder is made."""
    if log.wandb_project is not None:
        _wandb(log.wandb_project)


class TensorBoard:
    """An event file for TensorBoard. A killed process loses the rows of the last seconds."""

    def __init__(self, folder: Path, first_step: int | None) -> None:
        """Begins a new file.

        Args:
          folder: of the run.
          first_step: TensorBoard drops this step and later ones from earlier files of a resumed run; None if it is new.

        Raises:
          OutputError: it cannot be written.
        """
        # tensorboardX's SummaryWriter waits forever on a full disk, and names files after the host.
        with _without_torch():
            from tensorboardX import RecordWriter
            from tensorboardX.proto import event_pb2, summary_pb2
        self._protocol: Any = event_pb2
        self._summary = summary_pb2.Summary  # pyright: ignore[reportAttributeAccessIssue]
        self._path = folder / f"events.out.tfevents.{time.time_ns()}"
        self._flushed = -math.inf
        with self._writing():
            self._file = RecordWriter(str(self._path))
        try:
            self._add(file_version="brain.Event:2")
            if first_step is not None:
                start = self._protocol.SessionLog(status=self._protocol.SessionLog.START)
                self._add(step=first_step, session_log=start)
            self._flush()
        except OutputError:
            with suppress(OSError):
                self._file.close()
            raise

    def write(self, row: Mapping[str, float]) -> None:
        """Add a row; raises OutputError where it cannot be written."""
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in tags(row).items()]
        self._add(step=int(row["step"]), summary=self._summary(value=values))
        if time.monotonic() - self._flushed > _SECONDS_TO_FLUSH:
            self._flush()

    def close(self) -> None:
        """Write the rest; raises OutputError where it cannot be written."""
        with self._writing():
            try:
                self._file.flush()
            finally:
                self._file.close()

    def _add(self, **entries: Any) -> None:
        event = self._protocol.Event(wall_time=time.time(), **entries)
        with self._writing():
            self._file.write(event.SerializeToString())

    def _flush(self) -> None:
        with self._writing():
            self._file.flush()
        self._flushed = time.monotonic()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"cannot write {str(self._path)!r}: {error.strerror or error}") from error


class WeightsAndBiases:
    """A run at Weights & Biases. Once it began, its failures do not stop the training."""

    def __init__(self, folder: Path, project: str, config: Mapping[str, Any]) -> None:
        """Begins a run there, or continues the one of `wandb_id.txt`.

        Rows of steps that a resumed run takes again are there twice: rows cannot be deleted.

        Args:
          folder: of the run, for the identifier and the files of the client.
          project: of the run.
          config: to show with the run.

        Raises:
          ConfigError: the client is not installed, or refuses.
          OutputError: the identifier cannot be written.
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
        """Send a row."""
        if self._run is None:
            return
        try:
            self._run.log({"step": row["step"], **tags(row)})
        except Exception as error:
            self._warn(error)

    def close(self) -> None:
        """Wait a while until everything is sent."""
        if self._run is None:
            return
        try:
            self._run.finish()
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
