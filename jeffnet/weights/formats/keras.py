"""Keras: models of keras.applications, EfficientNet B0 to B7, EfficientNetV2, MobileNetV2 and MobileNetV3.

Keras 3's `.keras` and `.weights.h5` are read, and the older `.h5` of a whole model or of its weights. That needs h5py
alone, runs nothing that is in a file, and opens no other file that one may point to (`jeffnet.weights.formats.hdf5`).

Ours compute what Keras does for pictures of the size that its model was built for. A model that was built for any size,
the default of MobileNetV3, pads as if each map that is halved had an even height and width.
"""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jeffnet.arch.blocks import round_channels
from jeffnet.arch.preprocessing import IMAGENET_MEAN, IMAGENET_STD, INCEPTION_MEAN, Preprocessing, per_channel
from jeffnet.arch.summary import array_specs
from jeffnet.arch.zoo import list_models, model_plan, model_preprocessing
from jeffnet.errors import EndingError, JeffnetError, OutputError, WeightsError, first_line
from jeffnet.system.extras import install
from jeffnet.weights.archive import open_zip
from jeffnet.weights.card import ModelCard
from jeffnet.weights.formats.hdf5 import BROKEN, MAGIC, Layers, read_layers, with_checksums
from jeffnet.weights.formats.interface import OF_ARRAYS, Contents, Probe, WeightsFile, reading
from jeffnet.weights.formats.keras_layers import Layer, check_head, described, pixels
from jeffnet.weights.formats.keras_names import KERAS, STEMS
from jeffnet.weights.naming import CLASSIFIER, to_canonical_names, to_source_names
from jeffnet.weights.stored import Stored

_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
_LONGEST = 2**26  # bytes of a model's description
_WRITTEN = re.compile(
    r"tf_(?:efficientnet_(?P<b>b[0-7])(?:_ap|_ns)?|efficientnetv2_(?P<e2>b[0-3]|[sml])|mobilenetv2_(?P<v2>\d{3})|"
    r"mobilenetv3_(?P<v3>small|large)(?P<minimal>_minimal)?_(?P<alpha>\d{3}))(?:\..*)?"
)


def sniff(probe: Probe) -> bool:
    """An HDF5 file, or a zip archive with one and a description of its model."""
    return probe.start.startswith(MAGIC) or {_CONFIG, _WEIGHTS} <= {*probe.members}


def read(path: Path) -> WeightsFile:
    """See `jeffnet.weights.formats.FormatModule`.

    Names are `<layer>/<array>`, such as `block1a_dwconv/kernel` or, from files that do not name their layers,
    `depthwise_conv2d/kernel`. The arrays of optimizers, counters and preprocessing layers are dropped.

    The only dense layer of a file is taken for the classifier, whatever its name, so a new dense layer on a model of
    keras.applications without its top is read too.
    """
    with reading(path, BROKEN), contextlib.ExitStack() as stack:
        content, config = stack.enter_context(open(path, "rb")), None
        if is_zip := content.read(2) == b"PK":
            archive = stack.enter_context(open_zip(path))
            content = stack.enter_context(tempfile.TemporaryFile())
            config = _text(archive, _CONFIG)
            with archive.open(_WEIGHTS) as member:
                shutil.copyfileobj(member, content)  # which compares the checksum at its end
            content.flush()
        content.seek(0)
        stored = read_layers(path, content, STEMS)
        config = stored.config if config is None else config
        file = _weights_file(path, stored.layers, json.loads(config) if config is not None else None)
        return replace(file, checksums=OF_ARRAYS if is_zip or stored.has_checksums else "")


def write(path: Path, contents: Contents) -> None:
    """See `jeffnet.weights.formats.FormatModule`: a whole model, `*.keras`, or its weights, `*.weights.h5`, in float32.

    Keras itself writes it, and its outputs are probabilities. The card's mean and standard deviation become the
    Normalization of EfficientNet, and of EfficientNetV2 where they are not those of its own preprocessing.
    """
    card = contents.card
    if not path.name.endswith((".keras", ".weights.h5")):
        raise EndingError(f"cannot write {path.name!r}: name it *.keras or *.weights.h5")
    name, options = _constructor(card)
    try:
        mean, std = (per_channel(name, getattr(card.preprocessing, name), card.in_chans) for name in ("mean", "std"))
    except JeffnetError as error:
        raise OutputError(f"cannot write {path.name!r}: {error}") from error
    is_usual = not name.startswith("EfficientNetV2") or _is_own(card, mean, std)
    if not is_usual and path.suffix != ".keras":
        raise OutputError(
            f"cannot write {path.name!r}: weights alone do not say that {card.model} takes pixels with mean {mean} and "
            f"std {std}, and Keras's {name} takes others: name it *.keras"
        )
    try:
        keras = _keras()
    except ModuleNotFoundError as error:
        raise OutputError(f"cannot write {path.name!r} without Keras: {install('keras')}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a number of channels that is not 1 or 3
            if not is_usual:
                options |= _with_normalization(keras, options.pop("input_shape"), mean, std)
            model = getattr(keras.applications, name)(**options)
        for layer in model.layers:
            if isinstance(layer, keras.layers.Normalization) and layer.weights:
                layer.set_weights([np.asarray(mean), np.square(std), np.zeros((), int)])
        _set_weights(model, to_source_names(contents.arrays, KERAS, card.plan()))
    except ValueError as error:
        raise OutputError(f"cannot write {path.name!r}: Keras has no such {card.model}: {first_line(error)}") from error
    if path.suffix == ".keras":
        model.save(path)
        return
    # Not by `save_weights`: on a full disk HDF5 crashes, where a file in memory does not.
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "model.keras"
        model.save(whole)
        with zipfile.ZipFile(whole) as archive:
            path.write_bytes(with_checksums(archive.read(_WEIGHTS)))


def _is_own(card: ModelCard, mean: Sequence[float], std: Sequence[float]) -> bool:
    """Whether a card's constants are those of the preprocessing inside Keras's EfficientNetV2."""
    return np.allclose((mean, std), _constants_of_v2(card.model, card.in_chans), rtol=1e-6, atol=0)


def _with_normalization(
    keras: Any, shape: tuple[int, ...], mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:
    """The options by which Keras's EfficientNetV2 has other constants than its own."""
    inputs = keras.Input(shape)
    pixels = keras.layers.Rescaling(1 / 255)(inputs)
    pixels = keras.layers.Normalization(mean=list(mean), variance=np.square(std).tolist())(pixels)
    return {"include_preprocessing": False, "input_tensor": pixels}


def _text(archive: zipfile.ZipFile, name: str) -> bytes:
    with archive.open(name) as file:
        text = file.read(_LONGEST)
        # Only at the end of a member its checksum is compared.
        if file.read(1):
            raise ValueError(f"its {name} takes more than {_LONGEST:,} bytes")
    return text


def _weights_file(path: Path, layers: Layers, config: Any) -> WeightsFile:
    if not (STEMS | {"conv2d"}) & set(layers):
        raise WeightsError(
            f"weights {str(path)!r} are of none of the models of keras.applications that jeffnet has: no layer "
            f"{', '.join(sorted(STEMS))} among {len(layers)} ({', '.join(list(layers)[:3])}, ...)"
        )
    around = None if config is None else list(described(config))
    statistics = {name: layers.pop(name) for name in list(layers) if {"mean", "variance"} <= set(layers[name])}
    dense = [name for name, leaves in layers.items() if "kernel" in leaves and leaves["kernel"].ndim == 2]
    if len(dense) == 1:
        layers["predictions" if STEMS & set(layers) else "dense"] = layers.pop(dense[0])
    arrays = {
        f"{name}/{leaf}": array
        for name, leaves in layers.items()
        for leaf, array in leaves.items()
        if array.dtype.kind not in "iub"  # a counter, or the state of a source of random numbers
    }
    if (nearest := _nearest(arrays)) is None:
        return WeightsFile(str(path), arrays, KERAS)
    model, others = nearest
    try:
        _check_layers(others, arrays, dense)
        if around is not None:
            check_head(around, model_plan(model).pool_first)
        preprocessing = _preprocessing(model, arrays, statistics, around)
    except WeightsError as error:
        raise WeightsError(f"weights {str(path)!r} are a {model} that Keras computes otherwise: {error}") from error
    return WeightsFile(str(path), arrays, KERAS, model=model, preprocessing=preprocessing)


def _check_layers(others: list[str], arrays: Mapping[str, Stored], dense: list[str]) -> None:
    """Raises WeightsError if there are layers besides a network's and one classifier of at least two classes."""
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
    stem = next(array for name, array in arrays.items() if array.ndim == 4 and name.endswith("/kernel"))
    preprocessing = _usual_preprocessing(model, stem.shape[2])
    if around is None:
        for leaves in statistics.values():
            mean, std = _moments(leaves)
            preprocessing = replace(preprocessing, mean=mean, std=std)
        return preprocessing
    preprocessing = replace(preprocessing, image_size=_image_size(around) or preprocessing.image_size)

    def moments(name: str) -> tuple[np.ndarray, np.ndarray]:
        leaves = next(iter(statistics.values())) if len(statistics) == 1 else statistics[name]
        return np.asarray(leaves["mean"]), np.asarray(leaves["variance"])

    if (constants := pixels(around, moments, stem.shape[2])) is None:
        return preprocessing
    mean, std = map(_known, constants)
    return replace(preprocessing, mean=mean, std=std)


def _usual_preprocessing(model: str, channels: int) -> Preprocessing:
    """What a model of keras.applications expects of pictures if nothing else is stated."""
    if (match := _WRITTEN.fullmatch(model)) is None or not match["e2"]:
        return model_preprocessing(model)
    # Those of these very weights: the zoo's default may be others.
    mean, std = _constants_of_v2(model, channels)
    return replace(model_preprocessing(f"{model}.in1k"), mean=mean, std=std)


def _constants_of_v2(model: str, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and standard deviation inside Keras's EfficientNetV2: B0 to B3 have V1's, the others x / 128 - 1."""
    if "_b" in model and channels == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    constants = (128 / 255,) * channels
    return constants, constants


def _nearest(arrays: Mapping[str, Stored]) -> tuple[str, list[str]] | None:
    """The model that has all of its arrays in a file and leaves the fewest over, and the layers of the latter."""
    nearest = None
    for model in _candidates(arrays):
        others = _others(arrays, model)
        if others == []:
            return model, []
        if others is not None and (nearest is None or len(others) < len(nearest[1])):
            nearest = model, others
    return nearest


def _candidates(arrays: Mapping[str, Stored]) -> Iterator[str]:
    """The models that a file might be of, those with published weights first."""
    yield from list_models("tf_efficientnet_b[0-7]")
    yield from (model for model in list_models("tf_efficientnetv2_*") if _WRITTEN.fullmatch(model))
    yield from list_models("tf_mobilenetv3_*")
    yield from ("tf_mobilenetv2_100", *list_models("tf_mobilenetv2_*"))
    stem = arrays.get("Conv1/kernel", arrays.get("conv2d/kernel"))
    for percent in range(1, 1000):
        if stem and stem.shape[-1:] == (round_channels(32, percent / 100),):
            yield f"tf_mobilenetv2_{percent:03d}"


def _others(arrays: Mapping[str, Stored], model: str) -> list[str] | None:
    """The layers of a file that are not a model's; None if an array of the model is missing or has another shape."""
    plan = model_plan(model)
    try:
        renamed = to_canonical_names(arrays, KERAS, plan)
    except WeightsError:
        return None
    # The numbers of channels and of classes are not the model's.
    specs = array_specs(plan)
    names = specs.keys() - {"conv_stem.kernel", *CLASSIFIER}
    if any(name not in renamed or renamed[name].shape != specs[name].shape for name in names):
        return None
    return [name.rpartition("/")[0] for name in renamed if name not in specs]


def _image_size(layers: Iterable[Layer]) -> int | None:
    """The height of the pictures that a model takes, if they are square."""
    options = next((layer.options for layer in layers if layer.kind == "InputLayer"), {})
    shape = options.get("batch_shape") or options.get("batch_input_shape") or ()
    channels_last, channels_first = shape[1:3], shape[2:4]
    return next((size[0] for size in (channels_last, channels_first) if size and size[0] == size[-1]), None)


def _moments(statistics: Mapping[str, Stored]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and standard deviation of pixels in [0, 1], from a file of weights alone.

    EfficientNet's published weights have the standard deviation in place of the variance; a Rescaling makes up for it.
    """
    mean, variance = (np.asarray(statistics[leaf], np.float64).reshape(-1) for leaf in ("mean", "variance"))
    std = np.maximum(np.sqrt(variance), 1e-7)
    std = variance if np.allclose(variance, np.resize(IMAGENET_STD, variance.shape), rtol=1e-6, atol=0) else std
    return _known(mean), _known(std)


def _known(values: np.ndarray) -> tuple[float, ...]:
    """Well-known numbers as they were before they were rounded to float32."""
    for known in (IMAGENET_MEAN, IMAGENET_STD, INCEPTION_MEAN):
        if len(values) == len(known) and np.allclose(values, known, rtol=2e-7, atol=0):
            return known
    return tuple(values.tolist())


def _keras() -> Any:
    """Keras, on JAX if it would choose TensorFlow, which is not installed."""
    has_choice = "KERAS_BACKEND" in os.environ or "keras" in sys.modules
    if not has_choice and importlib.util.find_spec("tensorflow") is None:
        os.environ["KERAS_BACKEND"] = "jax"
    try:
        import keras

        return keras
    finally:
        if not has_choice:
            os.environ.pop("KERAS_BACKEND", None)


def _set_weights(model: Any, arrays: Mapping[str, np.ndarray]) -> None:
    by_layer: dict[str, list[np.ndarray]] = {}
    for name, array in arrays.items():
        by_layer.setdefault(name.rpartition("/")[0], []).append(np.asarray(array, np.float32))
    for name, values in by_layer.items():
        layer = model.get_layer(name)
        if name == "logits":  # a convolution
            values[0] = values[0].reshape(1, 1, *values[0].shape[-2:])
        layer.set_weights(values)


def _constructor(card: ModelCard) -> tuple[str, dict[str, Any]]:
    """The function of keras.applications that builds a card's model, and its options."""
    match = _WRITTEN.fullmatch(card.model)
    if match is None or card.global_pool != "avg" or card.output_stride != 32:
        raise OutputError(
            f"keras.applications has no {card.model} with pooling {card.global_pool!r} and output stride "
            f"{card.output_stride}: only its EfficientNet B0 to B7, EfficientNetV2 but XL, MobileNetV2 and V3 can be "
            "written, as tf_ models"
        )
    pixels = card.preprocessing
    options: dict[str, Any] = {"weights": None, "input_shape": (pixels.image_size, pixels.image_size, card.in_chans)}
    if card.num_classes:
        options["classes"] = card.num_classes
    elif match["v3"]:
        raise OutputError("MobileNetV3 without a classifier lacks its last convolution in Keras: it cannot be written")
    else:
        options |= {"include_top": False, "pooling": "avg"}
    if match["b"]:
        return f"EfficientNet{match['b'].upper()}", options
    if match["e2"]:
        return f"EfficientNetV2{match['e2'].upper()}", options
    if {*pixels.mean, *pixels.std} != {0.5}:
        raise OutputError(
            f"Keras's MobileNets take pixels with mean and standard deviation 0.5, but {card.model} here has "
            f"mean {pixels.mean} and std {pixels.std}: it cannot be written"
        )
    if match["v2"]:
        return "MobileNetV2", {**options, "alpha": int(match["v2"]) / 100}
    options |= {"alpha": int(match["alpha"]) / 100, "minimalistic": bool(match["minimal"])}
    return f"MobileNetV3{match['v3'].capitalize()}", options
