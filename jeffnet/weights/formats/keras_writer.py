"""Models of keras.applications to files, by Keras itself."""

import importlib.util
import os
import re
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jeffnet.errors import EndingError, JeffnetError, OutputError, first_line
from jeffnet.ops.image import per_channel
from jeffnet.system.extras import install
from jeffnet.system.files import written_atomically
from jeffnet.weights.card import ModelCard
from jeffnet.weights.formats.hdf5 import with_checksums
from jeffnet.weights.formats.keras import KERAS
from jeffnet.weights.naming import to_source_names

_SUFFIXES = (".keras", ".weights.h5")
_WRITTEN = re.compile(
    r"tf_(?:efficientnet_(?P<b>b[0-7])(?:_ap|_ns)?|mobilenetv2_(?P<v2>\d{3})|"
    r"mobilenetv3_(?P<v3>small|large)(?P<minimal>_minimal)?_(?P<alpha>\d{3}))"
)


def write_keras(path: Path, arrays: Mapping[str, np.ndarray], card: ModelCard) -> None:
    """Write a model of keras.applications, in float32, as Keras itself does; its output are probabilities.

    Args:
      path: of a whole model, `*.keras`, or of its weights, `*.weights.h5`; its folder must exist.
      arrays: by canonical name.
      card: the model. Its mean and standard deviation become the Normalization of EfficientNet.

    Raises:
      EndingError: the name says no form of Keras.
      OutputError: Keras is not installed or has no such model, its mean does not fit its channels, or the file cannot
        be written.
    """
    path = Path(path)
    suffix = next((suffix for suffix in _SUFFIXES if path.name.endswith(suffix)), None)
    if suffix is None:
        raise EndingError(f"cannot write {str(path)!r}: name it *{' or *'.join(_SUFFIXES)}")
    name, options = _constructor(card)
    try:
        mean, std = (per_channel(name, getattr(card.preprocessing, name), card.in_chans) for name in ("mean", "std"))
    except JeffnetError as error:
        raise OutputError(f"cannot write {str(path)!r}: {error}") from error
    try:
        keras = _keras()
    except ModuleNotFoundError as error:
        raise OutputError(f"cannot write {str(path)!r} without Keras: {install('keras')}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a number of channels that is not 1 or 3
            model = getattr(keras.applications, name)(**options)
        for layer in model.layers:
            if isinstance(layer, keras.layers.Normalization):
                layer.set_weights([np.asarray(mean), np.square(std), np.zeros((), int)])
        _set_weights(model, to_source_names(arrays, KERAS, card.plan()))
    except ValueError as error:
        raise OutputError(f"cannot write {str(path)!r}: Keras has no such {card.model}: {first_line(error)}") from error
    with written_atomically(path) as partial:
        if suffix == ".keras":
            model.save(partial)
        else:
            # Not by `save_weights`: on a full disk HDF5 crashes, where a file in memory does not.
            with tempfile.TemporaryDirectory() as folder:
                whole = Path(folder) / "model.keras"
                model.save(whole)
                with zipfile.ZipFile(whole) as archive:
                    Path(partial).write_bytes(with_checksums(archive.read("model.weights.h5")))


def _keras() -> Any:
    """Keras, with a backend that is there where the user chose none."""
    asks_for_tensorflow = "KERAS_BACKEND" not in os.environ and "keras" not in sys.modules
    if not asks_for_tensorflow or importlib.util.find_spec("tensorflow") is not None:
        import keras

        return keras
    os.environ["KERAS_BACKEND"] = "jax"
    try:
        import keras

        return keras
    finally:
        del os.environ["KERAS_BACKEND"]


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
    """By what function of keras.applications, and with what options, a card's model is built."""
    found = _WRITTEN.fullmatch(card.model)
    if found is None or card.global_pool != "avg" or card.output_stride != 32:
        raise OutputError(
            f"keras.applications has no {card.model} with pooling {card.global_pool!r} and output stride "
            f"{card.output_stride}: only its EfficientNet B0 to B7, MobileNetV2 and V3 can be written, as tf_ models"
        )
    pixels = card.preprocessing
    options: dict[str, Any] = {"weights": None, "input_shape": (pixels.image_size, pixels.image_size, card.in_chans)}
    if card.num_classes:
        options["classes"] = card.num_classes
    elif found["v3"]:
        raise OutputError("MobileNetV3 without a classifier lacks its last convolution in Keras: it cannot be written")
    else:
        options |= {"include_top": False, "pooling": "avg"}
    if found["b"]:
        return f"EfficientNet{found['b'].upper()}", options
    if {*pixels.mean, *pixels.std} != {0.5}:
        raise OutputError(
            f"Keras's MobileNets take pixels with mean and standard deviation 0.5, but {card.model} here has "
            f"mean {pixels.mean} and std {pixels.std}: it cannot be written"
        )
    if found["v2"]:
        return "MobileNetV2", {**options, "alpha": int(found["v2"]) / 100}
    options |= {"alpha": int(found["alpha"]) / 100, "minimalistic": bool(found["minimal"])}
    return f"MobileNetV3{found['v3'].capitalize()}", options
