"""The models by name: those of the zoo, and those that a program registers."""

import difflib
import fnmatch
import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from jeffnet.arch.families import mobilenet, searched
from jeffnet.arch.imagenet import LABEL_SETS
from jeffnet.arch.lower import lower
from jeffnet.arch.model import OLD_NAMES, Model
from jeffnet.arch.plan import Plan
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.spec import ModelSpec, as_spec, spec_name
from jeffnet.errors import ArchitectureError, UnknownModelError

# A model of the zoo or a registered one by its name, or any architecture: a spec, or its stages of block strings.
ModelLike = str | ModelSpec | Sequence[str | Sequence[str]]

# Modules of `jeffnet.arch.families`, each with a table `MODELS`.
_FAMILIES = (
    *("edgetpu", "efficientnet", "efficientnet_v2", "efficientnet_variants", "fbnetv3", "hardcorenas", "lcnet"),
    *("mixnet", "mobilenet", "mobilenet_v4", "pruned", "searched", "tinynet"),
)


def _merge(tables: Iterable[dict[str, Model]]) -> dict[str, Model]:
    merged = {}
    for table in tables:
        for name, model in table.items():
            if name in merged:
                raise ArchitectureError(f"model {name!r} is defined twice")
            merged[name] = model
    return dict(sorted(merged.items()))


def _models() -> dict[str, Model]:
    families = [importlib.import_module(f"jeffnet.arch.families.{name}") for name in _FAMILIES]
    return _merge(entry.models(name) for family in families for name, entry in family.MODELS.items())


MODELS = _models()


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
# Names as in the first versions, which have no tags.
_EARLIER = {old: name for old, name in _ALIASES.items() if "." not in old and old not in MODELS}


# The models of `register_model`.
_REGISTERED: dict[str, Model] = {}
_OWN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


def register_model(
    name: str, spec: ModelSpec | Sequence[str | Sequence[str]], preprocessing: Preprocessing | None = None
) -> None:
    """Give an architecture of one's own a name, by which it is created, listed, trained and saved like one of the zoo.

    Files of the model say its architecture: to load them, no registration is needed.

    Args:
      name: letters, digits, `_` and `-`.
      spec: the architecture, or its stages of block strings (`jeffnet.arch.grammar`), with the defaults of `ModelSpec`
        for all else.
      preprocessing: what the model expects of pictures where its weights do not say it; 224 pixels and the other
        defaults of `Preprocessing` unless given.

    Raises:
      ArchitectureError: the name is one of the zoo, or of an architecture that was registered with other contents; or
        the architecture is no network.

    Example:
      from jeffnet import register_model
      from jeffnet.linen import create_model

      register_model("my_net", [["ds_r1_k3_s1_c16"], ["ir_r2_k3_s2_e4_c24"], ["uir_r2_a3_k5_s2_e4_c48"]])
      model, variables = create_model("my_net", num_classes=10)
    """
    check_own_name(name)
    preprocessing = Preprocessing() if preprocessing is None else preprocessing
    if not isinstance(preprocessing, Preprocessing):
        raise ArchitectureError(f"preprocessing {preprocessing!r}: give a jeffnet.arch.preprocessing.Preprocessing")
    model = Model(as_spec(spec), preprocessing)
    lower(model.spec)
    if _REGISTERED.setdefault(name, model) != model:
        raise ArchitectureError(f"model {name!r} is registered already, with other contents: give another name")


def check_own_name(name: object) -> None:
    """Raises ArchitectureError where a model that is not of the zoo cannot have this name."""
    if not isinstance(name, str) or not _OWN_NAME.fullmatch(name):
        raise ArchitectureError(
            f"model name {str(name)[:100]!r}: give one of letters, digits, '_' and '-', such as 'my_net'"
        )
    if is_of_zoo(name):
        raise ArchitectureError(f"model name {name!r} is one of the zoo: give another")


def resolve_name(model: ModelLike) -> str:
    """The name of a model, from any of its names.

    Args:
      model: of an architecture (`efficientnet_b0`, which has its default weights) or of an architecture with other
        weights (`tf_efficientnet_b0.ns_jft_in1k`), as in timm; earlier names of ours (`pt_efficientnet_b0`,
        `tf_efficientnet_b0_ns`); that of a registered model. MobileNetV2 and MNASNet also have names for widths that
        are not listed, see `scaled` of `jeffnet.arch.families.mobilenet` and `searched`. An architecture without a name
        gets one, see `jeffnet.arch.spec.spec_name`.

    Returns:
      `architecture`, or `architecture.tag` for other weights than the default.

    Raises:
      UnknownModelError: no such model; the message has the nearest names.
      ArchitectureError: it is neither a name nor an architecture.
    """
    if not isinstance(model, str):
        return spec_name(_unnamed(model))
    if found := _zoo_name(model):
        return found
    if model in _REGISTERED:
        return model
    raise _unknown(model)


def _unnamed(model: object) -> ModelSpec:
    if isinstance(model, ModelSpec | Sequence | Mapping):
        return as_spec(model)
    raise UnknownModelError(
        f"unknown model {model!r}: give a name, such as 'efficientnet_b0', a ModelSpec, or stages of block strings"
    )


def _unknown(name: str) -> UnknownModelError:
    known = dict.fromkeys([*_REGISTERED, *MODELS, *(model.timm for model in MODELS.values() if model.timm)])
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    # A tag is long: compared with it, models of other architectures but similar tags would seem near.
    near += [other for other in difflib.get_close_matches(name.partition(".")[0], MODELS, n=4) if other not in near]
    near += [other for other in MODELS if name and name in other and other not in near]
    hint = f"near it: {', '.join(near[:5])}" if near else "`jeffnet list` shows all"
    return UnknownModelError(f"unknown model {name!r}; {hint}")


def _zoo_name(name: str) -> str | None:
    """The name in the zoo of one of its models; None if it is none of them."""
    if name in MODELS:
        return name
    if name in _ALIASES:
        return _ALIASES[name]
    return name.removeprefix("pt_") if _scaled(name) else None


def _scaled(name: str) -> Model | None:
    """A model whose width is in its name, of the families that have any width; None for all other names."""
    return mobilenet.scaled(name) or searched.scaled(name)


def is_of_zoo(name: str) -> bool:
    """Whether a name is one of the zoo's, as opposed to registered ones and unknown ones."""
    return _zoo_name(name) is not None


def is_known(name: str) -> bool:
    """Whether a model has this name."""
    with suppress(UnknownModelError):
        return bool(resolve_name(name))
    return False


def own_spec(model: ModelLike) -> ModelSpec | None:
    """The architecture of a model that is not of the zoo, for its files; None if it is. Raises as `find_model`."""
    if isinstance(model, str) and is_of_zoo(model):
        return None
    return find_model(model).spec


def list_models(pattern: str = "*", pretrained: bool = False, tags: bool = False) -> list[str]:
    """Names of the models, sorted: those of the zoo, and the registered ones.

    Args:
      pattern: names of architectures, with shell wildcards (`tf_*_b[0-3]`); with a dot, of weights (`*.ns_jft_in1k*`),
        which asks for `tags`. Earlier names mean their models, where no other name matches: `pt_*_b0`, `tf_*_ns`.
      pretrained: only models with published weights.
      tags: a name for every set of weights (`efficientnet_b0.ra_in1k`) instead of one for every architecture;
        architectures without weights are left out.

    Returns:
      Names that `create_model` takes; none if nothing matches.
    """
    if pattern in _ALIASES and pattern not in {model.timm for model in MODELS.values()}:
        pattern = _ALIASES[pattern]
    if found := _matching(pattern, pretrained, tags):
        return found
    earlier = {_EARLIER[old] for old in fnmatch.filter(_EARLIER, pattern)}
    return sorted({found for name in earlier for found in _matching(name, pretrained, tags)})


def _matching(pattern: str, pretrained: bool, tags: bool) -> list[str]:
    """See `list_models`; of present names."""
    if tags or "." in pattern:
        pattern = pattern if "." in pattern else f"{pattern}.*"
        return sorted(fnmatch.filter([model.timm for model in MODELS.values() if model.timm], pattern))
    models = {**MODELS, **_REGISTERED}
    names = [name for name, model in models.items() if "." not in name and (model.weights or not pretrained)]
    return sorted(fnmatch.filter(names, pattern))


def find_model(model: ModelLike) -> Model:
    """The entry of a model; of an architecture without a name, one with the default preprocessing and no weights.

    Args:
      model: a name, or an architecture.

    Returns:
      Its architecture, preprocessing and weights.

    Raises:
      UnknownModelError: no such model.
      ArchitectureError: it is neither a name nor an architecture.
    """
    if not isinstance(model, str):
        return Model(_unnamed(model), Preprocessing())
    name = resolve_name(model)
    found = MODELS.get(name) or _REGISTERED.get(name) or _scaled(name)
    assert found is not None
    return found


def model_spec(model: ModelLike) -> ModelSpec:
    """The architecture of a model; raises as `find_model`.

    Args:
      model: a name, or an architecture.

    Returns:
      What `jeffnet.arch.lower.lower` makes a Plan of.
    """
    return find_model(model).spec


def model_preprocessing(model: ModelLike) -> Preprocessing:
    """What a model's weights expect of their input; raises as `find_model`.

    Args:
      model: a name, or an architecture.

    Returns:
      Size, crop, interpolation, mean and std.
    """
    return find_model(model).preprocessing


def default_num_classes(model: ModelLike) -> int:
    """How many classes the published weights of this name have (`tf_efficientnetv2_s.in21k`), or else ImageNet-1k.

    Raises as `find_model`.

    Args:
      model: a name, or an architecture.

    Returns:
      The number.
    """
    weights = find_model(model).weights
    return LABEL_SETS[weights.classes if weights else "imagenet1k"]


def model_plan(model: ModelLike, **options) -> Plan:
    """The Plan of a model.

    Args:
      model: a name, or an architecture.
      **options: of `jeffnet.arch.lower.lower`; `num_classes` is `default_num_classes` unless given.

    Returns:
      The Plan.

    Raises:
      UnknownModelError: no such model.
      ArchitectureError: as `lower`.
    """
    return lower(model_spec(model), **{"num_classes": default_num_classes(model), **options})
