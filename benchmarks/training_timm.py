"""timm's training of a model of ours: its model, data, optimizer, schedule and loss, put together as its script does.

`benchmarks/training.py` runs it beside ours.
"""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from jeffnet.arch.zoo import model_preprocessing, model_spec

if TYPE_CHECKING:
    from jeffnet.train.config import Config

Row = dict[str, Any]

# Processes that read pictures, for training and for validation.
_WORKERS = 1


def train(config: "Config", folder: Path) -> Iterator[Row]:
    """The scores after each epoch, from 1 on; `seconds` are those of its training pass.

    Dropout, drop path and BatchNorm's constants are those of our model; ours is named after timm's.

    Raises:
      SystemExit: the configuration sets what is not translated here.
    """
    _check(config)
    stand_in_for_torchvision()
    import torch
    from timm.loss.cross_entropy import LabelSmoothingCrossEntropy
    from timm.models import create_model
    from timm.optim._optim_factory import create_optimizer_v2
    from timm.utils.random import random_seed

    # One processor is the worker's: threads that wait for one another in turn would take longer.
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) - _WORKERS))
    random_seed(config.seed, 0)
    batches = {is_training: _loader(config, folder, is_training) for is_training in (True, False)}
    spec = model_spec(config.model.name)
    model: Any = create_model(
        config.model.name,
        num_classes=len(batches[True].dataset.reader.class_to_idx),
        drop_rate=spec.drop_rate,
        drop_path_rate=spec.drop_path_rate,
        bn_momentum=1 - spec.bn_momentum,
        bn_eps=spec.bn_epsilon,
    )
    model.to(memory_format=torch.channels_last)  # on processors twice as fast
    optimizer: Any = create_optimizer_v2(
        model,
        opt=config.optimizer.name,
        lr=config.optimizer.learning_rate,
        weight_decay=config.optimizer.weight_decay,
    )
    schedule = _schedule(config, optimizer, len(batches[True]))
    loss_of = LabelSmoothingCrossEntropy(config.loss.label_smoothing)
    for epoch in range(1, config.epochs + 1):
        began = time.perf_counter()
        loss = _train_epoch(model, batches[True], optimizer, schedule, loss_of, (epoch - 1) * len(batches[True]))
        seconds = time.perf_counter() - began
        val_loss, top1 = validate(model, batches[False])
        yield {"epoch": epoch, "train_loss": loss, "val_loss": val_loss, "val_top1": top1, "seconds": seconds}


def stand_in_for_torchvision() -> None:
    """Make `import torchvision` work where its compiled operators, which no transform needs, do not load."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.modules["torchvision._meta_registrations"] = ModuleType("torchvision._meta_registrations")


def _check(config: "Config") -> None:
    """What is translated is what small recipes use; anything else would compare two different runs."""
    augment, optimizer, schedule = config.augment, config.optimizer, config.schedule
    faults = {
        "augment": augment.policy or augment.color_jitter or augment.erase_prob or augment.mixes or augment.repeats > 1,
        "optimizer": optimizer.name != "adamw" or optimizer.groups or optimizer.layer_decay or optimizer.clip_norm,
        "schedule": (schedule.name, schedule.unit, schedule.final, schedule.warmup_start) != ("cosine", "epochs", 0, 0),
        "loss": config.loss.name != "cross_entropy" or config.loss.teacher,
        "model": config.model.drop_rate is not None or config.model.pretrained or config.model.name.startswith("tf_"),
    }
    if found := [name for name, fault in faults.items() if fault]:
        raise SystemExit(f"timm's side does not translate all of the recipe's {', '.join(found)}")


def _loader(config: "Config", folder: Path, is_training: bool) -> Any:
    import torch
    from timm.data.dataset_factory import create_dataset
    from timm.data.loader import create_loader

    own, data, augment = model_preprocessing(config.model.name), config.data, config.augment
    size = data.image_size or own.image_size
    if is_training:
        size = data.train_size or data.image_size or own.train_size or own.image_size
    dataset: Any = create_dataset("", str(folder / (data.train_split if is_training else data.val_split)))
    return create_loader(
        dataset,
        (3, size, size),
        config.batch_size,
        is_training=is_training,
        scale=augment.scale,
        ratio=augment.ratio,
        hflip=augment.hflip,
        vflip=augment.vflip,
        color_jitter=0.0,
        interpolation=data.interpolation or own.interpolation,
        mean=data.mean or own.mean,
        std=data.std or own.std,
        crop_pct=data.crop_pct or own.crop_pct,
        num_workers=_WORKERS,
        device=torch.device("cpu"),
    )


def _schedule(config: "Config", optimizer: Any, steps_per_epoch: int) -> Any:
    """Warm-up and half a cosine as ours have them: the first step's rate is one part of the way up, not 0."""
    from timm.scheduler.cosine_lr import CosineLRScheduler

    warmup = round(config.schedule.warmup * steps_per_epoch)
    return CosineLRScheduler(
        optimizer,
        t_initial=config.epochs * steps_per_epoch - warmup,
        warmup_t=warmup,
        warmup_lr_init=config.optimizer.learning_rate / (warmup + 1),
        warmup_prefix=True,
        t_in_epochs=False,
    )


def _train_epoch(model: Any, batches: Any, optimizer: Any, schedule: Any, loss_of: Any, updates: int) -> float:
    """The mean loss; `updates` is how many there were before."""
    import torch

    model.train()
    losses = []
    for images, labels in batches:
        images = images.contiguous(memory_format=torch.channels_last)
        loss = loss_of(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        updates += 1
        schedule.step_update(updates)
    return sum(losses) / len(losses)


def validate(model: Any, batches: Any) -> tuple[float, float]:
    """Mean cross entropy, and top-1 in per cent."""
    import torch

    model.eval()
    loss = right = 0.0
    with torch.no_grad():
        for images, labels in batches:
            logits = model(images.contiguous(memory_format=torch.channels_last))
            loss += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            right += (logits.argmax(1) == labels).sum().item()
    count = len(batches.dataset)
    return loss / count, 100 * right / count
