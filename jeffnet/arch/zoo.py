"""The models by name."""

import difflib
import fnmatch
from collections.abc import Iterable

from jeffnet.arch.families import efficientnet, mixnet, mobilenet, searched
from jeffnet.arch.lower import lower
from jeffnet.arch.model import Model
from jeffnet.arch.plan import Plan
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.spec import ModelSpec
from jeffnet.errors import ArchitectureError, UnknownModelError

_FAMILIES = (efficientnet, mixnet, mobilenet, searched)


def _merge(tables: Iterable[dict[str, Model]]) -> dict[str, Model]:
    merged = {}
    for table in tables:
        for name, model in table.items():
            if name in merged:
                raise ArchitectureError(f"model {name!r} is defined twice")
            merged[name] = model
    return dict(sorted(merged.items()))


MODELS = _merge(entry.models(name) for family in _FAMILIES for name, entry in family.MODELS.items())

# Names of timm for our models, besides ours without `pt_` and those with a published tag.
_OTHER_NAMES = {"mnasnet_a1": "pt_semnasnet_100", "mnasnet_b1": "pt_mnasnet_100"}
_TIMM_NAMES = {model.timm: name for name, model in MODELS.items() if model.timm}


def resolve_name(name: str) -> str:
    """Our name of a model, from our name or timm's.

    Args:
      name: ours (`tf_efficientnet_b0_ns`), timm's with its tag (`tf_efficientnet_b0.ns_jft_in1k`) or without
        (`mobilenetv3_large_100`, which is `pt_mobilenetv3_large_100`). MobileNetV2 also has names for widths that are
        not listed, see `jeffnet.arch.families.mobilenet.scaled`.

    Raises:
      UnknownModelError: no such model; the message has the nearest names.
    """
    if not isinstance(name, str):
        raise UnknownModelError(f"unknown model {name!r}: a name is text, such as 'pt_efficientnet_b0'")
    for candidate in (name, _TIMM_NAMES.get(name), _OTHER_NAMES.get(name), f"pt_{name}"):
        if candidate and _find(candidate):
            return candidate
    known = [*MODELS, *_TIMM_NAMES]
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    # A tag is long: compared with it, models of other architectures but similar tags would seem near.
    near += [other for other in difflib.get_close_matches(name.partition(".")[0], MODELS, n=4) if other not in near]
    near += [other for other in MODELS if name and name in other and other not in near]
    hint = f"near it: {', '.join(near[:5])}" if near else "`jeffnet list` shows all"
    raise UnknownModelError(f"unknown model {name!r}; {hint}")


def list_models(pattern: str = "*", pretrained: bool = False) -> list[str]:
    """Names of the zoo, sorted.

    Args:
      pattern: our names, with shell wildcards (`tf_*_b[0-3]`).
      pretrained: only models with published weights.
    """
    names = fnmatch.filter(MODELS, pattern)
    return [name for name in names if MODELS[name].weights] if pretrained else names


def find_model(name: str) -> Model:
    """The entry of a model, ours or timm's name; raises UnknownModelError."""
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
    """The Plan of a model, by our name or timm's; for the options and errors see `jeffnet.arch.lower.lower`.

    Raises:
      UnknownModelError: no such model.
    """
    return lower(model_spec(name), **options)


def _find(name: str) -> Model | None:
    return MODELS.get(name) or mobilenet.scaled(name)
