"""What a model looks at: how much each place of a picture counts for a class.

    import jeffnet

    classifier = jeffnet.Classifier.from_pretrained("tf_efficientnet_lite0")
    classifier.explain("photo.jpg").save("explained.png")

`explain` is the same for models of any backend, and gives the numbers.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image

from jeffnet import functional
from jeffnet.backends import to_start
from jeffnet.data.images import upright
from jeffnet.data.preprocess import EvalTransform
from jeffnet.errors import ConfigError, InputError, check_choice
from jeffnet.inference.choices import EXPLANATIONS
from jeffnet.inference.forward import softmax
from jeffnet.inference.outputs import LOGITS, compiled_output
from jeffnet.ops.image import normalize
from jeffnet.ops.precision import at_least_float32
from jeffnet.system.progress import progress_bar
from jeffnet.weights.start import Start

# SmoothGrad's samples, and their noise as a share of the picture's range: of those that the paper shows, the clearest.
_SAMPLES, _NOISE = 25, 0.15
# Values above this percentile are single pixels, beside which nothing else would be seen.
_BRIGHTEST = 99.0
# Windows of occlusion along a side, without those that overlap; and pictures that run together.
_WINDOWS, _BATCH = 7, 16
# Keeps Grad-CAM++ from dividing by zero; as in the package pytorch-grad-cam.
_EPSILON = 1e-6
_LARGEST_SIDE = 800  # of an overlay


def explain(
    model: Any,
    images: Any,
    method: str = "grad-cam",
    classes: Sequence[int] | None = None,
    layer: str | None = None,
) -> np.ndarray:
    """How much each place of pictures counts for a class.

    Args:
      model: what any backend's `create_model` or `from_pretrained` returns, `(model, variables)` as a pair; or its
        start.
      images: float `(N, H, W, C)`, normalised.
      method: 'grad-cam' and 'grad-cam++' weigh the channels of a map of features by the class's derivatives;
        'smoothgrad' takes the derivative with respect to each pixel, averaged over 25 noisy copies; 'occlusion' the
        probability that is lost where a grey window covers the picture.
      classes: N numbers of classes; None takes the most probable of each picture.
      layer: name of a map, see `feature_info` of the model, for the first two methods; None takes the last.

    Returns:
      float32 `(N, H, W)`, each picture's values from 0 to 1.

    Raises:
      ConfigError: no such method or layer, a layer for a method that has none, or a model without a classifier.
      InputError: the images do not fit the model, or there is no such class.
      WeightsError: the model computes something else than its plan says.

    Source: Selvaraju et al., "Grad-CAM", arXiv:1610.02391; Chattopadhyay et al., "Grad-CAM++", arXiv:1710.11063;
      Smilkov et al., "SmoothGrad", arXiv:1706.03825; Zeiler and Fergus, arXiv:1311.2901, for occlusion.
    """
    return Explainer(model, method, layer)(images, classes)


class Explainer:
    """`explain` of one model by one method, compiled once for many calls.

    Attributes:
      method: one of `jeffnet.inference.choices.EXPLANATIONS`.
    """

    def __init__(self, model: Any, method: str = "grad-cam", layer: str | None = None) -> None:
        """Args and errors: as `explain`."""
        check_choice("method", method, EXPLANATIONS)
        start = model if isinstance(model, Start) else to_start(model)
        self.method, self._index = method, _map_index(start, method, layer)
        self._start = replace(start, dtype=at_least_float32(start.dtype))  # rounded derivatives would show
        self._model, self._variables = functional.build(self._start)
        self._occluded: dict[tuple[int, ...], Callable[[Any], Any]] = {}

    def __call__(self, images: Any, classes: Sequence[int] | None = None) -> np.ndarray:
        """What `explain` returns, of pictures one by one: any number of them takes the same memory.

        Args:
          images: as for `explain`.
          classes: as for `explain`.

        Returns:
          float32 `(N, H, W)`.

        Raises:
          InputError: as `explain`.
        """
        images = jnp.asarray(images, self._start.dtype)
        if images.ndim != 4:
            raise InputError(f"images of shape {images.shape}: give (N, H, W, C)")
        chosen = None if classes is None else _checked(classes, len(images), self._start.plan.num_classes)
        heat = [self._one(image[None], None if chosen is None else chosen[row]) for row, image in enumerate(images)]
        return _scaled(np.concatenate(heat)) if heat else np.zeros(images.shape[:3], np.float32)

    def _one(self, image: Array, target: int | None) -> np.ndarray:
        """The heat of one picture, `(1, H, W)`."""
        model, variables = self._model, self._variables
        target = int(_logits(model, variables, image).argmax()) if target is None else target
        target_array = jnp.full(1, target)
        if self.method == "occlusion":
            return self._lost(np.asarray(image[0]), target)[None]
        if self.method == "smoothgrad":
            slopes = np.abs(np.asarray(_smooth_slopes(model, variables, image, target_array))).max(axis=-1)
            return np.minimum(slopes, np.percentile(slopes, _BRIGHTEST))
        maps, slopes = map(np.asarray, _maps_and_slopes(model, variables, image, target_array, self._index))
        weights = slopes.mean((1, 2)) if self.method == "grad-cam" else _plus_plus_weights(maps, slopes)
        heat = _scaled(np.maximum(np.einsum("nhwc,nc->nhw", maps, weights), 0))
        size = image.shape[2], image.shape[1]
        return np.asarray(Image.fromarray(heat[0]).resize(size, Image.Resampling.BILINEAR))[None]

    def _lost(self, image: np.ndarray, target: int) -> np.ndarray:
        """The mean loss of the class's probability over all windows that cover a pixel, `(H, W)`."""
        shape = image.shape[0], image.shape[1]
        if shape not in self._occluded:
            self._occluded[shape] = compiled_output(self._start, LOGITS, _BATCH, shape)
        apply, windows = self._occluded[shape], _windows(*shape)
        lost, covered = np.zeros((2, *shape), np.float32)
        whole = _probabilities(apply, image[None], target)[0]
        for first in range(0, len(windows), _BATCH):
            some = windows[first : first + _BATCH]
            batch = np.repeat(image[None], len(some), axis=0)
            for row, (rows, columns) in zip(batch, some, strict=True):
                row[rows, columns] = 0  # the mean of the training pictures
            for (rows, columns), share in zip(some, _probabilities(apply, batch, target), strict=True):
                lost[rows, columns] += whole - share
                covered[rows, columns] += 1
        return np.maximum(lost / np.maximum(covered, 1), 0)


def explained(
    model: Any,
    pictures: Sequence[Image.Image],
    transform: EvalTransform,
    method: str = "grad-cam",
    classes: Sequence[int | None] | None = None,
    layer: str | None = None,
    progress: bool = False,
) -> list[Image.Image]:
    """Pictures with what counts for a class in colour, see `overlay`.

    Args:
      model: as for `explain`.
      pictures: of modes 'RGB' or 'L'.
      transform: from a picture to the model's pixels.
      method: as for `explain`, with the following two.
      classes: number of each picture's class; None takes its most probable one.
      layer: name of a map.
      progress: show on standard error how far it is.

    Returns:
      For each picture the part that the model sees, in the picture's own resolution, up to 800 pixels.

    Raises:
      JeffnetError: as `explain`.
    """
    explainer, preprocessing, shown = Explainer(model, method, layer), transform.preprocessing, []
    with progress_bar("explaining", len(pictures), "image", shown=progress) as bar:
        for row, picture in enumerate(pictures):
            image = normalize(transform(picture)[None], preprocessing.mean, preprocessing.std)
            label = classes[row] if classes else None
            heat = explainer(image, None if label is None else [label])[0]
            shown.append(overlay(seen_part(upright(picture) if transform.exif else picture, transform), heat))
            bar.update()
    return shown


def _map_index(start: Start, method: str, layer: str | None) -> int:
    plan = start.plan
    if not plan.classifier:
        raise ConfigError("the model has no classifier: there is no class to explain")
    if plan.global_pool == "none" and not start.execution.test_window:
        raise ConfigError("the model has logits for every place of the last map, which show what it looks at")
    if layer is None:
        return len(plan.features) - 1
    if method not in ("grad-cam", "grad-cam++"):
        raise ConfigError(f"{method} has no layer: it is of the pixels")
    names = [feature.name for feature in plan.features]
    check_choice("layer", layer, names)
    return names.index(layer)


def _checked(classes: Sequence[int], count: int, width: int) -> list[int]:
    """The classes of pictures, if there are as many, and the model has them."""
    chosen = np.asarray(classes)
    if chosen.shape != (count,) or not np.issubdtype(chosen.dtype, np.integer):
        raise InputError(f"classes {classes!r} are not {count} whole numbers, one for each picture")
    if not ((chosen >= 0) & (chosen < width)).all():
        raise InputError(f"classes {chosen.tolist()}: the model has {width}, 0 to {width - 1}")
    return chosen.tolist()


def _of_classes(logits: Array, classes: Array) -> Array:
    """The logits of one class of each picture."""
    return jnp.take_along_axis(logits, classes[:, None], axis=1)[:, 0]


@functools.partial(jax.jit, static_argnames="model")
def _logits(model: functional.ImageClassifier, variables: Any, images: Array) -> Array:
    return model.apply(variables, images)


@functools.partial(jax.jit, static_argnames=("model", "index"))
def _maps_and_slopes(
    model: functional.ImageClassifier, variables: Any, images: Array, classes: Array, index: int
) -> tuple[Array, Array]:
    """A map of features, and the derivatives of the classes' logits with respect to it."""
    (maps,) = model.features(variables, images, (index,))
    return maps, jax.grad(lambda maps: _of_classes(model.from_features(variables, maps, index), classes).sum())(maps)


@functools.partial(jax.jit, static_argnames="model")
def _smooth_slopes(model: functional.ImageClassifier, variables: Any, images: Array, classes: Array) -> Array:
    """The mean of the derivatives of the classes' logits with respect to noisy pictures, one noise after the other."""
    spread = _NOISE * (images.max((1, 2, 3), keepdims=True) - images.min((1, 2, 3), keepdims=True))
    slope = jax.grad(lambda images: _of_classes(model.apply(variables, images), classes).sum())

    def add(total: Array, key: Array) -> tuple[Array, None]:
        return total + slope(images + spread * jax.random.normal(key, images.shape)), None

    total, _ = jax.lax.scan(add, jnp.zeros_like(images), jax.random.split(jax.random.key(0), _SAMPLES))
    return total / _SAMPLES


def _plus_plus_weights(maps: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """Of channels, `(N, C)`: equation 19 of Grad-CAM++, where the class's score is the exponential of its logit."""
    squares = slopes**2
    shares = squares / (2 * squares + maps.sum((1, 2), keepdims=True) * slopes**3 + _EPSILON)
    return (np.maximum(slopes, 0) * np.where(slopes != 0, shares, 0)).sum((1, 2))


def _windows(height: int, width: int) -> list[tuple[slice, slice]]:
    """Windows that overlap by half, and cover the picture."""

    def along(side: int) -> list[slice]:
        length = max(-(-side // _WINDOWS), 1)
        firsts = sorted({min(first, side - length) for first in range(0, side, max(length // 2, 1))})
        return [slice(first, first + length) for first in firsts]

    return [(rows, columns) for rows in along(height) for columns in along(width)]


def _probabilities(apply: Callable[[Any], Any], images: np.ndarray, target: int) -> np.ndarray:
    padded = np.zeros((_BATCH, *images.shape[1:]), np.float32)
    padded[: len(images)] = images
    return softmax(np.asarray(apply(padded), np.float32)[: len(images)])[:, target]


def _scaled(heat: np.ndarray) -> np.ndarray:
    """Each map of `(N, H, W)` from 0 to 1; 0 where it is the same everywhere."""
    heat = heat - heat.min(axis=(1, 2), keepdims=True)
    most = heat.max(axis=(1, 2), keepdims=True)
    return (heat / np.where(most > 0, most, 1)).astype(np.float32)


def seen_part(image: Image.Image, transform: EvalTransform) -> Image.Image:
    """The part of a picture that a model sees, in the picture's own resolution.

    Args:
      image: as it is given to the transform.
      transform: from a picture to the model's pixels.

    Returns:
      The part, of the picture's mode; black where the model sees a border around the picture.
    """
    window, (height, width) = transform.window(image.width, image.height), transform.shape
    x, y = image.width / window.width, image.height / window.height
    edges = window.left * x, window.top * y, (window.left + width) * x, (window.top + height) * y
    left, top, right, bottom = map(round, edges)
    return image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))


def overlay(image: Image.Image, heat: np.ndarray) -> Image.Image:
    """A picture with what counts in colour, and the rest dim and grey.

    Args:
      image: what the model sees, in any resolution.
      heat: float `(H, W)` from 0 to 1.

    Returns:
      A picture of mode 'RGB', its longer side up to 800 pixels.
    """
    import matplotlib

    shown = image.convert("RGB")
    shown.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    smooth = Image.fromarray(heat.astype(np.float32)).resize(shown.size, Image.Resampling.BICUBIC)
    share = np.clip(np.asarray(smooth), 0, 1)[..., None]
    colour = matplotlib.colormaps["inferno"](share[..., 0])[..., :3]
    pixels = np.asarray(shown, np.float32) / 255
    grey = pixels.mean(axis=-1, keepdims=True)
    dim = 0.35 * grey + 0.1
    return Image.fromarray(np.uint8(255 * np.clip(dim * (1 - share) + share * (0.55 * pixels + 0.45 * colour), 0, 1)))
