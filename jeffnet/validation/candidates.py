"""Which models a user means."""

from dataclasses import dataclass

from jeffnet.arch.zoo import list_models, resolve_name
from jeffnet.errors import UnknownModelError, UsageError

NO_MODEL = "give --model NAME for a model's published weights, or --weights SOURCE for others"


@dataclass(frozen=True)
class Candidate:
    """A model to validate.

    Attributes:
      name: in the zoo, ours; None where the weights say it.
      weights: where they are; None for the published ones.
    """

    name: str | None
    weights: str | None = None


def select_models(pattern: str | None, weights: str | None = None) -> list[Candidate]:
    """The models that a pattern names.

    Args:
      pattern: names, ours or timm's, and wildcards of ours, separated by commas; 'all' is every model with published
        weights. None leaves it to the weights.
      weights: where they are; `{model}` in it stands for each model's name. None takes the published ones.

    Raises:
      UnknownModelError: nothing has such a name.
      UsageError: neither is given, or one file is to be the weights of several models.
    """
    if pattern is None:
        if weights is None:
            raise UsageError(NO_MODEL)
        return [Candidate(None, weights)]
    names: dict[str, None] = {}
    for word in filter(None, (part.strip() for part in pattern.split(","))):
        if word == "all":
            found = list_models(pretrained=weights is None)
        elif any(sign in word for sign in "*?["):
            found = list_models(word, pretrained=weights is None)
        else:
            found = [resolve_name(word)]
        if not found:
            published = "with published weights " if weights is None else ""
            raise UnknownModelError(f"no model {published}matches {word!r}; `jeffnet list` shows all")
        names |= dict.fromkeys(found)
    if weights is None or "{model}" in weights:
        return [Candidate(name, weights and weights.replace("{model}", name)) for name in names]
    if len(names) > 1:
        raise UsageError(
            f"weights {weights!r} for {len(names)} models: put {{model}} where each model's name stands, or give one "
            "model"
        )
    return [Candidate(name, weights) for name in names]
