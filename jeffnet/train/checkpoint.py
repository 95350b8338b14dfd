"""Checkpoints of a run through Orbax: asynchronous, never half a one under its name, verified when read.

Each holds the state's arrays by their paths (`params.conv_stem.kernel`, `opt_state.0.trace.conv_stem.kernel`), and as
JSON what else the run needs in order to go on, with a checksum of every array.
"""

import logging
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jeffnet.errors import ConfigError, OutputError, TrainingError, first_line
from jeffnet.train.state import TrainState

_ARRAYS, _PROGRESS = "arrays", "progress"
_CHECKSUMS, _VALUES = "crc32", "values"

_log = logging.getLogger("jeffnet.train")


class Checkpoints:
    """The checkpoints in a folder. Close them to wait for the one being written."""

    def __init__(self, folder: Path, keep: int) -> None:
        """Opens the folder, which is made where it is missing.

        Args:
          folder: of the checkpoints alone.
          keep: how many of the last ones stay.
        """
        self._folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=True,
            enable_async_checkpointing=True,
            # Made in the background, a folder that cannot be made leaves threads that wait for it for minutes.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        try:
            self._manager = ocp.CheckpointManager(self._folder, options=options)
        except OSError as error:
            raise OutputError(f"checkpoints {str(folder)!r} cannot be written: {error.strerror or error}") from error

    @property
    def steps(self) -> list[int]:
        """Of which steps there are checkpoints, the last first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def save(self, state: TrainState, progress: Mapping[str, Any]) -> None:
        """Begin to write a checkpoint; there may be one of this step already, which is kept.

        Args:
          state: whose arrays are copied before this returns.
          progress: values for JSON.

        Raises:
          OutputError: this one, or the one before it, could not be written; earlier ones are as they were.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        arrays = {name: np.array(array) for name, array in _flat(state).items()}
        checksums = {name: _checksum(array) for name, array in arrays.items()}
        items = {
            _ARRAYS: ocp.args.StandardSave(arrays),
            _PROGRESS: ocp.args.JsonSave({_CHECKSUMS: checksums, _VALUES: dict(progress)}),
        }
        try:
            self._manager.save(step, args=ocp.args.Composite(**items))  # pyright: ignore[reportCallIssue]
        except Exception as error:  # Orbax raises what its threads met: OSError, but ValueError too
            raise self._not_written(error) from error

    def wait(self) -> None:
        """Until the last checkpoint is on disk.

        Raises:
          OutputError: it could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._not_written(error) from error

    def restore(self, template: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The last checkpoint that can be read, and its values; None where there is none at all.

        One that is damaged is reported and the one before it taken.

        Args:
          template: a state of the same shapes and dtypes, whose arrays may be `jax.ShapeDtypeStruct`s.

        Raises:
          ConfigError: a checkpoint is of another model or optimizer than the configuration says.
          TrainingError: there are checkpoints, and none can be read.
        """
        for step in self.steps:
            try:
                items = {_ARRAYS: ocp.args.StandardRestore(), _PROGRESS: ocp.args.JsonRestore()}
                restored = self._manager.restore(step, args=ocp.args.Composite(**items))  # pyright: ignore[reportCallIssue]
                arrays = {name: np.asarray(array) for name, array in restored[_ARRAYS].items()}
                progress = restored[_PROGRESS]
                damaged = [name for name, value in progress[_CHECKSUMS].items() if _checksum(arrays[name]) != value]
                if damaged:
                    raise ValueError(f"{damaged[0]} is not what was written")
            except Exception as error:  # whatever a damaged file makes its readers raise
                _log.warning("checkpoint of step %d cannot be read and is left out: %s", step, first_line(error))
                continue
            state = _filled(template, arrays, self._folder / str(step))
            self._forget_after(step)
            return state, progress[_VALUES]
        if self.steps:
            raise TrainingError(
                f"none of the checkpoints in {str(self._folder)!r} can be read: begin a new run, with model.pretrained "
                "set to this run's model.safetensors to start from its best model"
            )
        return None

    def close(self) -> None:
        """Wait for the last checkpoint, and let go of Orbax's threads.

        Raises:
          OutputError: it could not be written.
        """
        try:
            self.wait()
        finally:
            self._manager.close()

    def _forget_after(self, step: int) -> None:
        """Remove checkpoints of later steps, which were found damaged, so that they can be written again."""
        for later in self.steps:
            if later > step:
                self._manager.delete(later)

    def _not_written(self, error: Exception) -> OutputError:
        kept = f"the last is of step {self.steps[0]}" if self.steps else "there is none yet"
        return OutputError(
            f"a checkpoint in {str(self._folder)!r} cannot be written: {_reason(error)}; {kept}: make room or mend "
            f"the folder, then continue with `jeffnet train --resume {self._folder.parent}`"
        )


def _flat(state: TrainState) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _filled(template: TrainState, arrays: Mapping[str, np.ndarray], source: Path) -> TrainState:
    """The state with a checkpoint's arrays.

    Raises:
      ConfigError: they do not fit.
    """
    wanted = _flat(template)
    missing = [name for name in wanted if name not in arrays]
    left_over = [name for name in arrays if name not in wanted]
    misfits = [
        f"{name} is {arrays[name].dtype}{list(arrays[name].shape)}, not {leaf.dtype}{list(leaf.shape)}"
        for name, leaf in wanted.items()
        if name in arrays and (arrays[name].shape, arrays[name].dtype) != (leaf.shape, leaf.dtype)
    ]
    if missing or left_over or misfits:
        found = [("missing", missing), ("left over", left_over), ("misshapen", misfits)]
        shown = "; ".join(f"{what} ({len(names)}): {names[0]}, ..." for what, names in found if names)
        raise ConfigError(
            f"the configuration does not fit the checkpoint {str(source)!r}: {shown}: resume with the model, optimizer "
            "and averaging of the run's start"
        )
    leaves = [jnp.asarray(arrays[name]) for name in wanted]
    return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(template), leaves)


def _reason(error: Exception) -> str:
    """Why the system refused, where the storage library says that in the middle of what it did."""
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(found[1])) if found else first_line(error)


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
