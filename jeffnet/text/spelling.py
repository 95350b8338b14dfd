"""Suggestions for misspelt options and configuration entries."""

import difflib
from collections.abc import Iterable

# Our names, and those of timm, torchvision, Keras and Lightning for the same, with underscores.
_ALIASES_OF = {
    "accumulate": "accum_iter accumulate_grad_batches grad_accum_steps",
    "augment.erase_count": "recount",
    "augment.erase_mode": "remode",
    "augment.erase_prob": "reprob",
    "augment.interpolation": "train_interpolation",
    "augment.mix_mode": "mixup_mode",
    "augment.mix_off_epoch": "mixup_off_epoch",
    "augment.mix_prob": "mixup_prob",
    "augment.mix_switch_prob": "mixup_switch_prob",
    "augment.policy": "aa auto_augment randaug",
    "augment.repeats": "aug_repeats",
    "augment.splits": "aug_splits",
    "batch_size": "b bs batch",
    "checkpoint.every_steps checkpoint.every_minutes": "recovery_interval",
    "checkpoint.keep_best": "checkpoint_hist",
    "data.image_size": "image_size",
    "data.path": "data data_dir data_path dataset",
    "device": "cuda gpu",
    "ema.decay": "model_ema model_ema_decay",
    "ema.warmup": "model_ema_warmup",
    "epochs": "max_epochs n_epochs num_epochs",
    "image_size data.image_size": "img_size input_size imgsz",
    "log.steps": "log_interval",
    "log.wandb_project": "log_wandb",
    "loss.bce_threshold": "bce_target_thresh",
    "loss.distillation loss.feature_distillation": "distill_loss_weight kd_distill_type",
    "loss.label_smoothing": "label_smoothing smoothing",
    "loss.name": "bce_loss jsd_loss",
    "loss.teacher": "kd_model_name",
    "loss.temperature": "kd_temperature",
    "model.bn_devices": "sync_bn",
    "model.drop_path_rate": "drop_path",
    "model.drop_rate": "drop dropout dropout_rate",
    "model.dtype dtype": "amp amp_dtype precision",
    "model.name": "model",
    "model.name model": "arch model_name",
    "model.pretrained": "initial_checkpoint",
    "model.pretrained weights": "pretrained",
    "model.remat": "grad_checkpointing",
    "num_devices": "gpus",
    "optimizer.b1 optimizer.b2": "opt_betas",
    "optimizer.clip_norm": "clip_grad gradient_clip_val",
    "optimizer.clip_norm optimizer.clip_value optimizer.clip_adaptive": "clip_mode",
    "optimizer.epsilon": "eps opt_eps",
    "optimizer.learning_rate": "lr",
    "optimizer.name": "opt optim optimizer",
    "optimizer.weight_decay": "wd",
    "output": "o out output_dir save_dir",
    "schedule.cycle_decay": "lr_cycle_decay",
    "schedule.cycle_growth": "lr_cycle_mul",
    "schedule.decay_every": "decay_epochs",
    "schedule.final": "min_lr",
    "schedule.milestones": "decay_milestones",
    "schedule.name": "lr_scheduler sched schedule scheduler",
    "schedule.warmup": "warmup warmup_epochs warmup_steps",
    "schedule.warmup_start": "warmup_lr",
    "top": "topk",
    "weights model.pretrained": "checkpoint",
    "workers data.workers": "j num_workers",
}
ALIASES = {alias: tuple(ours.split()) for ours, aliases in _ALIASES_OF.items() for alias in aliases.split()}

_MOST = 3
# Shares of letters in common, as difflib counts them, of what passes for a slip of the finger.
_NEAR, _NEAR_IN_PART = 0.7, 0.8


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Known names that an unknown one may mean, the likeliest first; none if nothing is near.

    Args:
      name: without dashes before it.
      known: likewise; they may have parts, such as `optimizer.learning_rate`. Underscores and dashes are the same.
    """
    by_plain = {_plain(entry): entry for entry in known}
    wanted = _plain(name)
    last = _last_part(wanted)

    def aliased(word: str) -> list[str]:
        return [ours for ours in ALIASES.get(word, ()) if ours in by_plain]

    def ending_in(part: str) -> list[str]:
        return [entry for entry in by_plain if _last_part(entry) == part]

    similar = difflib.get_close_matches(last, dict.fromkeys(map(_last_part, by_plain)), n=1, cutoff=_NEAR_IN_PART)
    matches = (
        aliased(wanted) + ending_in(wanted)
        or aliased(last)
        or difflib.get_close_matches(wanted, by_plain, n=1, cutoff=_NEAR)
        or (ending_in(last) if len(last) > 2 else [])
        or [entry for part in similar for entry in ending_in(part)]
    )
    return [by_plain[entry] for entry in dict.fromkeys(matches)][:_MOST]


def suggestion(name: str, known: Iterable[str], before: str = "") -> str:
    """The end of a message about an unknown name: `; the nearest is NAME`, or nothing.

    Args:
      name: see `nearest`.
      known: likewise.
      before: what stands before each name, such as `--`.
    """
    names = [f"{before}{entry}" for entry in nearest(name, known)]
    return f"; the nearest is {' or '.join(names)}" if names else ""


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def _last_part(name: str) -> str:
    return name.rpartition(".")[2]
