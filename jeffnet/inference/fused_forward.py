"""Fused models as what validation and prediction call, and where they cannot take the place of a backend's layers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.backends import RUNNING_BACKEND
from jeffnet.inference.fused import FusedModel, fuse
from jeffnet.ops.image import normalize
from jeffnet.weights.start import Start

BY_FUSED = "the fused model"


def computed_by(
    backend: str, dtype: DTypeLike, *, fused: bool = True, jit: bool = True, devices: int | None = None
) -> str:
    """What computes a model here: `BY_FUSED`, or the layers of a backend, with the reason.

    Args:
      backend: a name in `jeffnet.backends.BACKENDS`; another one than the default was chosen for its layers.
      dtype: of the arithmetic; fused kernels have float32 and bfloat16.
      fused: False was chosen for the layers.
      jit: whether the model is compiled.
      devices: that share a batch.
    """
    platform = jax.default_backend()
    reasons = {
        "not compiled": not jit or jax.config.jax_disable_jit,  # pyright: ignore[reportAttributeAccessIssue]
        jnp.dtype(dtype).name: jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16),
        f"on {platform}": platform != "cpu",
        f"on {devices} devices": devices not in (None, 1),
    }
    if not fused or backend != RUNNING_BACKEND:
        return f"the layers of {backend}"
    reason = next((reason for reason, applies in reasons.items() if applies), None)
    return f"the layers of {backend} ({reason})" if reason else BY_FUSED


class FusedForward:
    """A function like those of `jeffnet.inference.forward.make_forward`, which takes no variables.

    It is compiled for the shape of the first batch, and again whenever another one comes.
    """

    def __init__(self, start: Start, preprocessing: Preprocessing) -> None:
        self._start, self._preprocessing = start, preprocessing
        self._fused: FusedModel | None = None
        self._normalize = jax.jit(lambda images: normalize(images, preprocessing.mean, preprocessing.std))

    def __call__(self, variables: Any, images: Array | np.ndarray) -> Array:
        is_pixels = images.dtype == np.uint8
        images = images if is_pixels else self._normalize(images)
        if self._fused is None or (self._fused.images.shape, self._fused.images.dtype) != (images.shape, images.dtype):
            count, height, width, _ = images.shape
            preprocessing = self._preprocessing if is_pixels else None
            self._fused = None  # which has the weights, so that they are not in memory three times
            self._fused = fuse(self._start, batch_size=count, image_size=(height, width), preprocessing=preprocessing)
        return self._fused(images)
