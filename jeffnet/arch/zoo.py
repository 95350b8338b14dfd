"""The models by name."""

import difflib
import fnmatch
from collections.abc import Iterable

from jeffnet.arch.families import (
    edgetpu,
    efficientnet,
    efficientnet_v2,
    efficientnet_variants,
    fbnetv3,
    hardcorenas,
    lcnet,
    mixnet,
    mobilenet,
    mobilenet_v4,
    pruned,
    searched,
    tinynet,
)
from jeffnet.arch.lower import lower
from jeffnet.arch.model import OLD_NAMES, Model
from jeffnet.arch.plan import Plan
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.spec import ModelSpec
from jeffnet.errors import ArchitectureError, UnknownModelError

_FAMILIES = (
    edgetpu,
    efficientnet,
    efficientnet_v2,
    efficientnet_variants,
    fbnetv3,
    hardcorenas,
    lcnet,
    mixnet,
    mobilenet,
    mobilenet_v4,
    pruned,
    searched,
    tinynet,
)


def _merge(tables: Iterable[dict[str, Model]]) -> dict[str, Model]:
    merged = {}
    for table in tables:
        for name, model in table.items():
            if name in merged:
                raise ArchitectureError(f"model {name!r} is defined twice")
            merged[name] = model
    return dict(sorted(merged.items()))


MODELS = _merge(entry.models(name) for family in _FAMILIES for name, entry in family.MODELS.items())


def _aliases() -> dict[str, str]:
    """Names that mean a model of another name: with the default tag, with `pt_`, and older ones."""
    aliases = {"mnasnet_a1": "semnasnet_100", "mnasnet_b1": "mnasnet_100"}
    for name, model in MODELS.items():
        architecture, _, tag = (model.timm or name).partition(".")
        old = architecture + OLD_NAMES[tag] if tag in OLD_NAMES else None
        for other in filter(None, (name, model.timm, old)):
            aliases[other] = name
            if not other.startswith("tf_"):
                aliases[f"pt_{other}"] = name
    return aliases


_ALIASES = _aliases()


def resolve_name(name: str) -> str:
    """The name of a model, from any of its names.

    Args:
      name: of an architecture (`efficientnet_b0`, which has its default weights) or of an architecture with other
        weights (`tf_efficientnet_b0.ns_jft_in1k`), as in timm; earlier names of ours (`pt_efficientnet_b0`,
        `tf_efficientnet_b0_ns`). MobileNetV2 also has names for widths that are not listed, see
        `jeffnet.arch.families.mobilenet.scaled`.

    Returns:
      `architecture`, or `architecture.tag` for other weights than the default.

    Raises:
      UnknownModelError: no such model; the message has the nearest names.
    """
    if not isinstance(name, str):
        raise UnknownModelError(f"unknown model {name!r}: a name is text, such as 'efficientnet_b0'")
    if name in MODELS:
        return name
    if name in _ALIASES:
        return _ALIASES[name]
    if mobilenet.scaled(name):
        return name.removeprefix("pt_")
    known = [*MODELS, *(model.timm for model in MODELS.values() if model.timm)]
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    # A tag is long: compared with it, models of other architectures but similar tags would seem near.
    near += [other for other in difflib.get_close_matches(name.partition(".")[0], MODELS, n=4) if other not in near]
    near += [other for other in MODELS if name and name in other and other not in near]
    hint = f"near it: {', '.join(near[:5])}" if near else "`jeffnet list` shows all"
    raise UnknownModelError(f"unknown model {name!r}; {hint}")


def list_models(pattern: str = "*", pretrained: bool = False, tags: bool = False) -> list[str]:
    """Names of the zoo, sorted.

    Args:
      pattern: names of architectures, with shell wildcards (`tf_*_b[0-3]`); with a dot, of weights (`*.ns_jft_in1k*`),
        which asks for `tags`.
      pretrained: only models with published weights.
      tags: a name for every set of weights (`efficientnet_b0.ra_in1k`) instead of one for every architecture;
        architectures without weights are left out.
    """
    if tags or "." in pattern:
        pattern = pattern if "." in pattern else f"{pattern}.*"
        return sorted(fnmatch.filter([model.timm for model in MODELS.values() if model.timm], pattern))
    names = [name for name, model in MODELS.items() if "." not in name and (model.weights or not pretrained)]
    return fnmatch.filter(names, pattern)


def find_model(name: str) -> Model:
    """The entry of a model, by any of its names; raises UnknownModelError."""
    model = _find(resolve_name(name))
    assert model is not None
    return model


def model_spec(name: str) -> ModelSpec:
    """The architecture of a model; raises UnknownModelError."""
    return find_model(name).spec


def model_preprocessing(name: str) -> Preprocessing:
    """What a model's weights expect of their input; raises UnknownModelError."""
    return find_model(name).preprocessing


def model_plan(name: str, **options) -> Plan:
    """The Plan of a model, by any of its names; for the options and errors see `jeffnet.arch.lower.lower`.

    Raises:
      UnknownModelError: no such model.
    """
    return lower(model_spec(name), **options)


def _find(name: str) -> Model | None:
    return MODELS.get(name) or mobilenet.scaled(name)
