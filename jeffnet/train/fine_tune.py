"""Fine-tuning of weights on a set of pictures, without a recipe."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jeffnet.data.open import open_source
from jeffnet.train.config import Config
from jeffnet.train.loop import train
from jeffnet.train.reports.scores import Result
from jeffnet.weights.load import MODEL_FILE

# The entries of configs/fine_tune.py, whose comments say why; a test compares them.
FINE_TUNE: Mapping[str, Mapping[str, Any]] = {
    "augment": {"scale": (0.35, 1.0)},
    "loss": {"label_smoothing": 0.1},
    "optimizer": {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.05, "layer_decay": 0.85},
    "schedule": {"name": "cosine", "warmup": 1.0},
    "ema": {"decay": 0.999},
}
BATCH_SIZE = 32


def fine_tune(
    folder: Path,
    weights: str,
    data: str,
    *,
    in_chans: int,
    epochs: int,
    batch_size: int | None,
    progress: bool,
    entries: Mapping[str, Any],
) -> tuple[Path, Result]:
    """Train from weights, as configs/fine_tune.py does, and find the best model.

    Args:
      folder: of the run.
      weights: a file, or any other source.
      data: see `jeffnet.data.open.open_source`.
      in_chans: channels of the pictures.
      epochs: passes over the training pictures.
      batch_size: of a step; None takes 32, or all pictures where there are fewer.
      progress: report on standard error.
      entries: of the configuration, in place of those of the recipe; those of a part, such as `optimizer`, are joined.

    Returns:
      The file of the best model, which may be of a moving average, and the scores of the run.

    Raises:
      JeffnetError: as `jeffnet.train.loop.train`.
    """
    batch_size = batch_size or min(BATCH_SIZE, len(open_source(data, "train", in_chans, min_images=2)))
    values: dict[str, Any] = {name: dict(part) for name, part in FINE_TUNE.items()}
    values |= {"model": {"pretrained": weights, "in_chans": in_chans}, "data": {"path": data}}
    # A warm-up may not be as long as the run.
    values["schedule"]["warmup"] = min(1.0, epochs / 2)
    for name, value in entries.items():
        joined = isinstance(value, Mapping) and isinstance(values.get(name), dict)
        values[name] = {**values[name], **value} if joined else value
    result = train(Config(**values, epochs=epochs, batch_size=batch_size), folder, progress=progress)
    is_average = result.best_ema is not None and result.best_ema.top1 > result.best.top1
    return folder / ("model_ema.safetensors" if is_average else MODEL_FILE), result
