"""The `config.json` that timm writes beside weights: the model's name, preprocessing and classes.

It is read as by timm 1.0: `timm.models._hub._parse_model_cfg` and `timm.data.resolve_data_config`, with the size and
crop of tests as in timm's `validate.py`. An entry that changes the network in a way that jeffnet cannot is an error.
"""

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.zoo import MODELS, ModelLike, model_preprocessing, model_spec, resolve_name
from jeffnet.errors import UnknownModelError, WeightsError, first_line
from jeffnet.system.reading import parse_json, read_text

CONFIG_FILE = "config.json"
_log = logging.getLogger("jeffnet")

# timm's other names of activations.
_ACTIVATIONS = {"swish": "silu", "hardswish": "hard_swish"}
# Arguments of timm's `create_model` that do not change the logits.
_WITHOUT_EFFECT = frozenset(
    {"drop_rate", "drop_path_rate", "bn_momentum", "scriptable", "exportable", "no_jit", "pretrained", "cache_dir"}
)


@dataclass(frozen=True)
class HubConfig:
    """The entries of a `config.json`, as in `jeffnet.weights.card.ModelCard`; None or empty if it lacks them.

    `arguments` are other options of the network, which `check_arguments` compares with the model.
    """

    model: str | None = None
    preprocessing: Preprocessing | None = None
    classes: tuple[str, ...] = ()
    num_classes: int | None = None
    in_chans: int | None = None
    global_pool: str = "avg"
    output_stride: int = 32
    arguments: Mapping[str, Any] = field(default_factory=dict)


def config_beside(weights: Path) -> HubConfig:
    """The `config.json` in the folder of a weights file, if timm wrote it."""
    path = weights.parent / CONFIG_FILE
    if not path.is_file():
        return HubConfig()
    entries = read_config(path, str(path))
    if not isinstance(entries.get("architecture"), str) and not isinstance(entries.get("pretrained_cfg"), dict):
        return HubConfig()  # of a run of jeffnet's, or another library's
    _log.info("%s says what the weights are of and what they expect of pictures", path)
    return parse_config(entries, str(path))


def read_config(path: Path, source: str) -> dict[str, Any]:
    """The entries of a `config.json`; none, with a warning, if it cannot be read."""
    try:
        config = parse_json(read_text(path))
        if not isinstance(config, dict):
            raise ValueError(f"a {type(config).__name__}")
    except (OSError, ValueError) as error:
        _log.warning("weights %r: config.json cannot be read and is left aside: %s", source, first_line(error))
        return {}
    return config


def parse_config(config: Mapping[str, Any], source: str, repository: str | None = None) -> HubConfig:
    """Interpret the entries of a `config.json`, of a repository of the hub if it is one.

    Raises:
      WeightsError: an entry asks for something that jeffnet does not compute.
    """
    weights, arguments = _pretrained(config), config.get("model_args") or {}
    if not isinstance(arguments, dict):
        raise _refused(source, "model_args", arguments, "they are no object of names and values")
    rest = {name: value for name, value in arguments.items() if value is not None and name not in _WITHOUT_EFFECT}
    in_chans, num_classes = rest.pop("in_chans", None), rest.pop("num_classes", None)
    if num_classes is None:
        num_classes = config.get("num_classes", weights.get("num_classes"))
    global_pool, output_stride = rest.pop("global_pool", "avg"), rest.pop("output_stride", 32)
    if global_pool not in ("avg", "max", "avgmax", ""):
        raise _refused(source, "model_args.global_pool", global_pool, "jeffnet has avg, max, avgmax and none")
    if output_stride not in (8, 16, 32):
        raise _refused(source, "model_args.output_stride", output_stride, "jeffnet has 8, 16 and 32")
    if unknown := sorted(rest.keys() - _COMPARED.keys()):
        raise _refused(source, f"model_args.{unknown[0]}", rest[unknown[0]], "jeffnet does not know it")
    model = _model(repository, config, weights)
    return HubConfig(
        model=model,
        preprocessing=_preprocessing(source, weights, model),
        classes=_classes(source, config, weights),
        num_classes=num_classes if isinstance(num_classes, int) else None,
        in_chans=in_chans if isinstance(in_chans, int) else None,
        global_pool=global_pool or "none",
        output_stride=output_stride,
        arguments=rest,
    )


def check_arguments(config: HubConfig, model: ModelLike, source: str) -> None:
    """Raises WeightsError if a configuration's arguments make another network than a model."""
    spec = model_spec(model)
    for name, value in config.arguments.items():
        equal = _COMPARED[name](spec)
        if (_ACTIVATIONS.get(value, value) if isinstance(value, str) else value) not in equal:
            raise _refused(source, f"model_args.{name}", value, f"{resolve_name(model)} has {equal[0]!r}")


# The values that arguments of timm must have for a model.
_COMPARED = {
    "bn_eps": lambda spec: (spec.bn_epsilon,),
    "act_layer": lambda spec: (spec.act,),
    "pad_type": lambda spec: ("same",) if spec.padding == "same" else ("", "symmetric"),
}


def _model(repository: str | None, config: Mapping[str, Any], weights: Mapping[str, Any]) -> str | None:
    published = {f"timm/{model.timm}": name for name, model in MODELS.items() if model.timm}
    if repository in published:
        return published[repository]
    architecture, tag = config.get("architecture"), weights.get("tag")
    for name in (f"{architecture}.{tag}", str(architecture)):
        with contextlib.suppress(UnknownModelError):
            return resolve_name(name)
    return None


def _preprocessing(source: str, weights: Mapping[str, Any], model: str | None) -> Preprocessing | None:
    if "input_size" not in weights:
        return None
    try:
        _, *trained = weights["input_size"]
        _, height, width = weights.get("test_input_size") or weights["input_size"]
        crop_pct = weights.get("test_crop_pct") or weights.get("crop_pct")
        stated = {**weights, "crop_pct": crop_pct}
        kinds = {"crop_pct": float, "crop_mode": str, "interpolation": str, "mean": _numbers, "std": _numbers}
        others = {name: kind(stated[name]) for name, kind in kinds.items() if stated.get(name)}
        if height == width:
            is_other = trained != [height, width] and trained[0] == trained[1]
            return Preprocessing(int(height), train_size=int(trained[0]) if is_other else None, **others)
        default = model_preprocessing(model).image_size if model else 224
        _log.warning(
            "weights %r: config.json says pictures of %s x %s, which are not square: %d px are taken; give a size for "
            "another", source, height, width, default,
        )  # fmt: skip
        return Preprocessing(default, **others)
    except (TypeError, ValueError) as error:
        raise WeightsError(
            f"weights {source!r}: config.json says of pictures what jeffnet does not do: {first_line(error)}; download "
            "the files and correct it"
        ) from error


def _classes(source: str, config: Mapping[str, Any], weights: Mapping[str, Any]) -> tuple[str, ...]:
    """The names, which timm writes as a list or as an object from the classes' numbers."""
    names = config.get("label_names") or weights.get("label_names") or config.get("labels") or weights.get("labels")
    if isinstance(names, dict):
        numbers = [str(number) for number in range(len(names))]
        names = [names[number] for number in numbers] if names.keys() == set(numbers) else names
    if names and not isinstance(names, list):
        _log.warning(
            "weights %r: the names of the classes in config.json are neither a list nor an object from 0, 1, ...: they "
            "are left aside", source,
        )  # fmt: skip
        return ()
    return tuple(str(name) for name in names or ())


def _pretrained(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """timm's entries on the weights; in its older files they are among the others."""
    stated = config.get("pretrained_cfg", config)
    return stated if isinstance(stated, dict) else {}


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _refused(source: str, name: str, value: Any, why: str) -> WeightsError:
    return WeightsError(f"weights {source!r}: {name} {value!r} in config.json cannot be followed: {why}")
