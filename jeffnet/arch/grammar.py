"""Block strings: the notation in which the papers' authors write networks down.

`ir_r2_k3_s2_e6_c24_se0.25` is a block kind followed by fields in any order. Only the first of a block's repetitions has
its stride.

| kind | block |
|---|---|
| `ir` | inverted residual (arXiv:1801.04381): a 1x1 convolution expands, a depthwise one follows, a 1x1 one projects |
| `ds` | depthwise separable: a depthwise convolution, then a 1x1 one |
| `dsa` | the same with an activation at the end |
| `er` | edge residual: a full convolution expands, a 1x1 one projects |
| `cn` | a convolution, its norm and its activation |
| `uir` | universal inverted residual (arXiv:2404.10518): `ir` with a depthwise convolution at up to three places |
| `mqa` | multi-query attention (arXiv:2404.10518) after a norm |

| field | meaning | example |
|---|---|---|
| `r` | how many times the block is repeated | `r2` |
| `k` | depthwise (in `er` and `cn` full) kernel; several sizes, joined by dots, share the channels | `k3`, `k3.5.7` |
| `s` | stride of the first repetition, 1 or 2 | `s2` |
| `e` | expansion of the input channels | `e6`, `e2.5` |
| `c` | output channels before scaling | `c24` |
| `se` | squeeze-and-excitation ratio | `se0.25` |
| `n` | activation instead of the model's: `nre` ReLU, `nr6` ReLU6, `nhs` hard swish, `nsw` SiLU | `nre` |
| `a`, `p` | kernels of the expanding and the projecting convolution; several share the channels | `a1.1` |
| `fc` | channels that the expansion multiplies instead of the real input's (EdgeTPU) | `fc24` |
| `gs` | output channels of a group of the convolution with kernel `k`; else 1 (`ir`, `ds`) or all (`er`) | `gs64` |
| `d` | in `ds` 1: the block first packs 2x2 positions into channels; in `mqa` the width of a head | `d1`, `d64` |
| `cc` | experts whose kernels are mixed for each picture (arXiv:1904.04971) | `cc4` |
| `a`, `k`, `p` | in `uir` depthwise kernels before the expansion, after it, and at the end; 0 for none | `a3_k5_p0` |
| `h`, `v` | in `mqa` heads, and the stride of keys and values, 1 or 2; `v2` needs `k`, its kernel | `h4`, `v2` |
| `x`, `q` | exact widths, not rounded: of the expansion, of squeeze-and-excitation (pruned networks) | `x48`, `q4` |
| `skip`, `noskip` | with or without the residual connection, where input and output have the same shape | |

Source of the notation: tensorflow/tpu, models/official/mnasnet; of `cn`, `uir`, `mqa` and the fields `gs`, `cc`, `d`:
timm.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from jeffnet.arch.checks import LARGEST
from jeffnet.errors import ArchitectureError

_LARGEST_KERNEL, _MOST_KERNELS, _LARGEST_RATIO = 63, 16, 1000
ACTIVATION_CODES = {"re": "relu", "r6": "relu6", "hs": "hard_swish", "sw": "silu"}


@dataclass(frozen=True)
class BlockSpec:
    """One parsed block string; channels are those before width scaling."""

    kind: str
    repeats: int
    kernels: tuple[int, ...]
    stride: int
    channels: int
    skip: bool
    expansion: float = 1.0
    se_ratio: float = 0.0
    act: str | None = None
    expand_kernels: tuple[int, ...] = (1,)
    project_kernels: tuple[int, ...] = (1,)
    expand_from: int | None = None
    group_size: int | None = None
    experts: int = 0
    space_to_depth: bool = False
    heads: int = 1
    head_width: int = 0
    key_stride: int = 1
    expanded: int | None = None
    squeezed: int | None = None


@dataclass(frozen=True)
class _Kind:
    required: frozenset[str]
    optional: frozenset[str]
    skip: bool


_KINDS = {
    "ir": _Kind(
        frozenset({"r", "k", "s", "e", "c"}), frozenset({"se", "n", "a", "p", "gs", "cc", "x", "q"}), skip=True
    ),
    "ds": _Kind(frozenset({"r", "k", "s", "c"}), frozenset({"e", "se", "n", "p", "gs", "d", "q"}), skip=True),
    "dsa": _Kind(frozenset({"r", "k", "s", "c"}), frozenset({"e", "se", "n", "p", "gs"}), skip=False),
    "er": _Kind(frozenset({"r", "k", "s", "e", "c"}), frozenset({"se", "n", "p", "fc", "gs"}), skip=True),
    "cn": _Kind(frozenset({"r", "k", "s", "c"}), frozenset({"e", "n"}), skip=False),
    "mqa": _Kind(frozenset({"r", "s", "c", "h", "d"}), frozenset({"k", "v", "n"}), skip=True),
    "uir": _Kind(frozenset({"r", "k", "s", "e", "c"}), frozenset({"se", "n", "a", "p"}), skip=True),
}

_FIELD = re.compile(r"(?P<key>n(?=[a-z])|[a-z]+)(?P<value>.*)")


def parse_block(text: str) -> BlockSpec:
    """The block that a block string describes.

    Args:
      text: such as `ir_r2_k3_s2_e6_c24`; the module's docstring lists the fields.

    Returns:
      The block.

    Raises:
      ArchitectureError: an unknown kind; a field that is unknown, repeated, missing, not allowed for the kind, or has a
        value outside its range. The message names the field.
    """
    kind, *fields = text.split("_")
    if kind not in _KINDS:
        raise ArchitectureError(f"block string {text!r}: unknown block kind {kind!r}; known are {', '.join(_KINDS)}")
    values: dict[str, object] = {}
    skip = _KINDS[kind].skip
    for field in fields:
        if field in ("skip", "noskip"):
            skip = field == "skip"
            continue
        key, value = _parse_field(text, field)
        if key in values:
            raise ArchitectureError(f"block string {text!r}: field {key!r} stands twice")
        values[key] = value
    _check_fields(text, kind, set(values))
    if kind == "uir":
        values = {"a": (0,), "p": (0,)} | values
        if any(len(values[key]) > 1 for key in "akp"):  # pyright: ignore[reportArgumentType]
            raise ArchitectureError(f"block string {text!r}: the kernels of a 'uir' block have one size each")
        if values["s"] == 2 and not any((*values["a"], *values["k"], *values["p"])):  # pyright: ignore
            raise ArchitectureError(f"block string {text!r}: a stride needs a kernel: give 'a', 'k' or 'p'")
    elif kind == "ds" and values.get("d", 1) != 1:
        raise ArchitectureError(f"block string {text!r}: field 'd' of a 'ds' block can only be 1")
    elif kind == "mqa":
        if values["s"] != 1:
            raise ArchitectureError(f"block string {text!r}: attention has no stride: give s1")
        if "k" not in values and values.get("v") == 2:
            raise ArchitectureError(f"block string {text!r}: keys and values with a stride need field k, their kernel")
        values = {"k": (1,)} | values
        _check_kernels(text, values)
    else:
        _check_kernels(text, values)
    # Authors write `e1` in some blocks where nothing expands; any other value would be ignored.
    if kind in ("ds", "dsa", "cn") and values.get("e", 1.0) != 1.0:
        raise ArchitectureError(f"block string {text!r}: field 'e' of a {kind!r} block can only be 1")
    fields = {_FIELDS[key][0]: value for key, value in values.items()}
    if kind == "mqa":
        fields["head_width"] = fields.pop("space_to_depth")
    return BlockSpec(kind=kind, skip=skip, **fields)  # pyright: ignore[reportArgumentType]


def _check_kernels(text: str, values: Mapping[str, object]) -> None:
    if any(0 in values.get(key, ()) for key in "akp"):  # pyright: ignore[reportOperatorIssue]
        raise ArchitectureError(f"block string {text!r}: only a 'uir' block can do without a kernel")


def parse_stages(stages: tuple[tuple[str, ...], ...]) -> tuple[tuple[BlockSpec, ...], ...]:
    """Every block string of every stage, parsed; raises as `parse_block`."""
    return tuple(tuple(parse_block(text) for text in stage) for stage in stages)


def _check_fields(text: str, kind: str, present: set[str]) -> None:
    missing = _KINDS[kind].required - present
    if missing:
        raise ArchitectureError(f"block string {text!r}: a {kind!r} block needs field {', '.join(sorted(missing))}")
    foreign = present - _KINDS[kind].required - _KINDS[kind].optional
    if foreign:
        raise ArchitectureError(f"block string {text!r}: a {kind!r} block has no field {', '.join(sorted(foreign))}")


def _parse_field(text: str, field: str) -> tuple[str, object]:
    match = _FIELD.fullmatch(field)
    key, value = (match["key"], match["value"]) if match else (field, "")
    if key not in _FIELDS:
        raise ArchitectureError(f"block string {text!r}: unknown field {field!r}; known are {', '.join(_FIELDS)}")
    _, parse, expected = _FIELDS[key]
    try:
        return key, parse(value)
    except (ValueError, KeyError):
        raise ArchitectureError(f"block string {text!r}: field {field!r} must be {expected}") from None


def _positive_int(value: str) -> int:
    if not value.isdecimal() or not 1 <= int(value) <= LARGEST:
        raise ValueError(value)
    return int(value)


def _kernels(value: str) -> tuple[int, ...]:
    if value == "0":
        return (0,)
    sizes = tuple(_positive_int(part) for part in value.split("."))
    # No "same" padding is symmetric around an even kernel.
    if any(size % 2 == 0 for size in sizes) or max(sizes) > _LARGEST_KERNEL or len(sizes) > _MOST_KERNELS:
        raise ValueError(value)
    return sizes


def _ratio(value: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?", value) or not 0 < float(value) <= _LARGEST_RATIO:
        raise ValueError(value)
    return float(value)


def _share(value: str) -> float:
    if _ratio(value) > 1:
        raise ValueError(value)
    return float(value)


# The attribute of each field, how its value is parsed, and what it must be.
_FIELDS = {
    "r": ("repeats", _positive_int, "'r' and a whole number from 1 to 65536"),
    "k": ("kernels", _kernels, "'k' and odd sizes up to 63 joined by dots, as k3 or k3.5.7"),
    "s": ("stride", {"1": 1, "2": 2}.__getitem__, "s1 or s2"),
    "e": ("expansion", _ratio, "'e' and a number above 0, up to 1000"),
    "c": ("channels", _positive_int, "'c' and a whole number from 1 to 65536"),
    "se": ("se_ratio", _share, "'se' and a number in (0, 1]"),
    "n": ("act", ACTIVATION_CODES.__getitem__, "one of " + ", ".join("n" + code for code in ACTIVATION_CODES)),
    "a": ("expand_kernels", _kernels, "'a' and odd sizes up to 63 joined by dots, as a1.1"),
    "p": ("project_kernels", _kernels, "'p' and odd sizes up to 63 joined by dots, as p1.1"),
    "fc": ("expand_from", _positive_int, "'fc' and a whole number from 1 to 65536"),
    "gs": ("group_size", _positive_int, "'gs' and a whole number from 1 to 65536"),
    "cc": ("experts", _positive_int, "'cc' and a whole number from 1 to 65536"),
    "d": ("space_to_depth", _positive_int, "'d' and a whole number from 1 to 65536"),
    "h": ("heads", _positive_int, "'h' and a whole number from 1 to 65536"),
    "v": ("key_stride", {"1": 1, "2": 2}.__getitem__, "v1 or v2"),
    "x": ("expanded", _positive_int, "'x' and a whole number from 1 to 65536"),
    "q": ("squeezed", _positive_int, "'q' and a whole number from 1 to 65536"),
}
