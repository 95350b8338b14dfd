"""Policies by their names, in timm's notation: `rand-m9-n2-mstd0.5` is RandAugment and what differs from its defaults.

| name                                | policy                                                                   |
|-------------------------------------|--------------------------------------------------------------------------|
| `v0`, `original`                    | AutoAugment: the authors' later policy, and the paper's                  |
| `v0r`, `originalr`                  | the same; posterize takes more away, the higher its magnitude            |
| `3a`                                | 3-Augment; the paper adds a colour jitter of 0.3                         |
| `rand`                              | RandAugment                                                              |
| `augmix`                            | AugMix                                                                   |
| `trivial`                           | TrivialAugment                                                           |

What may follow, each with a number and after a dash:

| key    | of               | meaning                                                                            |
|--------|------------------|------------------------------------------------------------------------------------|
| `mstd` | all but trivial  | noise on magnitudes; `inf`, or more than 100: uniform from 0 to the magnitude      |
| `m`    | `rand`, `augmix` | magnitude (10; AugMix 3)                                                           |
| `n`    | `rand`           | operations on each picture (2)                                                     |
| `p`    | `rand`           | probability that each takes place (0.5)                                            |
| `mmax` | `rand`           | greatest magnitude, with the noise (10)                                                 |
| `inc`  | `rand`           | 1: every operation changes more, the higher its magnitude (0)                      |
| `w`    | `rand`           | 0: the weights of timm's first releases, which favour geometry                     |
| `t`    | `rand`           | set of operations: `weights`, `3a` or `3aw`                                        |
| `w`    | `augmix`         | chains (3)                                                                         |
| `d`    | `augmix`         | operations in a chain (1 to 3 at random)                                           |
| `a`    | `augmix`         | alpha of the distributions of weights (1)                                          |
| `b`    | `augmix`         | 1: mix in 8-bit pixels, which is quicker (0)                                       |
"""

import math
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from PIL import Image

from jeffnet.data.augment.augmix import UNIFORM, AugMix
from jeffnet.data.augment.autoaugment import SUB_POLICIES, AutoAugment
from jeffnet.data.augment.magnitudes import CANVAS, FULL, Canvas, Noise
from jeffnet.data.augment.randaugment import INCREASING, PLAIN, SETS, WEIGHTS_0, RandAugment
from jeffnet.data.augment.trivial import TrivialAugment
from jeffnet.errors import ConfigError

POLICIES = (*SUB_POLICIES, "rand", "augmix", "trivial")


class Policy(Protocol):
    """Changes a picture, mode 'RGB' or 'L', at random; keeps its size and mode."""

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image: ...


@lru_cache
def parse_policy(text: str, canvas: Canvas = CANVAS) -> Policy:
    """The policy that a text names, as this module describes; `canvas` is for pixels from outside the picture.

    Raises:
      ConfigError: an unknown policy or key, or a value outside its range.
    """
    name, *sections = text.split("-")
    if name == "rand":
        return _rand(_values(text, sections, _RAND), text, canvas)
    if name == "augmix":
        return _augmix(_values(text, sections, _AUGMIX), canvas)
    if name == "trivial":
        _values(text, sections, {})
        return TrivialAugment(canvas)
    if name in SUB_POLICIES:
        std = _values(text, sections, _AUTO).get("mstd", 0.0)
        return AutoAugment(SUB_POLICIES[name], Noise(std), canvas)
    raise ConfigError(f"policy {text!r}: {name!r} is not one of {', '.join(POLICIES)}")


def policy_magnitude(text: str) -> float | None:
    """The magnitude of RandAugment's or AugMix's operations; None for the other policies, which have no single one."""
    policy = parse_policy(text)
    return policy.magnitude if isinstance(policy, RandAugment | AugMix) else None


def with_magnitude(text: str, magnitude: float) -> str:
    """The text of RandAugment or AugMix with another magnitude, to within a thousandth.

    Raises:
      ConfigError: a policy without a magnitude, or one outside its range.
    """
    if policy_magnitude(text) is None:
        raise ConfigError(f"policy {text!r} has no magnitude to change: take 'rand' or 'augmix', or leave it as it is")
    name, *sections = text.split("-")
    others = [section for section in sections if not re.match(r"m(?!std|max)", section)]
    # Not the shortest notation of a number, which may have a dash in it: 1e-05.
    changed = "-".join([name, f"m{magnitude:.3f}".rstrip("0").rstrip("."), *others])
    parse_policy(changed)
    return changed


def _rand(values: dict[str, Any], text: str, canvas: Canvas) -> RandAugment:
    operations, weights = INCREASING if values.get("inc") else PLAIN, None
    if "t" in values and "w" in values:
        raise ConfigError(f"policy {text!r}: 't' and 'w' both choose weights: give one of them")
    if "t" in values:
        chosen = SETS[values["t"]]
        operations, weights = tuple(chosen), tuple(chosen.values()) if isinstance(chosen, dict) else None
    elif "w" in values:
        weights = WEIGHTS_0
    layers = values.get("n", 2)
    if weights and layers > (most := sum(weight > 0 for weight in weights)):
        raise ConfigError(f"policy {text!r}: of weighted operations none is drawn twice, so that n is {most} at most")
    noise = Noise(values.get("mstd", 0.0), values.get("mmax", FULL))
    return RandAugment(operations, values.get("m", FULL), layers, values.get("p", 0.5), weights, noise, canvas)


def _augmix(values: dict[str, Any], canvas: Canvas) -> AugMix:
    names = {"m": "magnitude", "w": "width", "d": "depth", "a": "alpha", "b": "blended"}
    settings = {names[key]: value for key, value in values.items() if key in names}
    return AugMix(**settings, noise=Noise(values.get("mstd", UNIFORM.std)), canvas=canvas)


def _values(text: str, sections: list[str], keys: dict[str, Callable[[str], Any]]) -> dict[str, Any]:
    """Value by key of the sections after a policy's name."""
    values = {}
    for section in sections:
        # The longest first: 'mstd' begins with an 'm'.
        key = max((key for key in keys if section.startswith(key)), key=len, default=None)
        if key is None:
            allowed = f"one of {', '.join(keys)}" if keys else "nothing: this policy has no settings"
            raise ConfigError(f"policy {text!r}: {section!r} is none of its settings: give {allowed}")
        if key in values:
            raise ConfigError(f"policy {text!r}: {key!r} is given twice")
        try:
            values[key] = keys[key](section.removeprefix(key))
        except ConfigError as error:
            raise ConfigError(f"policy {text!r}: {section!r} is not {key!r} and {error}") from None
    return values


def _number(least: float, most: float = math.inf, whole: bool = False) -> Callable[[str], Any]:
    """Reads a number, an int where it is to be whole."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most or (whole and not text.isdecimal()):
            limits = f"of {least:g} or more" if most == math.inf else f"from {least:g} to {most:g}"
            raise ConfigError(f"a {'whole ' * whole}number {limits}")
        return int(text) if whole else value

    return read


def _std(text: str) -> float:
    std = _number(0)(text)
    return math.inf if std > 100 else std


def _set(text: str) -> str:
    if text not in SETS:
        raise ConfigError(f"one of {', '.join(SETS)}")
    return text


_MAGNITUDE = _number(0, 1000.0)
_COUNT = _number(1, whole=True)
_SWITCH = _number(0, 1, whole=True)

_AUTO = {"mstd": _std}
_RAND = {
    "m": _MAGNITUDE, "n": _COUNT, "p": _number(0, 1), "mstd": _std, "mmax": _MAGNITUDE, "inc": _SWITCH,
    "w": _number(0, 0, whole=True), "t": _set,
}  # fmt: skip
_AUGMIX = {"m": _MAGNITUDE, "w": _COUNT, "d": _COUNT, "a": _number(0.001, 1000.0), "b": _SWITCH, "mstd": _std}
