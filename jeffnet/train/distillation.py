"""What a student learns from its teacher: the parts of the loss, and the projections of its features."""

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from jeffnet.arch.plan import Plan
from jeffnet.errors import ConfigError, JeffnetError, first_line
from jeffnet.ops.broadcast import over_channels
from jeffnet.ops.loss import distillation, feature_distance
from jeffnet.ops.network import Outputs
from jeffnet.parallel.mesh import Layout
from jeffnet.text.names import listed
from jeffnet.train.config import Config, LossConfig
from jeffnet.train.pretrained import class_order
from jeffnet.train.state import PROJECTION, Arrays
from jeffnet.train.teacher import Teacher, TeacherOutputs, compared_features, feature_number, map_numbers, open_teacher

_TRIED = 2  # pictures, for which a teacher's outputs are looked at before the run begins


@dataclass(frozen=True)
class Lesson:
    """A teacher that suits a student.

    Attributes:
      teacher: its arrays lie where the step takes them, its logits are in the order of the data's classes.
      widths: channels of every feature that is compared, of the student and of the teacher.
      description: in words.
    """

    teacher: Teacher
    widths: Mapping[str, tuple[int, int]]
    description: str

    def projections(self, seed: int, dtype: DTypeLike) -> dict[str, np.ndarray]:
        """Initial arrays of the projections, for features whose widths differ.

        A projection is a dense layer, for maps a 1x1 convolution: `projection.NAME.kernel`, `(student, teacher)`,
        uniform within 1 / sqrt(student) as PyTorch's, and `projection.NAME.bias`, zeros.
        """
        arrays = {}
        for name, (student, teacher) in self.widths.items():
            if student != teacher:
                rng, reach = np.random.default_rng([seed, zlib.crc32(name.encode())]), 1 / math.sqrt(student)
                kernel = rng.uniform(-reach, reach, (student, teacher))
                arrays[f"{PROJECTION}{name}.kernel"] = kernel.astype(dtype)
                arrays[f"{PROJECTION}{name}.bias"] = np.zeros(teacher, dtype)
        return arrays


def make_lesson(
    config: Config, student: Plan, classes: Sequence[str], sizes: Sequence[int], layout: Layout, own: Teacher | None
) -> Lesson | None:
    """The lesson of a run; None without a teacher.

    Args:
      config: of the run.
      student: what learns.
      classes: of the data.
      sizes: sides of the training pictures.
      layout: where the teacher's arrays are to lie.
      own: a teacher that the configuration does not name.

    Raises:
      ConfigError: there are two teachers, or none for `loss.feature_distillation`; or teacher or student lack what is
        compared, or their classes differ.
      WeightsError: the teacher cannot be fetched or read.
    """
    loss = config.loss
    if loss.teacher is None and own is None:
        if loss.feature_distillation:
            raise ConfigError(
                f"loss.feature_distillation {loss.feature_distillation:g} needs a teacher: set loss.teacher, or, "
                "also to continue a run that was begun so, pass teacher= to train or resume in Python"
            )
        return None
    if own is None:
        teacher, num_classes = open_teacher(loss, student, sizes, layout)
    elif loss.teacher is not None:
        raise ConfigError(f"loss.teacher {loss.teacher!r} and teacher= are two teachers: leave one out")
    else:
        _check_own(own)
        teacher, num_classes = replace(own, arrays=layout.place(own.arrays)), None
    _check_task(config)
    if not (loss.distillation or loss.feature_distillation):
        raise ConfigError(
            f"teacher {teacher.name} has no effect: set loss.distillation, loss.feature_distillation, or leave it out"
        )
    compared = _student_widths(compared_features(loss), student)
    shapes = _outputs(teacher, (_TRIED, sizes[-1], sizes[-1], student.in_chans))
    if loss.distillation:
        teacher = _in_order(teacher, num_classes, shapes.logits, classes)
    widths = {name: (width, _teacher_width(teacher, shapes, name)) for name, width in compared.items()}
    return Lesson(teacher, widths, _description(loss, teacher, widths))


def losses_with_teacher(
    config: LossConfig, losses: Array, student: Outputs, teacher: TeacherOutputs, projections: Arrays
) -> tuple[Array, dict[str, Array]]:
    """The losses of a batch with what the teacher adds, and its parts as metrics.

    Args:
      config: which parts count, and how much.
      losses: without a teacher, `(N,)`.
      student: its maps are those of `map_numbers(compared_features(config))`.
      teacher: what it says of the same pictures.
      projections: of `Lesson.projections`, with other arrays or without.

    Returns:
      `(N,)`, NaN where the teacher's logits are; and as metrics the means of `distillation_loss` and `feature_loss`,
      and `teacher_finite`, 1.0 if all that is compared of the teacher is finite, else 0.0.
    """
    metrics, compared = {}, []
    if config.distillation:
        assert teacher.logits is not None
        apart = distillation(student.logits, teacher.logits, config.temperature, config.hard)
        # A top class is found among NaNs too. Without NaNs it may be among logits of minus infinity.
        unknown = jnp.isnan(teacher.logits).any(-1)
        apart = jnp.where(unknown, jnp.nan, apart)
        losses = (1 - config.distillation) * losses + config.distillation * apart
        metrics["distillation_loss"] = apart.mean()
        compared.append(~unknown if config.hard else jnp.isfinite(teacher.logits))
    if features := compared_features(config):
        maps = dict(zip(map_numbers(features), student.features, strict=True))
        own = TeacherOutputs(student.logits, student.pre_logits, maps)
        distances = [
            feature_distance(_projected(projections, name, _feature(own, name)), _feature(teacher, name))
            for name in features
        ]
        distance = sum(distances[1:], distances[0]) / len(distances)
        losses = losses + config.feature_distillation * distance
        metrics["feature_loss"] = distance.mean()
        compared += [jnp.isfinite(_feature(teacher, name)) for name in features]
    metrics["teacher_finite"] = jnp.array([finite.all() for finite in compared]).all().astype(jnp.float32)
    return losses, metrics


def teacher_fault(lesson: Lesson | None, metrics: Mapping[str, Any]) -> str | None:
    """What to say of a step whose loss is not finite because its teacher's outputs are not; None if they are.

    Args:
      lesson: of the run.
      metrics: of the step.
    """
    if lesson is None or metrics["teacher_finite"] == 1:
        return None
    return (
        f"teacher {lesson.teacher.name} gives numbers that are not finite: check its weights and what it makes of "
        "pixels from 0 to 255, or leave it out"
    )


def _projected(projections: Arrays, name: str, x: Array) -> Array:
    kernel = projections.get(f"{PROJECTION}{name}.kernel")
    if kernel is None:
        return x
    y = x.astype(kernel.dtype) @ kernel
    return y + over_channels(projections[f"{PROJECTION}{name}.bias"], y)


def _feature(outputs: TeacherOutputs, name: str) -> Any:
    """A feature by its entry in `loss.features`; None if it is missing."""
    number = feature_number(name)
    return outputs.pre_logits if number is None else outputs.features.get(number)


def _check_task(config: Config) -> None:
    """Raises ConfigError where logits of classes would be compared for a task that has none."""
    task = config.data.task
    if task != "single_label" and config.loss.distillation:
        raise ConfigError(
            f"loss.distillation {config.loss.distillation:g} is not for data.task {task!r}: set it to 0 to compare "
            "features alone"
        )


def _student_widths(features: Sequence[str], student: Plan) -> dict[str, int]:
    widths, count = {}, len(student.features)
    for name in features:
        number = feature_number(name)
        if number is not None and not -count <= number < count:
            raise ConfigError(f"loss.features {name}: the model has {count} maps of features, 0 to {count - 1}")
        widths[name] = student.num_features if number is None else student.features[number].channels
    return widths


def _check_own(teacher: Teacher) -> None:
    """Raises ConfigError where a teacher from Python is none, or has other things than arrays and names of classes."""
    if not isinstance(teacher, Teacher) or not callable(teacher.apply):
        raise ConfigError(
            f"teacher {teacher!r} is no function: give jeffnet.train.teacher.Teacher(function, arrays), or set "
            "loss.teacher to the name or the path of weights"
        )
    classes = teacher.classes
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise ConfigError(f"classes {classes!r} of teacher {teacher.name}: give the name of each as text, in a tuple")
    for path, leaf in jax.tree_util.tree_leaves_with_path(teacher.arrays):
        try:
            jax.eval_shape(lambda array: array, leaf)
        except TypeError as error:
            raise ConfigError(
                f"arrays{jax.tree_util.keystr(path)} of teacher {teacher.name} is {type(leaf).__name__}, not an array "
                "of numbers: leave it out, its function can have it otherwise"
            ) from error


def _outputs(teacher: Teacher, shape: tuple[int, ...]) -> TeacherOutputs:
    """Shapes of what a teacher gives for pixels of this shape."""
    try:
        outputs = jax.eval_shape(teacher.apply, teacher.arrays, jax.ShapeDtypeStruct(shape, jnp.float32))
    except JeffnetError:
        raise
    except Exception as error:  # of a function of the user's
        raise ConfigError(f"teacher {teacher.name} fails on pixels of shape {shape}: {first_line(error)}") from error
    if not isinstance(outputs, TeacherOutputs):
        raise ConfigError(f"teacher {teacher.name} returns {type(outputs).__name__}: return TeacherOutputs")
    for name in ("logits", "pre_logits"):
        if isinstance(value := getattr(outputs, name), Sequence | Mapping):
            raise ConfigError(f"teacher {teacher.name} gives {name} as {type(value).__name__}: give one array")
    if not isinstance(outputs.features, Mapping):
        raise ConfigError(
            f"teacher {teacher.name} gives features as {type(outputs.features).__name__}: give a dictionary of maps by "
            "their number, such as {4: ...}"
        )
    return outputs


def _teacher_width(teacher: Teacher, shapes: TeacherOutputs, name: str) -> int:
    shape, number = _feature(shapes, name), feature_number(name)
    what = "pre_logits" if number is None else f"features[{name}]"
    if shape is None:
        raise ConfigError(f"loss.features {name}: teacher {teacher.name} gives no {what}")
    if len(shape.shape) != (2 if number is None else 4) or shape.shape[0] != _TRIED or 0 in shape.shape:
        expected = "(N, F)" if number is None else "(N, H, W, C)"
        raise ConfigError(
            f"loss.features {name}: teacher {teacher.name} gives {what} of {shape.shape}, not {expected} with N of "
            f"{_TRIED}"
        )
    return shape.shape[-1]


def _in_order(teacher: Teacher, num_classes: int | None, logits: Any, classes: Sequence[str]) -> Teacher:
    """The teacher with logits in the order of the data's classes."""
    if logits is None:
        raise ConfigError(f"teacher {teacher.name} gives no logits: set loss.distillation 0 to compare features alone")
    if len(logits.shape) != 2 or logits.shape[0] != _TRIED:
        raise ConfigError(f"teacher {teacher.name} gives logits of {logits.shape}, not (N, classes) with N of {_TRIED}")
    count = logits.shape[-1]
    if count != len(classes):
        raise ConfigError(
            f"loss.teacher {teacher.name!r} has {count} classes, the data {len(classes)}: give a teacher that was "
            "trained on these classes, or compare features alone (loss.distillation 0, loss.feature_distillation 1)"
        )
    if num_classes is None and not teacher.classes:
        return teacher
    order = class_order(teacher.classes, count, classes, teacher.name)
    if order == tuple(range(count)):
        return teacher
    apply = teacher.apply

    def ordered(arrays: Any, pixels: Array) -> TeacherOutputs:
        outputs = apply(arrays, pixels)
        return outputs._replace(logits=None if outputs.logits is None else outputs.logits[:, jnp.array(order)])

    return replace(teacher, apply=ordered)


def _description(config: LossConfig, teacher: Teacher, widths: Mapping[str, tuple[int, int]]) -> str:
    parts = []
    if config.distillation:
        kind = "top class" if config.hard else f"logits at temperature {config.temperature:g}"
        parts.append(f"{config.distillation:g} of the loss compares with its {kind}")
    if widths:
        texts = [
            f"{name if feature_number(name) is None else f'map {name}'} ({own} channels"
            f"{'' if own == other else f', projected to {other}'})"
            for name, (own, other) in widths.items()
        ]
        parts.append(f"{config.feature_distillation:g} times the mean squared difference from its {listed(texts)}")
    return f"teacher {teacher.name}: {'; '.join(parts)}"
