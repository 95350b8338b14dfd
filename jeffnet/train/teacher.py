"""Models to learn from: weights, exported files, and functions of your own.

from jeffnet.train.loop import train
from jeffnet.train.teacher import Teacher, TeacherOutputs


def apply(arrays, pixels):
    return TeacherOutputs(logits=my_model(arrays, pixels / 255))


train(config, "runs/taught", teacher=Teacher(apply, arrays))
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jeffnet.arch.plan import Plan
from jeffnet.errors import ConfigError
from jeffnet.export.run import LEAST_PROBABILITY, ExportedModel, open_exported
from jeffnet.export.stablehlo import ProgramRunner
from jeffnet.export.targets import has_ending
from jeffnet.ops.image import normalize
from jeffnet.parallel.mesh import Layout
from jeffnet.train.config import LossConfig
from jeffnet.train.network import Network
from jeffnet.weights.start import start_pretrained


class TeacherOutputs(NamedTuple):
    """What a teacher says of a batch; it needs only what the loss compares.

    Attributes:
      logits: `(N, classes)`.
      pre_logits: pooled features `(N, F)`.
      features: maps `(N, H', W', C)` by their number in `loss.features`; those of jeffnet's models are at strides 2, 4,
        8, 16 and 32, from 0 to 4. Where a map is of another size than the student's, it is resized.
    """

    logits: Array | None = None
    pre_logits: Array | None = None
    features: Mapping[int, Array] = {}


@dataclass(frozen=True)
class Teacher:
    """A model to learn from.

    Attributes:
      apply: a function of `arrays` and pixels, floats `(N, H, W, C)` of 0 to 255, that returns `TeacherOutputs`. It is
        traced by `jax.jit`, in evaluation mode, and normalises the pixels itself. They are the student's, after
        augmentation and mixing.
      arrays: a pytree of the arrays that it takes, of numbers.
      classes: names of the classes in the order of its logits; empty where they are the data's, in their order.
      name: for messages.
    """

    apply: Callable[[Any, Array], TeacherOutputs]
    arrays: Any = ()
    classes: tuple[str, ...] = ()
    name: str = "of your own"


def feature_number(name: str) -> int | None:
    """The number of the map that an entry of `loss.features` names; None for 'pre_logits'."""
    return None if name == "pre_logits" else int(name)


def compared_features(config: LossConfig) -> tuple[str, ...]:
    """The entries of `loss.features`, if they count."""
    return config.features if config.feature_distillation else ()


def map_numbers(features: Sequence[str]) -> tuple[int, ...]:
    """Numbers of the maps among entries of `loss.features`."""
    return tuple(number for name in features if (number := feature_number(name)) is not None)


def network_teacher(network: Network, arrays: Any, features: Sequence[str] = (), name: str = "-") -> Teacher:
    """A network as a teacher, with its logits, its pooled features and the maps among `features`.

    Args:
      network: which computes it.
      arrays: of the network by canonical name.
      features: entries of `loss.features`.
      name: for messages.
    """
    numbers = map_numbers(features)

    def apply(arrays: Any, pixels: Array) -> TeacherOutputs:
        outputs = network.outputs(arrays, pixels, numbers)
        maps = dict(zip(numbers, outputs.features, strict=True))
        return TeacherOutputs(outputs.logits, outputs.pre_logits, maps)

    return Teacher(apply, arrays, name=name)


def open_teacher(config: LossConfig, student: Plan, sizes: Sequence[int], layout: Layout) -> tuple[Teacher, int]:
    """The teacher that a configuration names, and how many classes it has.

    Args:
      config: whose `teacher` is not None.
      student: what learns.
      sizes: sides of the training pictures.
      layout: where its arrays are to lie.

    Raises:
      WeightsError: it cannot be fetched or read.
      JeffnetError: the runtime of an exported file is not installed.
      ConfigError: it does not give what the loss compares, or takes other pictures.
    """
    source = config.teacher or ""
    if has_ending(source) or Path(source, "saved_model.pb").is_file():
        return _exported_teacher(config, student, sizes, layout)
    start, card = start_pretrained(source, config.teacher_model, place=layout.place)
    _check_channels(source, card.in_chans, student)
    features = compared_features(config)
    needs_pooling = config.distillation or "pre_logits" in features
    if card.global_pool == "none" and not card.test_window and needs_pooling:
        raise ConfigError(f"loss.teacher {source!r} has logits for every place of its last map: pool them")
    count = len(start.plan.features)
    for number in map_numbers(features):
        if not -count <= number < count:
            raise ConfigError(
                f"loss.features {number}: loss.teacher {source!r} has {count} maps of features, 0 to {count - 1}"
            )
    network = Network(replace(start, arrays={}), card.preprocessing)
    teacher = network_teacher(network, layout.place(dict(start.arrays)), features, source)
    return replace(teacher, classes=card.classes), card.num_classes


def _exported_teacher(config: LossConfig, student: Plan, sizes: Sequence[int], layout: Layout) -> tuple[Teacher, int]:
    source = config.teacher or ""
    if compared_features(config):
        raise ConfigError(
            f"loss.teacher {source!r} is an exported file, which has logits alone: set loss.feature_distillation 0, or "
            "give the weights that were exported"
        )
    model = open_exported(os.fspath(source), config.teacher_model)
    _check_channels(source, model.card.in_chans, student)
    for size in sizes:
        if (size, size) != model.image_size:
            height, width = model.image_size
            raise ConfigError(
                f"loss.teacher {source!r} takes pictures of {height}x{width}, the training has {size}x{size}: export "
                f"it with --image-size {size}, or train at its size (data.image_size)"
            )
    is_program = isinstance(model.runner, ProgramRunner)
    if not is_program and layout.devices > 1:
        raise ConfigError(
            f"loss.teacher {source!r} runs outside JAX, which is for one device, not {layout.devices}: export it as "
            "StableHLO, or train on one (mesh data=1)"
        )
    apply = _program(model) if is_program else _callback(model)
    classes = model.card.classes
    return Teacher(
        lambda _, pixels: TeacherOutputs(apply(pixels)), classes=classes, name=source
    ), model.card.num_classes


def _callback(model: ExportedModel) -> Callable[[Array], Array]:
    """Logits of pixels, by the runtime of a file on the host."""

    def apply(pixels: Array) -> Array:
        shape = jax.ShapeDtypeStruct((pixels.shape[0], model.card.num_classes), jnp.float32)
        return jax.pure_callback(model, shape, pixels)

    return apply


def _program(model: ExportedModel) -> Callable[[Array], Array]:
    """Logits of pixels, by a StableHLO file as a part of the step: what a callback may not do is to run JAX."""
    assert isinstance(model.runner, ProgramRunner)
    call, preprocessing = model.runner.program.exported.call, model.card.preprocessing

    def apply(pixels: Array) -> Array:
        if model.takes_pixels:
            images = jnp.clip(jnp.rint(pixels), 0, 255).astype(jnp.uint8)
        else:
            images = normalize(pixels, preprocessing.mean, preprocessing.std, jnp.float32).astype(model.runner.dtype)
        images = images.transpose(0, 3, 1, 2) if model.layout == "nchw" else images
        outputs = _in_batches(call, images, model.batch_size).astype(jnp.float32)
        return jnp.log(jnp.maximum(outputs, LEAST_PROBABILITY)) if model.gives_probabilities else outputs

    return apply


def _in_batches(call: Callable[[Array], Array], images: Array, batch_size: int | None) -> Array:
    """What a program gives for any number of pictures; the last of its batches is filled with zeros."""
    count = len(images)
    if batch_size in (None, count):
        return call(images)
    full = jnp.pad(images, [(0, -count % batch_size), *[(0, 0)] * (images.ndim - 1)])
    outputs = jax.lax.map(call, full.reshape(-1, batch_size, *images.shape[1:]))
    return outputs.reshape(-1, *outputs.shape[2:])[:count]


def _check_channels(source: str, channels: int, student: Plan) -> None:
    if channels != student.stem.in_channels:
        raise ConfigError(f"loss.teacher {source!r} takes pictures of {channels} channels")
