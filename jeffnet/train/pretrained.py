"""What a run takes of the weights from which it starts and of its teacher: options, preprocessing, order of classes."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jeffnet.arch.class_names import class_difference, class_indices, order_doubt
from jeffnet.arch.imagenet import imagenet_classes
from jeffnet.arch.zoo import model_preprocessing
from jeffnet.errors import ConfigError
from jeffnet.text.names import listed
from jeffnet.train.config import Config
from jeffnet.train.state import Arrays
from jeffnet.weights.card import ModelCard
from jeffnet.weights.load import describe_weights

# Entries of the configuration, each None unless set, that weights may decide.
_OF_MODEL = ("name", "global_pool", "output_stride")
OF_PICTURES = ("image_size", "crop_pct", "interpolation", "mean", "std", "crop_mode")
_log = logging.getLogger("jeffnet")


def settled(config: Config) -> Config:
    """A configuration in which what is left to the weights from which the model starts is what they say.

    These are the model's name, pooling and output stride, and what it expects of pictures where the zoo says otherwise.

    Raises:
      WeightsError: the weights cannot be had or read, or are of another model.
      ConfigError: neither the configuration nor the weights name the model.
    """
    source = config.model.pretrained
    if source is None:
        config.model.known_name  # noqa: B018 (whether there is one)
        return config
    file, card = describe_weights(source, config.model.name)
    own, expected = model_preprocessing(card.model), card.preprocessing
    model: dict[str, Any] = {"name": card.model}
    # Maps without pooling are not what is trained here.
    if card.global_pool not in ("avg", "none"):
        model["global_pool"] = card.global_pool
    if card.output_stride != 32:
        model["output_stride"] = card.output_stride
    data = {entry: getattr(expected, entry) for entry in OF_PICTURES if getattr(expected, entry) != getattr(own, entry)}
    if len(expected.mean) not in (1, config.model.in_chans):
        data = {entry: value for entry, value in data.items() if entry not in ("mean", "std")}
    settled = _filled(config, model, data)
    taken = [
        f"{part}.{entry} {value}"
        for part, entries in (("model", model), ("data", data))
        for entry, value in entries.items()
        if getattr(getattr(config, part), entry) is None
    ]
    if taken:
        _log.info("%s: taken from the weights: %s", file.source, ", ".join(taken))
    return settled


def continued(config: Config, own: Config) -> Config:
    """A configuration in which what is left to the weights is as in the run that it continues."""
    if config.model.pretrained is None:
        return config
    model = {entry: getattr(own.model, entry) for entry in _OF_MODEL}
    return _filled(config, model, {entry: getattr(own.data, entry) for entry in OF_PICTURES})


def _filled(config: Config, model: Mapping[str, Any], data: Mapping[str, Any]) -> Config:
    """With these values of entries that are None."""
    parts = {
        part: replace(own, **{entry: value for entry, value in values.items() if getattr(own, entry) is None})
        for part, own, values in (("model", config.model, model), ("data", config.data, data))
    }
    return replace(config, **parts)


def in_order(arrays: Arrays, card: ModelCard, classes: Sequence[str], teacher: str) -> Arrays:
    """A teacher's arrays, its logits in the order of the data's classes.

    Args:
      arrays: by canonical name, with a classifier.
      card: of the teacher.
      classes: names of the data's, as many as the teacher has.
      teacher: what to call it in messages.

    Raises:
      ConfigError: it has other classes.
    """
    indices = class_indices(classes, card.num_classes, card.classes)
    if indices is None:
        difference = class_difference(card.classes or tuple(imagenet_classes()), classes)
        raise ConfigError(
            f"loss.teacher {teacher!r} has other classes than the data: {difference}; "
            "give a teacher that was trained on these classes"
        )
    if doubt := order_doubt(classes, card.num_classes, card.classes):
        _log.warning("loss.teacher %s: %s: name them by save_checkpoint if it is timm's", teacher, doubt)
    if indices == tuple(range(len(classes))):
        return arrays
    _log.warning("loss.teacher %s: its classes are put into the order %s", teacher, listed(classes))
    return arrays | {name: arrays[name][..., list(indices)] for name in ("classifier.kernel", "classifier.bias")}
