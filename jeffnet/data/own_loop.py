"""Batches for a training loop of one's own, from the name of a data set."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.data.batches import WHOLE, OnBadImage, Shard
from jeffnet.data.loaders import eval_loader, train_loader
from jeffnet.data.open import open_source
from jeffnet.data.preprocess import EvalTransform, TrainTransform, preprocessing_of
from jeffnet.errors import ConfigError

# What a recipe's `augment.` entries also have: done to whole batches, on the device.
_OF_BATCHES = ("erase_", "mix", "cutmix")


def loader(
    data: str | os.PathLike,
    split: str = "train",
    batch_size: int = 32,
    train: bool = True,
    *,
    model: Any = None,
    image_size: int | None = None,
    augment: Mapping[str, Any] | str | None = None,
    seed: int = 0,
    channels: int = 3,
    classes: Sequence[str] | None = None,
    shard: Shard = WHOLE,
    threads: int | None = None,
    workers: int = 0,
    on_bad_image: OnBadImage = "error",
    sampling: str = "natural",
) -> Any:
    """Batches of a data set, as `jeffnet train` and `jeffnet validate` read them.

    Pixels are as they are stored, 0 to 255: normalise them on the device, by `jeffnet.ops.image.normalize`.

    Args:
      data: a folder with `train/<class>/` and `val/<class>/`, 'digits', or another data set, see
        `jeffnet.data.open.open_source`.
      split: 'train', 'val' or another split of the data set.
      batch_size: pictures of a batch, of this host.
      train: True for shuffled and augmented batches without end, False for one pass in the data set's order.
      model: whose preprocessing is taken: a name, a card or what has one, or a `Preprocessing`; None takes 224 pixels
        and ImageNet's mean.
      image_size: height and width of the pictures; the model's by default.
      augment: in training, a policy such as 'rand-m9-mstd0.5-inc1', or entries of a recipe's `augment` for single
        pictures: `scale`, `ratio`, `interpolation`, `hflip`, `vflip`, `color_jitter`, `policy`, `splits`, `repeats`.
        Mixup, cutmix and erasing work on whole batches, see `jeffnet.ops.mix` and `jeffnet.ops.erase`.
      seed: of the order and the augmentation, 0 to 2**32 - 1.
      channels: 3 for RGB, 1 for grey.
      classes: the order of labels, for an image folder: those of the training set for the validation set.
      shard: which host this is of how many, such as `Shard(jax.process_index(), jax.process_count())`.
      threads: how many prepare pictures; None takes one for each processor.
      workers: processes that prepare pictures, instead of the threads.
      on_bad_image: 'error' raises at a picture that cannot be read, 'skip' goes on without it.
      sampling: in training, how often classes are drawn: 'natural', 'square_root' or 'balanced', see
        `jeffnet.data.sampling.class_draws`.

    Returns:
      In training an iterator over `{'image': uint8 (B, S, S, C), 'label': int32 (B,)}`, whose `get_state()` and
      `set_state(state)` continue it. Otherwise an iterable over batches that also have `mask`, False in the padding of
      the last one, and `index`. Both have `classes` and `num_examples`.

    Raises:
      DatasetError: there is no such data set, or it has fewer pictures than a batch.
      ConfigError: a setting outside its range, or no such entry of `augment`.

    Example:
      from jeffnet.data import loader

      batches = loader("pictures", "train", 8, image_size=32, augment={"hflip": 0.5, "policy": "rand-m9"})
      print(next(batches)["image"].shape, batches.classes)
    """
    preprocessing = Preprocessing() if model is None else preprocessing_of(model)
    if image_size is not None:
        preprocessing = preprocessing.changed(image_size=image_size, train_size=image_size)
    if not train and (augment is not None or sampling != "natural"):
        option = "sampling" if augment is None else "augment"
        raise ConfigError(f"{option} is for training: leave it out, or pass train=True")
    source = open_source(os.fspath(data), split, channels, classes)
    if not train:
        return eval_loader(source, EvalTransform(preprocessing), batch_size, threads, workers, shard, on_bad_image)
    entries: dict[str, Any] = {"policy": augment} if isinstance(augment, str) else dict(augment or {})
    repeats = entries.pop("repeats", 1)
    transform = _train_transform(preprocessing, entries)
    return train_loader(source, transform, batch_size, seed, threads, workers, shard, repeats, on_bad_image, sampling)


def _train_transform(preprocessing: Preprocessing, entries: dict[str, Any]) -> TrainTransform:
    known = {field.name for field in fields(TrainTransform)} - {"image_size"}
    for name in entries:
        if name not in known:
            way_out = f"there are {', '.join(sorted({*known, 'repeats'}))}"
            if name.startswith(_OF_BATCHES):
                way_out = "it is for whole batches: call jeffnet.ops.mix or jeffnet.ops.erase in the training step"
            raise ConfigError(f"augment has no entry {name!r} for single pictures: {way_out}")
    return TrainTransform.of(preprocessing, **entries)
