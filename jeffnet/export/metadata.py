"""What an exported file says of itself."""

import json
from dataclasses import dataclass

import jeffnet
from jeffnet.arch.imagenet import class_titles
from jeffnet.errors import WeightsError, first_line
from jeffnet.export.description import BESIDE as BESIDE
from jeffnet.export.description import FORMAT, read_description
from jeffnet.export.description import METADATA_KEY as METADATA_KEY
from jeffnet.export.options import ExportOptions
from jeffnet.weights.card import ModelCard, card_json, parse_card


@dataclass(frozen=True)
class ExportMetadata:
    """What an exported file says of itself.

    Attributes:
      target: one of `jeffnet.export.targets.TARGETS`.
      card: of the model that was exported.
      options: what the file takes and gives; its `image_size` is stated.
      quantization: how it was quantised, in words; None for floats.
      kernel_bits: of its kernels of integers; None for floats.
      jeffnet: version that wrote it.
    """

    target: str
    card: ModelCard
    options: ExportOptions
    quantization: str | None = None
    kernel_bits: int | None = None
    jeffnet: str = jeffnet.__version__


def labels(metadata: ExportMetadata) -> list[str]:
    """Names of the classes for people, in the order of the logits, as other programs read them; each is one line."""
    titles = (" ".join(title.split()) for title in class_titles(metadata.card.classes))
    # An empty line at the end would be no line for those who read them.
    return [title or f"class {index}" for index, title in enumerate(titles)]


def metadata_json(metadata: ExportMetadata) -> str:
    """As JSON."""
    options = {
        name: getattr(metadata.options, name)
        for name in ("batch_size", "image_size", "layout", "dtype", "include", "embed_labels", "opset")
    }
    return json.dumps(
        {
            "export_format": FORMAT,
            "jeffnet": metadata.jeffnet,
            "target": metadata.target,
            "options": options,
            "quantization": metadata.quantization,
            "kernel_bits": metadata.kernel_bits,
            "card": json.loads(card_json(metadata.card)),
            **({"labels": labels(metadata)} if metadata.options.embed_labels else {}),
        }
    )


def parse_metadata(text: str, source: str) -> ExportMetadata:
    """From JSON.

    Raises:
      WeightsError: it is malformed or of a newer format.
    """
    entry = read_description(text, source)
    try:
        stated = entry["options"]
        size, include = tuple(stated.pop("image_size")), tuple(stated.pop("include"))
        options = ExportOptions(**stated, image_size=size, include=include)  # pyright: ignore[reportArgumentType]
        card = parse_card(json.dumps(entry["card"]), source)
        quantization = entry["quantization"]
        bits = entry.get("kernel_bits", quantization and 8)  # files that do not say it have 8
        return ExportMetadata(str(entry["target"]), card, options, quantization, bits, str(entry["jeffnet"]))
    except WeightsError:
        raise
    except Exception as error:  # whatever stands there instead of a description
        text = f"lacks {error}" if isinstance(error, KeyError) else first_line(error)
        raise WeightsError(f"{source!r} has a malformed description of its model: {text}") from error
