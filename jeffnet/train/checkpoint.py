"""Checkpoints of a run through Orbax: written in the background, named when they are complete, verified when read.

A checkpoint holds the state's arrays by their paths (`params.conv_stem.kernel`, `opt_state.0.trace.conv_stem.kernel`),
and as JSON whatever else the run needs to go on, with a checksum of every array. All processes of a run take part with
what their devices hold. Arrays may be split over other devices when they are read.
"""

import asyncio
import itertools
import logging
import re
import shutil
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.path import atomicity

from jeffnet.errors import ConfigError, OutputError, TrainingError, first_line
from jeffnet.parallel.distributed import gathered, on_primary
from jeffnet.system.files import move_durably, system_reason
from jeffnet.text.names import shell_word
from jeffnet.train.state import TrainState
from jeffnet.weights.checksum import checksum_of_part

_ARRAYS, _PROGRESS = "arrays", "progress"
_CHECKSUMS, _VALUES = "checksums", "values"

# Waits before the tries to read a checkpoint: network disks refuse for a moment.
_SECONDS_BEFORE_READING = (0, 0.5, 4, 15)
_CHUNK = 2**22  # bytes
# A missing file is damage. Other errors of the system say nothing about what is on the disk.
_MISSING = (FileNotFoundError, NotADirectoryError)

_log = logging.getLogger("jeffnet.train")


class _Failure(NamedTuple):
    """Why a checkpoint cannot be read, and whether that may pass: then it need not be damaged."""

    reason: str
    may_pass: bool


class _DurablePath(atomicity.AtomicRenameTemporaryPath):
    """Where Orbax writes a checkpoint, which is flushed to the disk before it gets its name."""

    async def finalize(self) -> None:
        """Let Orbax rename the folder to another name of an unfinished one; then flush it and give it its own."""
        final, self._final_path = self._final_path, self._final_path.with_name(f"{self.get().name}-written")
        written = Path(self._final_path)
        try:
            await super().finalize()
        finally:
            self._final_path = final
        await asyncio.to_thread(move_durably, written, Path(final))


class Checkpoints:
    """The checkpoints in a folder. Close them to wait for the one being written."""

    def __init__(self, folder: Path, keep: int) -> None:
        """Opens a folder of checkpoints alone, which is made where it is missing; the last `keep` are kept."""
        self._folder = folder.absolute()
        count = jax.process_count()
        # With named processes Orbax waits for them through the coordination service, not by a program of their
        # devices, which may have steps in their queues.
        processes = ocp.options.MultiprocessingOptions(active_processes=set(range(count)) if count > 1 else None)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=False,
            multiprocessing_options=processes,
            enable_async_checkpointing=True,
            temporary_path_class=_DurablePath,
            # In the background, a folder that cannot be made leaves threads that wait for it for minutes.
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

    def remove_unfinished(self) -> None:
        """Remove what killed processes began to write; nobody may be writing."""
        for path in self._folder.glob(f"*{atomicity.TMP_DIR_SUFFIX}*"):
            shutil.rmtree(path, ignore_errors=True)

    @property
    def steps(self) -> list[int]:
        """The steps that have checkpoints, the last first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def save(self, state: TrainState, progress: Mapping[str, Any]) -> None:
        """Begin to write a checkpoint, with values for JSON, unless there is one of this step; arrays are copied first.

        Raises:
          OutputError: this checkpoint, or the one before it, could not be written; earlier ones are as they were.
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
        """Wait until the last checkpoint is on the disk; raises OutputError if it could not be written."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._not_written(error) from error

    def restore(self, template: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The state and the values of the last undamaged checkpoint; None if there are no checkpoints.

        Damaged ones after it are logged and renamed to `damaged_STEP`, so that the run can write these steps again.

        Args:
          template: a state of the same shapes and dtypes, whose arrays may be `jax.ShapeDtypeStruct`s with shardings.

        Raises:
          ConfigError: a checkpoint is of another model or optimizer than the configuration says.
          TrainingError: all checkpoints are damaged, or the system cannot read one now.
        """
        damaged: dict[int, str] = {}
        for step in self.steps:
            read = self._read(step, template)
            if not isinstance(read, str):
                self._set_aside(damaged)
                return read
            damaged[step] = read
        if damaged:
            raise TrainingError(
                f"none of the checkpoints in {str(self._folder)!r} can be read ({next(iter(damaged.values()))}): begin "
                "a new run, with model.pretrained set to this run's model.safetensors to start from its best model"
            )
        return None

    def _read(self, step: int, template: TrainState) -> tuple[TrainState, dict[str, Any]] | str:
        """A checkpoint's state and values, or a text that says how it is damaged; the same in all processes.

        Raises TrainingError where the system does not let it be read now.
        """
        folder, was_damaged, reason = self._folder / str(step), False, ""
        for seconds in _SECONDS_BEFORE_READING:
            time.sleep(seconds)
            read = self._attempt(step, template)
            # A checkpoint that one process cannot read is read by none.
            everywhere = gathered(read if isinstance(read, _Failure) else None)
            failures = [_Failure(*failure) for failure in everywhere if failure]
            if not failures and not isinstance(read, _Failure):
                arrays, progress = read
                damage = _first_difference(_checksums(arrays), progress[_CHECKSUMS])
                if damage is None:
                    leaves = [arrays[name] for name in _flat(template)]
                    state = jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(template), leaves)
                    return state, progress[_VALUES]
                failures = [_Failure(f"{damage} is not what was written", may_pass=False)]
            reason, may_pass = max(failures, key=lambda failure: failure.may_pass)
            if not may_pass and was_damaged:
                return reason
            was_damaged = was_damaged or not may_pass
            _log.warning("checkpoint %s cannot be read: %s; trying again", folder, reason)
            read = arrays = None  # memory may not hold them twice
        raise TrainingError(
            f"checkpoint {str(folder)!r} cannot be read: {reason}: nothing was changed; resume when the disk answers "
            "again, or move this folder away to continue from the checkpoint before it"
        )

    def _attempt(self, step: int, template: TrainState) -> tuple[dict[str, Any], dict[str, Any]] | _Failure:
        """The arrays and progress that this process reads; raises ConfigError if they do not fit the template."""
        folder, wanted = self._folder / str(step), _flat(template)
        try:
            metadata = self._manager.item_metadata(step)[_ARRAYS]  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]
            if metadata is None:
                raise ValueError("it has no arrays")
            _check_fits(wanted, metadata, folder)
            items = {_ARRAYS: ocp.args.StandardRestore(wanted), _PROGRESS: ocp.args.JsonRestore()}
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))  # pyright: ignore[reportCallIssue]
            progress = restored[_PROGRESS]
            _ = progress[_CHECKSUMS].items(), progress[_VALUES].items()
            return restored[_ARRAYS], progress
        except (ConfigError, MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:  # whatever a damaged file makes its readers raise
            refused = system_reason(error, ignored=_MISSING) or _unreadable(folder)
            return _Failure(refused or _short(error), may_pass=bool(refused))

    def _set_aside(self, damaged: Mapping[int, str]) -> None:
        """Rename damaged checkpoints."""
        text = "checkpoint of step %d cannot be read and is skipped: %s; it is kept as %s"
        for step, reason in damaged.items():
            _log.warning(text, step, reason, on_primary(lambda step=step: _renamed(self._folder / str(step))))
        if damaged:
            self._manager.reload()

    def close(self) -> None:
        """Wait for the last checkpoint, and end Orbax's threads; raises OutputError if it could not be written."""
        with closing(self._manager):
            self.wait()

    def _not_written(self, error: Exception) -> OutputError:
        kept = f"the last is of step {self.steps[0]}" if self.steps else "there is none yet"
        reason, resume = system_reason(error) or _short(error), shell_word(str(self._folder.parent))
        return OutputError(
            f"a checkpoint in {str(self._folder)!r} cannot be written: {reason}; {kept}: make room or repair the "
            f"folder, then continue with `jeffnet train --resume {resume}`"
        )


def _flat(state: TrainState) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _check_fits(wanted: Mapping[str, Any], stored: Mapping[str, Any], source: Path) -> None:
    """Raises ConfigError where a checkpoint has other arrays than the state."""
    missing = [name for name in wanted if name not in stored]
    left_over = [name for name in stored if name not in wanted]
    misfits = [
        f"{name} is {stored[name].dtype}{list(stored[name].shape)}, not {leaf.dtype}{list(leaf.shape)}"
        for name, leaf in wanted.items()
        if name in stored and (tuple(stored[name].shape), stored[name].dtype) != (leaf.shape, leaf.dtype)
    ]
    if missing or left_over or misfits:
        parts = [("missing", missing), ("left over", left_over), ("misshapen", misfits)]
        shown = "; ".join(f"{what} ({len(names)}): {names[0]}, ..." for what, names in parts if names)
        raise ConfigError(
            f"the configuration does not fit the checkpoint {str(source)!r}: {shown}: resume with the model, optimizer "
            "and averaging of the run's start"
        )


def _short(error: Exception) -> str:
    """An error's first line, without what TensorStore appends for its developers."""
    return re.sub(r" \[(tensorstore_spec|source locations)=.*", "", first_line(error))


def _unreadable(folder: Path) -> str | None:
    """Why the system refuses to read a file in a folder; None if it reads them all."""
    try:
        for path in filter(Path.is_file, folder.rglob("*")):
            with path.open("rb", buffering=0) as file:
                while file.read(_CHUNK):
                    pass
    except OSError as error:
        return system_reason(error, ignored=_MISSING)
    return None


def _renamed(folder: Path) -> str:
    """Rename a damaged checkpoint, and return its new name."""
    others = (f"damaged_{folder.name}_{count}" for count in itertools.count(2))
    names = itertools.chain([f"damaged_{folder.name}"], others)
    name = next(name for name in names if not (folder.parent / name).exists())
    try:
        folder.rename(folder.parent / name)
    except OSError as error:
        raise OutputError(f"damaged checkpoint {str(folder)!r} cannot be renamed: {error.strerror or error}") from error
    return name


def _first_difference(sums: Mapping[str, int], expected: Mapping[str, int]) -> str | None:
    return next((name for name in {**expected, **sums} if sums.get(name) != expected.get(name)), None)


def _checksums(arrays: Mapping[str, Any]) -> dict[str, int]:
    """By name, independent of how arrays are split: processes add up the parts that they hold.

    The format does not replace them. OCDBT has checksums of its index alone: of 142 random flips in files of values,
    106 were read back as other numbers without an error.
    """
    held = {
        name: sum(
            checksum_of_part(np.asarray(shard.data), shard.index, array.shape)
            for shard in array.addressable_shards
            if shard.replica_id == 0
        )
        for name, array in arrays.items()
    }
    everywhere = gathered(held)
    return {name: sum(sums[name] for sums in everywhere) % 2**64 for name in held}
