"""Suggestions for misspelt options and configuration entries."""

import difflib
from collections.abc import Iterable

# Names in timm, torchvision, Keras and Lightning, with underscores, and our names for the same.
ALIASES: dict[str, tuple[str, ...]] = {
    "aa": ("augment.policy",),
    "accum_iter": ("accumulate",),
    "accumulate_grad_batches": ("accumulate",),
    "amp": ("model.dtype", "dtype"),
    "amp_dtype": ("model.dtype", "dtype"),
    "arch": ("model.name", "model"),
    "aug_repeats": ("augment.repeats",),
    "aug_splits": ("augment.splits",),
    "auto_augment": ("augment.policy",),
    "b": ("batch_size",),
    "bce_loss": ("loss.name",),
    "bce_target_thresh": ("loss.bce_threshold",),
    "bs": ("batch_size",),
    "batch": ("batch_size",),
    "checkpoint": ("weights", "model.pretrained"),
    "checkpoint_hist": ("checkpoint.keep_best",),
    "clip_grad": ("optimizer.clip_norm",),
    "clip_mode": ("optimizer.clip_norm", "optimizer.clip_value", "optimizer.clip_adaptive"),
    "cuda": ("device",),
    "data": ("data.path",),
    "data_dir": ("data.path",),
    "data_path": ("data.path",),
    "dataset": ("data.path",),
    "decay_epochs": ("schedule.decay_every",),
    "decay_milestones": ("schedule.milestones",),
    "drop": ("model.drop_rate",),
    "drop_path": ("model.drop_path_rate",),
    "dropout": ("model.drop_rate",),
    "dropout_rate": ("model.drop_rate",),
    "eps": ("optimizer.epsilon",),
    "gpu": ("device",),
    "gpus": ("num_devices",),
    "grad_accum_steps": ("accumulate",),
    "grad_checkpointing": ("model.remat",),
    "gradient_clip_val": ("optimizer.clip_norm",),
    "image_size": ("data.image_size",),
    "img_size": ("image_size", "data.image_size"),
    "input_size": ("image_size", "data.image_size"),
    "imgsz": ("image_size", "data.image_size"),
    "initial_checkpoint": ("model.pretrained",),
    "j": ("workers", "data.workers"),
    "jsd_loss": ("loss.name",),
    "label_smoothing": ("loss.label_smoothing",),
    "log_interval": ("log.steps",),
    "log_wandb": ("log.wandb_project",),
    "lr": ("optimizer.learning_rate",),
    "lr_cycle_decay": ("schedule.cycle_decay",),
    "lr_cycle_mul": ("schedule.cycle_growth",),
    "lr_scheduler": ("schedule.name",),
    "max_epochs": ("epochs",),
    "min_lr": ("schedule.final",),
    "mixup_mode": ("augment.mix_mode",),
    "mixup_off_epoch": ("augment.mix_off_epoch",),
    "mixup_prob": ("augment.mix_prob",),
    "mixup_switch_prob": ("augment.mix_switch_prob",),
    "model": ("model.name",),
    "model_ema": ("ema.decay",),
    "model_ema_decay": ("ema.decay",),
    "model_ema_warmup": ("ema.warmup",),
    "model_name": ("model.name", "model"),
    "n_epochs": ("epochs",),
    "num_epochs": ("epochs",),
    "num_workers": ("workers", "data.workers"),
    "o": ("output",),
    "opt": ("optimizer.name",),
    "opt_betas": ("optimizer.b1", "optimizer.b2"),
    "opt_eps": ("optimizer.epsilon",),
    "optim": ("optimizer.name",),
    "optimizer": ("optimizer.name",),
    "out": ("output",),
    "output_dir": ("output",),
    "precision": ("model.dtype", "dtype"),
    "pretrained": ("model.pretrained", "weights"),
    "randaug": ("augment.policy",),
    "recount": ("augment.erase_count",),
    "recovery_interval": ("checkpoint.every_steps", "checkpoint.every_minutes"),
    "remode": ("augment.erase_mode",),
    "reprob": ("augment.erase_prob",),
    "save_dir": ("output",),
    "sched": ("schedule.name",),
    "schedule": ("schedule.name",),
    "scheduler": ("schedule.name",),
    "smoothing": ("loss.label_smoothing",),
    "sync_bn": ("model.bn_devices",),
    "topk": ("top",),
    "train_interpolation": ("augment.interpolation",),
    "warmup": ("schedule.warmup",),
    "warmup_epochs": ("schedule.warmup",),
    "warmup_lr": ("schedule.warmup_start",),
    "warmup_steps": ("schedule.warmup",),
    "wd": ("optimizer.weight_decay",),
}

_MOST = 3
# Shares of letters in common, as difflib counts them, of what passes for a slip of the finger.
_NEAR, _NEAR_IN_PART = 0.7, 0.8


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Known names that an unknown one may mean, the likeliest first; none if nothing is near.

    Args:
      name: without dashes before it.
      known: likewise; they may have parts, such as `optimizer.learning_rate`. Underscores and dashes are the same.
    """
    by_plain = {_plain(each): each for each in known}
    wanted = _plain(name)
    last = wanted.rpartition(".")[2]
    # Half of a name that exists in one of the parts, or what others call it.
    found = [*(word for word in ALIASES.get(wanted, ()) if word in by_plain)]
    found += [each for each in by_plain if each.rpartition(".")[2] == wanted]
    if not found:
        found += [word for word in ALIASES.get(last, ()) if word in by_plain]
    if not found:
        found += difflib.get_close_matches(wanted, by_plain, n=1, cutoff=_NEAR)
    if not found:
        found += [each for each in by_plain if len(last) > 2 and each.rpartition(".")[2] == last]
    if not found:
        parts: dict[str, list[str]] = {}
        for each in by_plain:
            parts.setdefault(each.rpartition(".")[2], []).append(each)
        for part in difflib.get_close_matches(last, parts, n=1, cutoff=_NEAR_IN_PART):
            found += parts[part]
    return [by_plain[each] for each in dict.fromkeys(found)][:_MOST]


def suggestion(name: str, known: Iterable[str], before: str = "") -> str:
    """The end of a message about an unknown name: `; the nearest is NAME`, or nothing.

    Args:
      name: see `nearest`.
      known: likewise.
      before: what stands before each name, such as `--`.
    """
    found = [f"{before}{each}" for each in nearest(name, known)]
    return f"; the nearest is {' or '.join(found)}" if found else ""


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")
