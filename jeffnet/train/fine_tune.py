"""Fine-tuning of weights on a set of pictures, with the recipe `fine_tune`."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jeffnet.data.open import open_source
from jeffnet.errors import ConfigError
from jeffnet.recipes import fine_tune as recipe
from jeffnet.system.files import check_absent, writing
from jeffnet.train.config import Config, DataConfig
from jeffnet.train.loop import train
from jeffnet.train.reports.scores import Result
from jeffnet.train.run import START_FILE, check_no_run, is_run
from jeffnet.weights.card import ModelCard
from jeffnet.weights.load import MODEL_FILE


def fine_tune(
    folder: Path,
    save_start: Callable[[Path], Any],
    data: str,
    *,
    card: ModelCard,
    epochs: int,
    batch_size: int | None,
    progress: bool,
    entries: Mapping[str, Any],
) -> tuple[Path, Result]:
    """Train from weights with the recipe `fine_tune`, and find the best model.

    Args:
      folder: of the run, which keeps the weights too: the run needs them to begin anew.
      save_start: writes the weights to a path that it is given.
      data: see `jeffnet.data.open.open_source`.
      card: of the weights.
      epochs: passes over the training pictures.
      batch_size: of a step; None takes the recipe's.
      progress: report on standard error.
      entries: of the configuration, in place of those of the recipe; those of a part, such as `optimizer`, are joined.

    Returns:
      The file of the best model, which may be of a moving average, and the scores of the run.

    Raises:
      ConfigError: the entries are of another model than the weights.
      JeffnetError: as `jeffnet.train.loop.train`.
    """
    _check_entries(entries, card)
    columns = DataConfig(**{"path": data, **entries.get("data", {})}).columns
    open_source(data, "train", card.in_chans, min_images=2, columns=columns)  # before the weights are written
    start = folder / START_FILE
    values = asdict(recipe.config) | {
        "model": {"pretrained": str(start), "in_chans": card.in_chans},
        "data": {"path": data},
        "epochs": epochs,
        "batch_size": recipe.config.batch_size if batch_size is None else batch_size,
    }
    for name, value in entries.items():
        joined = isinstance(value, Mapping) and isinstance(values.get(name), dict)
        values[name] = {**values[name], **value} if joined else value
    config = Config(**values)
    check_no_run(folder)
    check_absent(start)
    is_new = not folder.exists()
    try:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        save_start(start)
        result = train(config, folder, progress=progress)
    except BaseException:
        if not is_run(folder):  # a mistake leaves nothing behind
            start.unlink(missing_ok=True)
            if is_new:
                with contextlib.suppress(OSError):
                    folder.rmdir()
        raise
    return folder / ("model_ema.safetensors" if result.prefers_ema else MODEL_FILE), result


def _check_entries(entries: Mapping[str, Any], card: ModelCard) -> None:
    """Raises ConfigError where entries would take the place of the weights, their model or the data as a whole."""
    for name, example in (("model", {"drop_rate": 0.2}), ("data", {"image_size": 160})):
        if not isinstance(value := entries.get(name, {}), Mapping):
            raise ConfigError(f"{name}={value!r} is no dictionary: give what is to change, such as {name}={example}")
    for entry in ("name", "spec", "pretrained"):
        value = entries.get("model", {}).get(entry)
        if value is not None and (entry, value) != ("name", card.model):
            shown = value if isinstance(value, str) else "..."
            raise ConfigError(
                f"model={{{entry!r}: {shown}}} is another model than this classifier's, {card.model}: leave it out, "
                "or fine-tune jeffnet.Classifier.from_pretrained of the other"
            )
