"""Exported StableHLO, loaded where no model is: this needs JAX and flatbuffers, and none of jeffnet's models."""

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import jax
from jax import Array

from jeffnet.errors import WeightsError, first_line
from jeffnet.export.batches import check_pictures
from jeffnet.export.description import BESIDE, read_description
from jeffnet.system.extras import install
from jeffnet.system.reading import read_file, read_text, user_path


class Program:
    """An exported network.

    Attributes:
      exported: the program, a `jax.export.Exported`.
      metadata: the entries of its description, see `jeffnet.export.metadata.metadata_json`: `["card"]["classes"]` has
        the names of the classes, `["card"]["preprocessing"]` what it expects of pictures. None where no file with them
        is beside it.
    """

    def __init__(self, source: str, exported: Any, metadata: Mapping[str, Any] | None) -> None:
        self.exported, self.metadata = exported, metadata
        self._source, self._call = source, jax.jit(exported.call)

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Of the pictures that it takes; None for any number."""
        (images,) = self.exported.in_avals
        return tuple(size if isinstance(size, int) else None for size in images.shape)

    @property
    def dtype(self) -> Any:
        """Of the pictures that it takes."""
        return self.exported.in_avals[0].dtype

    def __call__(self, images: Any) -> Array:
        """Logits, probabilities or pooled features, `(N, ...)`, float32.

        Args:
          images: as the program takes them, see `shape` and `dtype`.

        Raises:
          InputError: they have another shape, or are floats instead of pixels or the other way round.
        """
        images = jax.numpy.asarray(images)
        check_pictures(self._source, images, self.shape, self.dtype)
        return self._call(images.astype(self.dtype))


def load(path: str | os.PathLike[str]) -> Program:
    """Load exported StableHLO.

    Args:
      path: of a file of `jeffnet export --to stablehlo`, or of another program of one input that `jax.export`
        serialised.

    Returns:
      The program, a function of pictures.

    Raises:
      WeightsError: it cannot be read, is something else, or is not the one that the `.json` beside it describes.
    """
    path = user_path(path)
    source = str(path)
    try:
        content = read_file(path, None)
        has_description = os.path.lexists(source + BESIDE)
        text = read_text(source + BESIDE) if has_description else None
    except OSError as error:
        raise WeightsError(f"cannot read {error.filename or source!r}: {error.strerror or error}") from error
    metadata = None if text is None else read_description(text, source + BESIDE)
    if metadata and metadata.get("sha256") != hashlib.sha256(content).hexdigest():
        raise WeightsError(f"{source!r} is not the program that {source + BESIDE!r} describes: export it again")
    return Program(source, _deserialized(content, source), metadata)


def _deserialized(content: bytes, source: str) -> Any:
    try:
        from jax import export

        exported = export.deserialize(bytearray(content))
        if len(exported.in_avals) != 1 or len(exported.out_avals) != 1:
            raise ValueError(f"it has {len(exported.in_avals)} inputs and {len(exported.out_avals)} outputs")
        return exported
    except ImportError as error:
        raise WeightsError(f"{source!r} needs flatbuffers: {install('export')}") from error
    except Exception as error:  # whatever the bytes lead to
        reason = first_line(error)
        raise WeightsError(f"{source!r} is no StableHLO that this JAX ({jax.__version__}) reads: {reason}") from error
