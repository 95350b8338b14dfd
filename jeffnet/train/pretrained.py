"""Options, preprocessing and order of classes that a run takes from its pretrained weights and its teacher."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jeffnet.arch.class_names import class_difference, class_indices, order_doubt
from jeffnet.arch.imagenet import known_classes
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.spec import ModelSpec
from jeffnet.arch.zoo import is_known, model_preprocessing, own_spec, resolve_name
from jeffnet.errors import ConfigError
from jeffnet.text.names import listed
from jeffnet.train.config import Config
from jeffnet.weights.load import describe_weights

# Entries of the configuration that are taken from the weights where they are None.
_OF_MODEL = ("name", "spec", "global_pool", "output_stride")
OF_PICTURES = ("image_size", "train_size", "crop_pct", "interpolation", "mean", "std", "crop_mode")
_log = logging.getLogger("jeffnet")


def settled(config: Config) -> Config:
    """A configuration whose open entries are filled in from the pretrained weights.

    These are the model's name, architecture, pooling and output stride, and its preprocessing where that is not the
    zoo's. Architecture and preprocessing of a registered model are filled in too: the run then says what it trains.

    Raises:
      WeightsError: the weights cannot be fetched or read, or are of another model.
      ConfigError: neither the configuration nor the weights name the model.
    """
    source = config.model.pretrained
    if source is None:
        config.model.known_architecture  # noqa: B018 (raises where there is none)
        return _with_registered(config)
    file, card = describe_weights(source, config.model.architecture)
    model: dict[str, Any] = {"name": card.model}
    # Training needs pooled features.
    if card.global_pool not in ("avg", "none"):
        model["global_pool"] = card.global_pool
    if card.output_stride != 32:
        model["output_stride"] = card.output_stride
    data = _unusual(config, card.preprocessing, model_preprocessing(card.architecture))
    settled = _filled(config, model | {"spec": _registered_spec(config, card.spec)}, data)
    taken = [f"model.{entry} {value}" for entry, value in model.items() if getattr(config.model, entry) is None]
    taken += [f"data.{entry} {value}" for entry, value in data.items() if getattr(config.data, entry) is None]
    if taken:
        _log.info("%s: taken from the weights: %s", file.source, ", ".join(taken))
    return settled


def _with_train_size(preprocessing: Preprocessing) -> Preprocessing:
    return replace(preprocessing, train_size=preprocessing.train_size or preprocessing.image_size)


def continued(config: Config, begun: Config) -> Config:
    """A configuration whose open entries are filled in from the run that it continues."""
    if config.model.pretrained is None:
        return _with_registered(config)
    model = {entry: getattr(begun.model, entry) for entry in _OF_MODEL}
    model["spec"] = _registered_spec(config, begun.model.spec)
    return _filled(config, model, {entry: getattr(begun.data, entry) for entry in OF_PICTURES})


def _with_registered(config: Config) -> Config:
    """The configuration with what is known of a model that is not of the zoo: name, architecture, preprocessing."""
    if config.model.spec is not None:
        return _filled(config, {"name": resolve_name(config.model.spec)}, {})
    spec = _registered_spec(config, None)
    if spec is None:
        return config
    data = _unusual(config, model_preprocessing(config.model.name or spec), Preprocessing())
    return _filled(config, {"spec": spec}, data)


def _registered_spec(config: Config, otherwise: ModelSpec | None) -> ModelSpec | None:
    """The architecture of a configuration's name: None of the zoo's, `otherwise` where the name is not known here."""
    name = config.model.name
    return own_spec(name) if name is not None and is_known(name) else otherwise


def _unusual(config: Config, expected: Preprocessing, usual: Preprocessing) -> dict[str, Any]:
    """Entries of the preprocessing that differ from the usual ones and fit the channels of the configuration."""
    fits = len(expected.mean) in (1, config.model.in_chans)
    entries = [entry for entry in OF_PICTURES if fits or entry not in ("mean", "std")]
    if config.data.image_size is not None:
        entries.remove("train_size")  # the size that is given is for training too
    usual, expected = _with_train_size(usual), _with_train_size(expected)
    data = {entry: getattr(expected, entry) for entry in entries if getattr(expected, entry) != getattr(usual, entry)}
    if config.data.image_size is None and "image_size" in data:
        data["train_size"] = expected.train_size  # or it would be the image size
    return data


def _filled(config: Config, model: Mapping[str, Any], data: Mapping[str, Any]) -> Config:
    """The configuration with these values for entries that are None."""

    def filled(part: Any, values: Mapping[str, Any]) -> Any:
        return replace(part, **{entry: value for entry, value in values.items() if getattr(part, entry) is None})

    return replace(config, model=filled(config.model, model), data=filled(config.data, data))


def class_order(known: Sequence[str], num_classes: int, classes: Sequence[str], teacher: str) -> tuple[int, ...]:
    """Which of a teacher's logits each of the data's classes is; as many are given.

    Args:
      known: names of the teacher's classes; empty where it does not name them.
      num_classes: how many it has.
      classes: of the data.
      teacher: its name.

    Raises:
      ConfigError: it has other classes.
    """
    indices = class_indices(classes, num_classes, known)
    if indices is None:
        difference = class_difference(known or known_classes(num_classes), classes)
        raise ConfigError(
            f"loss.teacher {teacher!r} has other classes than the data: {difference}; "
            "give a teacher that was trained on these classes"
        )
    if doubt := order_doubt(classes, num_classes, known):
        _log.warning("loss.teacher %s: %s: name them by save_checkpoint if it is timm's", teacher, doubt)
    if indices != tuple(range(len(classes))):
        _log.warning("loss.teacher %s: its classes are put into the order %s", teacher, listed(classes))
    return indices
