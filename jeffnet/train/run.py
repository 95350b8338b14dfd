"""A run's folder: everything that a run writes, and what is needed to continue it.

* `config.json`: the whole configuration.
* `metrics.jsonl`: one JSON object a line, each with `step`.
* `curves.png`: learning curves.
* `checkpoints/`: the last states, for `jeffnet train --resume`.
* `model.safetensors`: the best model so far, for `jeffnet validate` and `jeffnet predict`.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from jeffnet.data.loader import LoaderState, TrainLoader
from jeffnet.errors import ConfigError, OutputError
from jeffnet.train.config import Config, from_json, to_json
from jeffnet.train.step import TrainState

_STATE, _DATA = "state", "data"


class Run:
    """The files of a run. Make one with `create` or `open`; close it to wait for checkpoints being written."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder = folder
        self.config = config
        self._checkpoints = ocp.CheckpointManager(
            folder.absolute() / "checkpoints",
            options=ocp.CheckpointManagerOptions(max_to_keep=config.keep_checkpoints, create=True),
        )

    @classmethod
    def create(cls, folder: str | os.PathLike, config: Config) -> "Run":
        """A new run's folder.

        Raises:
          OutputError: it cannot be made or written to, or holds a run already.
        """
        folder = Path(folder)
        if (folder / "config.json").exists():
            raise OutputError(
                f"output folder {str(folder)!r} holds a run already: continue it with `--resume {folder}`, or "
                "give another"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / "config.json", to_json(config))
        except OSError as error:
            raise OutputError(f"output folder {str(folder)!r} cannot be written to: {error.strerror}") from error
        return cls(folder, config)

    @classmethod
    def open(cls, folder: str | os.PathLike) -> "Run":
        """The folder of a run to continue.

        Raises:
          ConfigError: it holds no run, or one whose configuration this version cannot read.
        """
        path = Path(folder) / "config.json"
        try:
            text = path.read_text()
        except OSError as error:
            raise ConfigError(
                f"{str(folder)!r} is no run folder: cannot read config.json ({error.strerror})"
            ) from error
        return cls(Path(folder), from_json(text, str(path)))

    @property
    def model_path(self) -> Path:
        """Where the best model is."""
        return self.folder / "model.safetensors"

    def log(self, row: Mapping[str, Any]) -> None:
        """Add a line to `metrics.jsonl`; the row has a `step`."""
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """All lines of `metrics.jsonl`; a last line that a crash cut off is left out."""
        path = self.folder / "metrics.jsonl"
        rows = []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        return rows

    def save(self, state: TrainState, loader: TrainLoader) -> None:
        """Begin to write a checkpoint; under its name there is never half a one."""
        self._checkpoints.save(
            int(state.step),
            args=ocp.args.Composite(
                **{_STATE: ocp.args.StandardSave(state), _DATA: ocp.args.JsonSave(dict(loader.get_state()))}  # pyright: ignore[reportCallIssue]
            ),
        )

    def restore(self, state: TrainState, loader: TrainLoader) -> TrainState:
        """The last checkpoint's state; the loader goes on where it was then, and later metrics are taken back.

        Args:
          state: one of the same shapes; returned as it is where there is no checkpoint yet.
          loader: of the same data, batch size and seed.
        """
        last = self._checkpoints.latest_step()
        if last is not None:
            args = ocp.args.Composite(**{_STATE: ocp.args.StandardRestore(state), _DATA: ocp.args.JsonRestore()})  # pyright: ignore[reportCallIssue]
            restored = self._checkpoints.restore(last, args=args)
            state, position = restored[_STATE], restored[_DATA]
            loader.set_state(LoaderState(**position))
        kept = [row for row in self.rows() if row["step"] <= int(state.step)]
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in kept))
        return state

    def close(self) -> None:
        """Wait until the last checkpoint is written."""
        self._checkpoints.close()


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)
