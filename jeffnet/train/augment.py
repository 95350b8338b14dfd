"""Augmentation of batches on the device: soft targets, mixing, erasing."""

import jax
import jax.numpy as jnp
from jax import Array

from jeffnet.ops.erase import random_erasing
from jeffnet.ops.loss import soft_targets
from jeffnet.ops.mix import mix_batch
from jeffnet.train.config import AugmentConfig, Config
from jeffnet.train.network import Network


def augment_batch(images: Array, labels: Array, key: Array, config: Config, network: Network) -> tuple[Array, Array]:
    """Augmented pixels and soft targets, inside `jax.jit`.

    Args:
      images: uint8 `(N, H, W, C)`, or `(N, splits, H, W, C)`, whose first views are not erased.
      labels: `(N,)`, or `(N, classes)` of several labels or numbers.
      key: for all random draws.
      config: of the run.
      network: with the classes and the preprocessing.

    Returns:
      Pixels, 0 to 255, shaped like `images` (uint8 if nothing was done), and targets `(N, classes)`.
    """
    augment, dtype = config.augment, network.compute_dtype
    mix_key, erase_key = jax.random.split(key)
    smoothing = config.loss.label_smoothing
    if labels.ndim == 1:
        targets = soft_targets(labels, network.plan.num_classes, smoothing, dtype)
    else:  # of several labels, or numbers, which half precision would round
        targets = (1 - smoothing) * labels.astype(jnp.float32) + smoothing / 2
    if augment.mixes:
        images, targets = mix_batch(
            images,
            targets,
            mix_key,
            mixup=augment.mixup,
            cutmix=augment.cutmix,
            prob=augment.mix_prob,
            switch_prob=augment.mix_switch_prob,
            mode=augment.mix_mode,
            dtype=dtype,
        )
    if augment.erase_prob > 0:
        images = images.astype(dtype)
        if augment.splits == 1:
            images = _erased(images, erase_key, augment, network)
        else:
            others = images[:, 1:]
            erased = _erased(others.reshape(-1, *others.shape[2:]), erase_key, augment, network)
            images = jnp.concatenate([images[:, :1], erased.reshape(others.shape)], axis=1)
    return images, targets


def _erased(images: Array, key: Array, augment: AugmentConfig, network: Network) -> Array:
    return random_erasing(
        images,
        key,
        prob=augment.erase_prob,
        mode=augment.erase_mode,
        count=augment.erase_count,
        mean=network.preprocessing.mean,
        std=network.preprocessing.std,
    )
