"""The card of a model: what its file says of it besides the arrays."""

import dataclasses
import json
import logging
from dataclasses import dataclass, field
from typing import Any

from jeffnet.arch.execution import Execution
from jeffnet.arch.plan import Plan
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.quantization import Quantization, parse_quantization, quantization_entries
from jeffnet.arch.spec import ModelSpec, as_spec, spec_attributes, spec_name
from jeffnet.arch.summary import count_parameters
from jeffnet.arch.tasks import TASKS
from jeffnet.arch.zoo import check_own_name, is_of_zoo, model_plan, resolve_name
from jeffnet.errors import WeightsError, first_line

METADATA_KEY = "jeffnet"
_FORMAT = 1
# Nine times those of the largest network; a file could ask for any number.
_MOST_PARAMETERS = 2**32
_log = logging.getLogger("jeffnet")


@dataclass(frozen=True)
class ModelCard:
    """What a file says of the model whose arrays it holds.

    Attributes:
      model: its name.
      num_classes: width of its logits.
      in_chans: channels of its pictures.
      preprocessing: what it expects of them.
      classes: names of the classes in the order of the logits; empty where unknown.
      global_pool: how the last map is pooled.
      output_stride: at which the arrays were trained: with another they compute something else.
      test_window: of test-time pooling, see `jeffnet.arch.execution.Execution`; 0 for none.
      spec: the architecture of a model that is not of the zoo, so that its file can be read where its name is not
        known; None for those of the zoo.
      task: what it predicts of a picture: 'single_label', one of the classes; 'multi_label', any number of them;
        'regression', numbers, whose names are `classes`.
      thresholds: of several labels, the probability of each class above which it counts as predicted; empty where
        unknown.
      quantization: the grids of the 8-bit integers with which it was trained; None for a model trained in floats.
    """

    model: str
    num_classes: int
    in_chans: int
    preprocessing: Preprocessing
    # What is long is left out where a card is printed.
    classes: tuple[str, ...] = field(default=(), repr=False)
    global_pool: str = "avg"
    output_stride: int = 32
    test_window: int = 0
    spec: ModelSpec | None = field(default=None, repr=False)
    quantization: Quantization | None = field(default=None, repr=False)
    task: str = "single_label"
    thresholds: tuple[float, ...] = field(default=(), repr=False)

    def plan(self, **options: Any) -> Plan:
        """The Plan of the file's arrays.

        Args:
          **options: of training, such as `drop_rate`, see `jeffnet.arch.lower.lower`.

        Returns:
          The Plan.
        """
        return model_plan(
            self.architecture,
            num_classes=self.num_classes,
            in_chans=self.in_chans,
            global_pool=self.global_pool,
            output_stride=self.output_stride,
            **options,
        )

    @property
    def architecture(self) -> str | ModelSpec:
        """What the functions of `jeffnet.arch.zoo` take: the name in the zoo, or the architecture."""
        return self.spec or self.model

    @property
    def execution(self) -> Execution:
        """How a pass of the model runs."""
        return Execution(test_window=self.test_window)


def card_json(card: ModelCard) -> str:
    """The card as JSON; what few cards have is there only where they do, so that earlier versions read the others."""
    entries = dataclasses.asdict(dataclasses.replace(card, spec=None, quantization=None))
    del entries["spec"], entries["quantization"]
    if card.task == "single_label":
        del entries["task"]
    if not card.thresholds:
        del entries["thresholds"]
    if card.spec:
        entries["spec"] = spec_attributes(card.spec)
    if card.quantization:
        entries["quantization"] = quantization_entries(card.quantization)
    return json.dumps({"format": _FORMAT, **entries})


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
        if "spec" in entry:
            entry |= _own(entry["model"], entry["spec"], source)
        if not isinstance(entry["classes"], list):
            raise ValueError(f"its classes are a {type(entry['classes']).__name__}, not a list of names")
        if "quantization" in entry:
            entry["quantization"] = parse_quantization(entry["quantization"])
        entry["thresholds"] = tuple(entry.get("thresholds", ()))
        card = ModelCard(**{**entry, "classes": tuple(entry["classes"])})
        _check_task(card)
        if not all(isinstance(name, str) for name in card.classes) or len(card.classes) not in (0, card.num_classes):
            raise ValueError(f"its classes are not the names of {card.num_classes}")
        if type(card.test_window) is not int or card.test_window < 0:
            raise ValueError(f"its test_window {card.test_window!r} is no number of positions")
        if card.spec is None:
            card = dataclasses.replace(card, model=resolve_name(card.model))  # older files have older names
        if count_parameters(card.plan()) > _MOST_PARAMETERS:
            raise ValueError(f"its architecture has more than {_MOST_PARAMETERS:,} parameters")
    except WeightsError:
        raise
    except Exception as error:  # whatever stands there instead of a description
        text = f"lacks {error}" if isinstance(error, KeyError) else first_line(error)
        raise WeightsError(f"weights {source!r} have a malformed description of their model: {text}") from error
    return card


def _check_task(card: ModelCard) -> None:
    """Raises ValueError where a card's task or thresholds are none."""
    if card.task not in TASKS:
        raise ValueError(f"its task {card.task!r} is not one of {', '.join(TASKS)}")
    numbers = [value for value in card.thresholds if type(value) in (int, float) and 0 <= value <= 1]
    if card.thresholds and len(numbers) != card.num_classes:
        raise ValueError(f"its thresholds are not {card.num_classes} numbers from 0 to 1")


def _own(name: object, attributes: object, source: str) -> dict[str, Any]:
    """Name and architecture of a model that is not of the zoo; a later zoo than its writer's may have the name."""
    if not isinstance(attributes, dict):
        raise ValueError(f"its spec is a {type(attributes).__name__}")
    spec = as_spec(attributes)
    if isinstance(name, str) and is_of_zoo(name):
        own = spec_name(spec)
        text = "weights %r: their model is called %s here, since %s, as they call it, is another model of the zoo"
        _log.warning(text, source, own, name)
        return {"model": own, "spec": spec}
    check_own_name(name)
    return {"model": name, "spec": spec}
