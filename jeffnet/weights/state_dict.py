"""The state dict of a network in what a training loop saved: under any keys, with any prefix, beside other objects."""

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jeffnet.errors import WeightsError

# What `DataParallel`, `torch.compile`, FSDP and activation checkpointing add to names, in any place.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


class _Network(NamedTuple):
    """How the networks of a source are found among arrays of any names.

    Attributes:
      stem: the first convolution's name, after any prefix.
      modules: the network's modules. Others beside them, such as a loss's weights, are skipped.
      mark: an array of the same prefix, without which it is another network.
    """

    stem: re.Pattern
    modules: re.Pattern
    mark: str = ""


_NETWORKS = (
    # timm and efficientnet_pytorch.
    _Network(
        re.compile(r"(?P<prefix>(?:.*\.)?)_?conv_stem\.weight"),
        re.compile(
            r"(conv_stem|bn1|blocks|conv_head|bn2|norm_head|classifier|_conv_stem|_bn0|_blocks|_conv_head|_bn1|_fc)\."
        ),
    ),
    # torchvision's, with and without a module of all but the classifier.
    _Network(
        re.compile(r"(?P<prefix>(?:.*\.)?)features\.0\.0\.weight"),
        re.compile(r"(features|classifier)\."),
        "features.0.1.running_mean",
    ),
    _Network(
        re.compile(r"(?P<prefix>(?:.*\.)?)layers\.0\.weight"),
        re.compile(r"(layers|classifier)\."),
        "layers.8.0.layers.0.weight",
    ),
)
# Keys of averaged weights, which are preferred to the last ones.
_AVERAGED = re.compile(r"(^|_)(ema|swa|averaged?|avg)(_|$)")
_PLAIN = ("state_dict", "model", "model_state_dict", "net", "network", "module")
_OPTIMIZERS = re.compile("optim|exp_avg|momentum", re.IGNORECASE)
_SHOWN = 6
# No training loop exceeds these, but a file that was made to take for ever might.
_DEEPEST, _MOST = 8, 16
_log = logging.getLogger("jeffnet")


@dataclass(frozen=True)
class _Candidate:
    """A state dict of a network: at which keys, its arrays by name without a prefix, and others beside them."""

    path: tuple[str, ...]
    prefix: str
    arrays: dict[str, Any]
    others: dict[str, Any]

    def __str__(self) -> str:
        where = repr(" / ".join(self.path)) if self.path else "the state dict"
        return where + (f" with the prefix {self.prefix!r}" if self.prefix else "")

    @property
    def is_averaged(self) -> bool:
        """Whether it has averaged weights, of which at least one average was taken."""
        words = [*self.path, *self.prefix.split(".")]
        return any(map(_AVERAGED.search, words)) and not self.is_never_averaged

    @property
    def is_never_averaged(self) -> bool:
        """Whether torch's AveragedModel counted no average: it still has its first weights."""
        counters = [array for name, array in self.others.items() if name.endswith("n_averaged")]
        return any(not (np.asarray(counter) != 0).any() for counter in counters if counter.ndim == 0)

    @property
    def rank(self) -> tuple[int, ...]:
        """The lowest is what a user of the file wants."""
        words = [*self.path, *(word for word in self.prefix.split(".") if word)]
        places = [_PLAIN.index(word) if word in _PLAIN else len(_PLAIN) for word in words if word not in _WRAPPERS]
        return (not self.is_averaged, self.is_never_averaged, *sorted(places, reverse=True))


def find_state_dict(content: Any, source: str) -> dict[str, Any]:
    """The arrays of a network's state dict, by name without what training loops and wrappers add.

    The log says what was taken and what was left out. Averaged (EMA) weights are preferred. The content is nested
    mappings of anything; arrays are what has a shape.

    Raises:
      WeightsError: there is no state dict of a network of ours, or there are several of equal rank.
    """
    candidates = [candidate for path, mapping in _mappings(content) for candidate in _candidates(mapping, path)]
    candidates.sort(key=lambda candidate: candidate.rank)
    if not candidates:
        raise _none_found(content, source)
    taken, *others = candidates
    if others and others[0].rank == taken.rank:
        raise WeightsError(
            f"weights {source!r} have several state dicts: {taken}, and {others[0]}; save the one that you want alone"
        )
    _report(content, source, taken, bool(others))
    return taken.arrays


def _mappings(content: Any) -> Iterator[tuple[tuple[str, ...], Mapping]]:
    """The mappings in what was saved and their keys, without duplicates."""
    seen, waiting = set(), [((), content)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, Mapping) and id(value) not in seen:
            seen.add(id(value))
            yield path, value
            parts = value.items() if len(path) < _DEEPEST else ()
            waiting += [((*path, str(key)), part) for key, part in parts if not _OPTIMIZERS.search(str(key))]


def _candidates(content: Mapping, path: tuple[str, ...]) -> Iterator[_Candidate]:
    arrays: dict[str, Any] = {}
    for key, array in _arrays(content).items():
        name = ".".join(word for word in key.split(".") if word not in _WRAPPERS)
        # If two would get the same name, both keep theirs.
        arrays[key if name in arrays else name] = array
    for network in _NETWORKS:
        prefixes = {match["prefix"] for match in map(network.stem.fullmatch, arrays) if match}
        for prefix in sorted(prefix for prefix in prefixes if not network.mark or prefix + network.mark in arrays)[
            :_MOST
        ]:
            names = {name for name in arrays if name.startswith(prefix) and network.modules.match(name, len(prefix))}
            others = {name: array for name, array in arrays.items() if name not in names}
            kept = {name.removeprefix(prefix): array for name, array in arrays.items() if name in names}
            yield _Candidate(path, prefix, kept, others)


def _arrays(content: Mapping) -> dict[str, Any]:
    return {str(name): value for name, value in content.items() if hasattr(value, "shape")}


def _report(content: Any, source: str, taken: _Candidate, was_choice: bool) -> None:
    """Log what was taken and what was left out: a warning if it might not be what the user expects."""
    left = list(taken.others)
    for key in taken.path:
        left += [str(other) for other in content if str(other) != key]
        content = next(value for name, value in content.items() if str(name) == key)
    text = ", ".join(map(repr, left[:_SHOWN])) + (", ..." if len(left) > _SHOWN else "")
    what = f"took {'the averaged weights, ' if taken.is_averaged else ''}{taken}"
    if taken.is_never_averaged:
        what += ", whose 'n_averaged' is 0: they are those with which averaging began"
    if not any(name.startswith(("classifier.", "_fc.")) for name in taken.arrays) and taken.others:
        what += ", which have no classifier"
    if left or taken.path or taken.prefix:
        level = logging.WARNING if was_choice or taken.others or taken.is_averaged else logging.INFO
        _log.log(level, "%s: %s%s", source, what, f"; left out {text}" if left else "")


def _none_found(content: Any, source: str) -> WeightsError:
    arrays = next(filter(None, (_arrays(mapping) for _, mapping in _mappings(content))), None)
    if arrays:
        first = ", ".join(list(arrays)[:3])
        return WeightsError(
            f"weights {source!r} are neither jeffnet's nor a timm, torchvision or efficientnet_pytorch state dict: no "
            f"'conv_stem.weight' or 'features.0.0.weight' among {len(arrays)} arrays ({first}, ...)"
        )
    saved = f"a {type(content).__name__}"
    if isinstance(content, Mapping):
        saved = f"a dictionary of {', '.join(map(str, list(content)[:8])) or 'nothing'}"
    return WeightsError(f"weights {source!r} have no state dict in them: what was saved is {saved}")
