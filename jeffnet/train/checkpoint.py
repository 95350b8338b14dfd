"""Checkpoints of a run through Orbax: asynchronous, never half a one under its name, verified when read.

Each holds the state's arrays by their paths (`params.conv_stem.kernel`, `opt_state.0.trace.conv_stem.kernel`), and as
JSON what else the run needs in order to go on, with a checksum of every array. All processes of a run take part, each
with what its devices hold; how arrays are split when they are read need not be how they were.
"""

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jeffnet.distributed import gathered
from jeffnet.errors import ConfigError, OutputError, TrainingError, first_line
from jeffnet.train.state import TrainState
from jeffnet.weights.checksum import checksum_of_part

_ARRAYS, _PROGRESS = "arrays", "progress"
_CHECKSUMS, _VALUES = "checksums", "values"

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
        count = jax.process_count()
        # Where they are named, processes wait for each other through the coordination service, not by a program of
        # their devices: those may have a step before them.
        processes = ocp.options.MultiprocessingOptions(active_processes=set(range(count)) if count > 1 else None)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=False,
            multiprocessing_options=processes,
            enable_async_checkpointing=True,
            # Made in the background, a folder that cannot be made leaves threads that wait for it for minutes.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handlers = {
                _ARRAYS: ocp.StandardCheckpointHandler(multiprocessing_options=processes),
                _PROGRESS: ocp.JsonCheckpointHandler(multiprocessing_options=processes),
            }
            self._manager = ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)
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
        arrays = _flat(jax.block_until_ready(state))
        items = {
            _ARRAYS: ocp.args.StandardSave(arrays),
            _PROGRESS: ocp.args.JsonSave({_CHECKSUMS: _checksums(arrays), _VALUES: dict(progress)}),
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
          template: a state of the same shapes and dtypes, whose arrays may be `jax.ShapeDtypeStruct`s with shardings.

        Raises:
          ConfigError: a checkpoint is of another model or optimizer than the configuration says.
          TrainingError: there are checkpoints, and none can be read.
        """
        for step in self.steps:
            found = self._read(step, template)
            # One that any process cannot read is none for all of them.
            wrong = next((text for text in gathered(found if isinstance(found, str) else None) if text), None)
            if wrong or isinstance(found, str):
                _log.warning("checkpoint of step %d cannot be read and is left out: %s", step, wrong)
                continue
            self._forget_after(step)
            return found
        if self.steps:
            raise TrainingError(
                f"none of the checkpoints in {str(self._folder)!r} can be read: begin a new run, with model.pretrained "
                "set to this run's model.safetensors to start from its best model"
            )
        return None

    def _read(self, step: int, template: TrainState) -> tuple[TrainState, dict[str, Any]] | str:
        """A checkpoint and its values, or why it cannot be read.

        Raises:
          ConfigError: it does not fit the template.
        """
        wanted = _flat(template)
        try:
            metadata = self._manager.item_metadata(step)[_ARRAYS]  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]
            if metadata is None:
                raise ValueError("it has no arrays")
            _check_fits(wanted, metadata, self._folder / str(step))
            items = {_ARRAYS: ocp.args.StandardRestore(wanted), _PROGRESS: ocp.args.JsonRestore()}
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))  # pyright: ignore[reportCallIssue]
            arrays, progress = restored[_ARRAYS], restored[_PROGRESS]
            found = _checksums(arrays)
            damaged = [name for name, value in progress[_CHECKSUMS].items() if found[name] != value]
            if damaged:
                raise ValueError(f"{damaged[0]} is not what was written")
        except ConfigError:
            raise
        except Exception as error:  # whatever a damaged file makes its readers raise
            return first_line(error) or type(error).__name__
        leaves = [arrays[name] for name in wanted]
        return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(template), leaves), progress[_VALUES]

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


def _check_fits(wanted: Mapping[str, Any], found: Mapping[str, Any], source: Path) -> None:
    """Raises ConfigError where arrays of a checkpoint are not those of the state."""
    missing = [name for name in wanted if name not in found]
    left_over = [name for name in found if name not in wanted]
    misfits = [
        f"{name} is {found[name].dtype}{list(found[name].shape)}, not {leaf.dtype}{list(leaf.shape)}"
        for name, leaf in wanted.items()
        if name in found and (tuple(found[name].shape), found[name].dtype) != (leaf.shape, leaf.dtype)
    ]
    if missing or left_over or misfits:
        parts = [("missing", missing), ("left over", left_over), ("misshapen", misfits)]
        shown = "; ".join(f"{what} ({len(names)}): {names[0]}, ..." for what, names in parts if names)
        raise ConfigError(
            f"the configuration does not fit the checkpoint {str(source)!r}: {shown}: resume with the model, optimizer "
            "and averaging of the run's start"
        )


def _reason(error: Exception) -> str:
    """Why the system refused, where the storage library says that in the middle of what it did."""
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(found[1])) if found else first_line(error)


def _checksums(arrays: Mapping[str, Any]) -> dict[str, int]:
    """Of every array, however it is split: every process adds up what it has; each part counts once."""
    own = {
        name: sum(
            checksum_of_part(np.asarray(shard.data), shard.index, array.shape)
            for shard in array.addressable_shards
            if shard.replica_id == 0
        )
        for name, array in arrays.items()
    }
    every = gathered(own)
    return {name: sum(each[name] for each in every) % 2**64 for name in own}
