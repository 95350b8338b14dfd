"""Selects the models to validate or measure."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jeffnet.arch.zoo import list_models, resolve_name
from jeffnet.errors import UnknownModelError, UsageError

if TYPE_CHECKING:  # the command line selects models before it waits for JAX
    from jeffnet.weights.card import ModelCard
    from jeffnet.weights.formats.interface import WeightsFile
    from jeffnet.weights.start import Start

NO_MODEL = "give --model NAME for a model's published weights, or --weights SOURCE for others"


@dataclass(frozen=True)
class Candidate:
    """A model to validate.

    Attributes:
      name: in the zoo; None if the weights name their model.
      weights: their source; None for the published weights.
      found: the weights, where they have been found already.
      opened: arrays and card of a model in memory, instead of both.
      file: an exported file, see `jeffnet.export.run.open_exported`, instead of weights; it needs a name only where it
        does not state its model.
    """

    name: str | None
    weights: str | None = None
    file: str | None = None
    found: "WeightsFile | None" = None
    opened: "tuple[Start, ModelCard] | None" = None

    @property
    def source(self) -> str | None:
        """Its weights, or its exported file."""
        return self.file or self.weights


def select_models(pattern: str | None, weights: str | None = None, file: str | None = None) -> list[Candidate]:
    """The models that match a pattern.

    Args:
      pattern: names and wildcards, separated by commas; 'all' is every architecture with its default weights, `*.*`
        every set of weights. None if the weights name their model.
      weights: their source, in which `{model}` stands for the name of the model. None uses the published weights.
      file: an exported file instead of weights.

    Returns:
      One candidate for each model.

    Raises:
      UnknownModelError: no model matches.
      UsageError: nothing is given, or several models would share one file.
    """
    if file is not None:
        return [replace(candidate, weights=None, file=file) for candidate in select_models(pattern, file)]
    if pattern is None:
        if weights is None:
            raise UsageError(NO_MODEL)
        return [Candidate(None, weights)]
    names: dict[str, None] = {}
    for word in filter(None, map(str.strip, pattern.split(","))):
        if word == "all" or any(sign in word for sign in "*?["):
            matching = list_models("*" if word == "all" else word, pretrained=weights is None)
            matching = [resolve_name(name) for name in matching]
        else:
            matching = [resolve_name(word)]
        if not matching:
            published = "with published weights " if weights is None else ""
            raise UnknownModelError(f"no model {published}matches {word!r}; `jeffnet list` shows all")
        names |= dict.fromkeys(matching)
    if weights is None or "{model}" in weights:
        return [Candidate(name, weights and weights.replace("{model}", name)) for name in names]
    if len(names) > 1:
        raise UsageError(
            f"weights {weights!r} for {len(names)} models: put {{model}} where the model's name stands, or give one"
        )
    return [Candidate(name, weights) for name in names]
