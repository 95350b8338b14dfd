"""The card of a model: what its file says of it besides the arrays."""

import dataclasses
import json
from dataclasses import dataclass

from jeffnet.arch.execution import Execution
from jeffnet.arch.plan import Plan
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.zoo import model_plan, resolve_name
from jeffnet.errors import WeightsError, first_line

METADATA_KEY = "jeffnet"
_FORMAT = 1


@dataclass(frozen=True)
class ModelCard:
    """What a file says of the model whose arrays it holds.

    Attributes:
      model: its name in the zoo.
      num_classes: width of its logits.
      in_chans: channels of its pictures.
      preprocessing: what it expects of them.
      classes: names of the classes in the order of the logits; empty where unknown.
      global_pool: how the last map is pooled.
      output_stride: at which the arrays were trained: with another they compute something else.
      test_window: of test-time pooling, see `jeffnet.arch.execution.Execution`; 0 for none.
    """

    model: str
    num_classes: int
    in_chans: int
    preprocessing: Preprocessing
    classes: tuple[str, ...] = ()
    global_pool: str = "avg"
    output_stride: int = 32
    test_window: int = 0

    def plan(self) -> Plan:
        """The Plan of the file's arrays."""
        return model_plan(
            self.model,
            num_classes=self.num_classes,
            in_chans=self.in_chans,
            global_pool=self.global_pool,
            output_stride=self.output_stride,
        )

    @property
    def execution(self) -> Execution:
        """How a pass of the model runs."""
        return Execution(test_window=self.test_window)


def card_json(card: ModelCard) -> str:
    """The card as JSON."""
    return json.dumps({"format": _FORMAT, **dataclasses.asdict(card)})


def parse_card(text: str, source: str) -> ModelCard:
    """The card in a file's metadata.

    Raises:
      WeightsError: it is malformed or of a newer format.
    """
    try:
        entry = json.loads(text)
        if entry.pop("format") != _FORMAT:
            raise WeightsError(f"weights {source!r} are of another format than this jeffnet reads: update jeffnet")
        stated = entry["preprocessing"]
        entry["preprocessing"] = Preprocessing(**{**stated, "mean": tuple(stated["mean"]), "std": tuple(stated["std"])})
        card = ModelCard(**{**entry, "classes": tuple(entry["classes"])})
        if not all(isinstance(name, str) for name in card.classes) or len(card.classes) not in (0, card.num_classes):
            raise ValueError(f"its classes are not the names of {card.num_classes}")
        card = dataclasses.replace(card, model=resolve_name(card.model))  # older files have older names
        card.plan()
    except WeightsError:
        raise
    except Exception as error:  # whatever stands there instead of a description
        text = f"lacks {error}" if isinstance(error, KeyError) else first_line(error)
        raise WeightsError(f"weights {source!r} have a malformed description of their model: {text}") from error
    return card
