"""Files of Keras with models of keras.applications: EfficientNet B0 to B7, MobileNetV2 and MobileNetV3.

Read are Keras 3's `.keras` and `.weights.h5`, and the older `.h5`, of a whole model or of its weights. That needs h5py
alone, runs nothing that is in a file, and opens no other file that one may point to (`jeffnet.weights.formats.hdf5`).
`jeffnet.weights.formats.keras_writer` writes them, with Keras.

Ours compute what Keras does for pictures of the size for which its model was built. One that was built for any size, as
MobileNetV3 is unless told otherwise, pads as if each map that is halved had an even height and width.

Source of layers' names and of their order: keras-team/keras, keras/src/applications.
"""

import contextlib
import json
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, assert_never

import numpy as np

from jeffnet.arch.blocks import round_channels
from jeffnet.arch.operations import Conv, SqueezeExcite
from jeffnet.arch.plan import Plan
from jeffnet.arch.preprocessing import IMAGENET_MEAN, IMAGENET_STD, INCEPTION_MEAN, Preprocessing
from jeffnet.arch.summary import array_specs
from jeffnet.arch.zoo import list_models, model_plan, model_preprocessing
from jeffnet.errors import WeightsError, first_line
from jeffnet.weights.archive import open_zip
from jeffnet.weights.formats.hdf5 import MAGIC, Layers, broken, read_layers
from jeffnet.weights.formats.keras_layers import Layer, check_head, described, pixels
from jeffnet.weights.naming import Naming, to_canonical_names
from jeffnet.weights.stored import Stored

_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
_LONGEST = 2**26  # bytes of a model's description


@dataclass(frozen=True)
class KerasFile:
    """What a file of Keras holds.

    Attributes:
      arrays: by `<layer>/<array>`, such as `block1a_dwconv/kernel` or, from files that do not say how the layers are
        called, `depthwise_conv2d/kernel`; an optimizer's, counters, and those of the preprocessing are left out.
      model: our name of the model that has just these arrays, but for the classifier; None where there is none.
      preprocessing: what the model does to pixels, and at what size; None where the model is unknown.
      has_checksums: whether damage to the arrays would be noticed.
    """

    arrays: Mapping[str, Stored]
    model: str | None
    preprocessing: Preprocessing | None
    has_checksums: bool = False


def is_hdf5(start: bytes) -> bool:
    """Whether a file that starts so is an HDF5 file."""
    return start.startswith(MAGIC)


def is_keras_archive(members: list[str]) -> bool:
    """Whether a zip archive with these members is a `.keras` file."""
    return _CONFIG in members and _WEIGHTS in members


@dataclass(frozen=True)
class _Family:
    """How a family's layers are called.

    Attributes:
      first: what the names in the first block begin with.
      block: in the others: `place` among all blocks, `stage` from 1, and `letter`, the place in the stage.
      layers: of each of our operations, the names of the layers of the convolution and of the norm.
    """

    first: str
    block: str
    layers: Mapping[str, tuple[str, str]]


_EFFICIENTNET = _Family(
    "block1a_",
    "block{stage}{letter}_",
    {
        "stem": ("stem_conv", "stem_bn"), "expand": ("expand_conv", "expand_bn"), "depthwise": ("dwconv", "bn"),
        "reduce": ("se_reduce", ""), "gate": ("se_expand", ""), "project": ("project_conv", "project_bn"),
        "head": ("top_conv", "top_bn"), "classifier": ("predictions", ""),
    },
)  # fmt: skip
_MOBILENETV2 = _Family(
    "expanded_conv_",
    "block_{place}_",
    {
        "stem": ("Conv1", "bn_Conv1"), "expand": ("expand", "expand_BN"), "depthwise": ("depthwise", "depthwise_BN"),
        "project": ("project", "project_BN"), "head": ("Conv_1", "Conv_1_bn"), "classifier": ("predictions", ""),
    },
)  # fmt: skip
_MOBILENETV3 = _Family(
    "expanded_conv_",
    "expanded_conv_{place}_",
    {
        "stem": ("conv", "conv_bn"), "expand": ("expand", "expand_bn"), "depthwise": ("depthwise", "depthwise_bn"),
        "reduce": ("squeeze_excite_conv", ""), "gate": ("squeeze_excite_conv_1", ""),
        "project": ("project", "project_bn"), "last": ("conv_1", "conv_1_bn"), "head": ("conv_2", ""),
        "classifier": ("logits", ""),
    },
)  # fmt: skip
_STEMS = {family.layers["stem"][0] for family in (_EFFICIENTNET, _MOBILENETV2, _MOBILENETV3)}
_LEAVES = {"kernel": "kernel", "bias": "bias"}
_NORM_LEAVES = {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}


def _family(plan: Plan) -> _Family:
    kernels = {part.kernel_size for op in plan.convolutions for part in op.parts}
    squeezed = any(isinstance(op, SqueezeExcite) for block in plan.blocks for op in block.ops)
    if plan.stem.parts[0].padding == "SAME" and plan.stem.norm and plan.stem.norm.epsilon == 1e-3:
        if plan.pool_first:
            return _MOBILENETV3
        if plan.stem.act == "silu" and squeezed:
            return _EFFICIENTNET
        if plan.stem.act == "relu6" and kernels == {1, 3} and not squeezed:
            return _MOBILENETV2
    raise WeightsError(
        "Keras has EfficientNet B0 to B7, MobileNetV2 and MobileNetV3, padded as in TensorFlow: give a name of these, "
        "which begins with tf_"
    )


def _operations(plan: Plan, family: _Family) -> Iterator[tuple[Conv, str, str]]:
    """Every convolution in order, its key in the family's layers, and what their names begin with."""
    yield plan.stem, "stem", ""
    for place, block in enumerate(plan.blocks):
        stage, index = (int(number) for number in block.name.split(".")[1:])
        prefix = family.block.format(place=place, stage=stage + 1, letter=chr(ord("a") + index))
        prefix = prefix if place else family.first
        before = "expand"
        for op in block.ops:
            match op:
                case SqueezeExcite():
                    yield op.reduce, "reduce", prefix
                    yield op.expand, "gate", prefix
                case Conv() if op.is_depthwise:
                    yield op, "depthwise", prefix
                    before = "project"
                case Conv():
                    yield (op, before, prefix) if len(block.ops) > 1 else (op, "last", "")
                case _:
                    assert_never(op)
    yield plan.head, "head", ""


def _names(plan: Plan, present: Iterable[str]) -> dict[str, str]:
    family, present = _family(plan), set(present)
    counted = "conv2d/kernel" in present and f"{family.layers['stem'][0]}/kernel" not in present
    counters = Counter()

    def layer(kind: str, name: str) -> str:
        """The layer's name, or that of the next layer of a kind in a file that has counted them."""
        if not counted:
            return name
        place = counters[kind]
        counters[kind] += 1
        return f"{kind}_{place}" if place else kind

    names = {}
    for op, key, prefix in _operations(plan, family):
        conv, norm = family.layers[key]
        part = op.parts[0]
        conv = layer("depthwise_conv2d" if op.is_depthwise else "conv2d", prefix + conv)
        names |= {f"{part.name}.{ours}": f"{conv}/{theirs}" for ours, theirs in _LEAVES.items()}
        if op.norm:
            norm = layer("batch_normalization", prefix + norm)
            names |= {f"{op.norm.name}.{ours}": f"{norm}/{theirs}" for ours, theirs in _NORM_LEAVES.items()}
    if present and plan.pool_first and names["conv_head.kernel"] not in present:
        raise WeightsError(
            "a MobileNetV3 without its top lacks the convolution after the pooling: build it with include_top=True"
        )
    classifier = layer("conv2d" if plan.pool_first else "dense", family.layers["classifier"][0])
    names |= {f"classifier.{ours}": f"{classifier}/{theirs}" for ours, theirs in _LEAVES.items()}
    # Which of the convolutions have a bias is the Plan's to say.
    wanted = {*array_specs(plan), "classifier.kernel", "classifier.bias"}
    return {ours: theirs for ours, theirs in names.items() if ours in wanted}


KERAS = Naming("file of Keras", _names, "tensorflow")


def read_keras(path: Path) -> KerasFile:
    """A file of Keras, recognised by what is in it; its arrays are read when they are used.

    A file's only dense layer is taken for the classifier, whatever it is called, so that a model of keras.applications
    without its top and another one after it, in a model around both, are one of ours.

    Raises:
      WeightsError: h5py is not installed; the file is broken, points to other files, or has no such model.
    """
    try:
        with contextlib.ExitStack() as stack:
            content, config = stack.enter_context(open(path, "rb")), None
            if is_zip := content.read(2) == b"PK":
                archive = stack.enter_context(open_zip(path))
                content = stack.enter_context(tempfile.TemporaryFile())
                config = _text(archive, _CONFIG)
                with archive.open(_WEIGHTS) as member:
                    shutil.copyfileobj(member, content)  # which compares the checksum at its end
                content.flush()
            content.seek(0)
            found = read_layers(path, content, _STEMS)
        config = found.config if config is None else config
        file = _keras_file(path, found.layers, json.loads(config) if config is not None else None)
        return replace(file, has_checksums=is_zip or found.has_checksums)
    except WeightsError:
        raise
    except Exception as error:  # whatever a broken file makes zipfile or json raise
        raise broken(path, first_line(error)) from error


def _text(archive: zipfile.ZipFile, name: str) -> bytes:
    with archive.open(name) as file:
        text = file.read(_LONGEST)
        # Only at the end of a member its checksum is compared.
        if file.read(1):
            raise ValueError(f"its {name} takes more than {_LONGEST:,} bytes")
    return text


def _keras_file(path: Path, layers: Layers, config: Any) -> KerasFile:
    if not (_STEMS | {"conv2d"}) & set(layers):
        raise WeightsError(
            f"weights {str(path)!r} are of none of the models of keras.applications that jeffnet has: no layer "
            f"{', '.join(sorted(_STEMS))} among {len(layers)} ({', '.join(list(layers)[:3])}, ...)"
        )
    around = None if config is None else list(described(config))
    statistics = {name: layers.pop(name) for name in list(layers) if {"mean", "variance"} <= set(layers[name])}
    dense = [name for name, leaves in layers.items() if "kernel" in leaves and leaves["kernel"].ndim == 2]
    if len(dense) == 1:
        layers["predictions" if _STEMS & set(layers) else "dense"] = layers.pop(dense[0])
    arrays = {
        f"{name}/{leaf}": array
        for name, leaves in layers.items()
        for leaf, array in leaves.items()
        if array.dtype.kind not in "iub"  # a counter, or the state of a source of random numbers
    }
    model, others = _nearest(arrays)
    if model is None:
        return KerasFile(arrays, None, None)
    try:
        _check_layers(others, arrays, dense)
        if around is not None:
            check_head(around, model_plan(model).pool_first)
        return KerasFile(arrays, model, _preprocessing(model, arrays, statistics, around))
    except WeightsError as error:
        raise WeightsError(f"weights {str(path)!r} are a {model} that Keras computes otherwise: {error}") from error


def _check_layers(others: list[str], arrays: Mapping[str, Stored], dense: list[str]) -> None:
    """Raises WeightsError where there are layers besides a network's and one classifier, or that one is none."""
    names = list(dict.fromkeys(dense[0] if name == "predictions" and dense else name for name in others))
    if names:
        raise WeightsError(
            f"its layer {', '.join(map(repr, names[:5]))} is none of the network's, which ends in one dense layer"
        )
    kernel = next((arrays[name] for name in ("predictions/kernel", "dense/kernel") if name in arrays), None)
    if kernel is not None and kernel.shape[-1] == 1:
        raise WeightsError(
            f"its layer {dense[0]!r} has a single output, of which a softmax makes 1: no classifier of ours"
        )


def _preprocessing(
    model: str, arrays: Mapping[str, Stored], statistics: Layers, around: list[Layer] | None
) -> Preprocessing:
    preprocessing = model_preprocessing(model)
    if around is None:
        for leaves in statistics.values():
            mean, std = _moments(leaves)
            preprocessing = replace(preprocessing, mean=mean, std=std)
        return preprocessing
    preprocessing = replace(preprocessing, image_size=_image_size(around) or preprocessing.image_size)
    stem = next(array for name, array in arrays.items() if array.ndim == 4 and name.endswith("/kernel"))

    def moments(name: str) -> tuple[np.ndarray, np.ndarray]:
        leaves = next(iter(statistics.values())) if len(statistics) == 1 else statistics[name]
        return np.asarray(leaves["mean"]), np.asarray(leaves["variance"])

    found = pixels(around, moments, stem.shape[2])
    return replace(preprocessing, mean=_known(found[0]), std=_known(found[1])) if found else preprocessing


def _nearest(arrays: Mapping[str, Stored]) -> tuple[str | None, list[str]]:
    """The model of whose arrays none is missing and the fewest are left over, and the layers of these."""
    nearest: tuple[str | None, list[str]] = (None, [])
    for model in _candidates(arrays):
        others = _others(arrays, model)
        if others is not None and (nearest[0] is None or len(others) < len(nearest[1])):
            nearest = model, others
            if not others:
                break
    return nearest


def _candidates(arrays: Mapping[str, Stored]) -> Iterator[str]:
    """The models that a file might be of, those with published weights first."""
    yield from list_models("tf_efficientnet_b[0-7]")
    yield from list_models("tf_mobilenetv3_*")
    yield from ("tf_mobilenetv2_100", *list_models("tf_mobilenetv2_*"))
    stem = arrays.get("Conv1/kernel", arrays.get("conv2d/kernel"))
    for percent in range(1, 1000):
        if stem and stem.shape[-1:] == (round_channels(32, percent / 100),):
            yield f"tf_mobilenetv2_{percent:03d}"


def _others(arrays: Mapping[str, Stored], model: str) -> list[str] | None:
    """Which layers of a file are none of a model's; None where it has not all of the model's, as they should be."""
    plan = model_plan(model)
    try:
        renamed = to_canonical_names(arrays, KERAS, plan)
    except WeightsError:
        return None
    # How many channels its pictures have, and how many classes there are, is left open.
    different = {"conv_stem.kernel", "classifier.kernel", "classifier.bias"}
    specs = array_specs(plan)
    if any(name not in renamed or renamed[name].shape != specs[name].shape for name in specs.keys() - different):
        return None
    return [name.rpartition("/")[0] for name in renamed if name not in specs]


def _image_size(layers: Iterable[Layer]) -> int | None:
    """The height of square pictures, where that is what the model is made for."""
    for layer in layers:
        if layer.kind == "InputLayer":
            shape = layer.options.get("batch_shape") or layer.options.get("batch_input_shape") or ()
            channels_last, channels_first = shape[1:3], shape[2:4]
            return next((size[0] for size in (channels_last, channels_first) if size and size[0] == size[-1]), None)
    return None


def _moments(statistics: Mapping[str, Stored]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """By what a model normalises pixels in [0, 1] whose file has its weights alone.

    Where the layer of EfficientNet's published weights should have a variance it has the standard deviation, and a
    Rescaling after it makes up for that.
    """
    mean, variance = (np.asarray(statistics[leaf], np.float64).reshape(-1) for leaf in ("mean", "variance"))
    std = np.maximum(np.sqrt(variance), 1e-7)
    std = variance if np.allclose(variance, np.resize(IMAGENET_STD, variance.shape), rtol=1e-6, atol=0) else std
    return _known(mean), _known(std)


def _known(values: np.ndarray) -> tuple[float, ...]:
    """Numbers as they were before they were rounded to float32, where they are well known."""
    for known in (IMAGENET_MEAN, IMAGENET_STD, INCEPTION_MEAN):
        if len(values) == len(known) and np.allclose(values, known, rtol=2e-7, atol=0):
            return known
    return tuple(values.tolist())
