"""The vectors of all pictures of a data set, into a file; a run that was interrupted goes on where it was.

import jeffnet

classifier = jeffnet.Classifier.from_pretrained("tf_efficientnet_lite0")
found = classifier.embed_data("pictures", "val.parquet", split="val")
print(found.vectors.shape, found.names[0], found.classes[found.labels[0]])
"""

import hashlib
import io
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jeffnet
from jeffnet.arch.plan import Plan
from jeffnet.data.batches import EvalBatch, OnBadImage, check_options
from jeffnet.data.loaders import eval_loader
from jeffnet.data.preprocess import EvalTransform
from jeffnet.data.sources import Part, Source, stamp_of
from jeffnet.errors import ConfigError, DatasetError, OutputError, check_choice
from jeffnet.inference.choices import VECTOR_DTYPES
from jeffnet.inference.outputs import PRE_LOGITS, compiled_output
from jeffnet.inference.vectors import check_vectors_path, run_of, write_vectors
from jeffnet.ops.image import normalize
from jeffnet.system.files import check_absent, locked, system_reason, write_file
from jeffnet.system.progress import progress_bar
from jeffnet.text.names import printable
from jeffnet.weights.checksum import checksum
from jeffnet.weights.start import Start

# About so many pictures are written at a time: what an interruption loses, and what is in memory.
_BLOCK = 1024
_RUN_FILE = "run.json"
_LOGGER = logging.getLogger("jeffnet")


@dataclass(frozen=True, kw_only=True)
class EmbedSettings:
    """What vectors depend on besides the model and the data set.

    Attributes:
      layer: 'pre_logits', the classifier's input; or the name of a map of features, such as 'blocks.4', see
        `feature_info` of the model: its mean over all positions.
      dtype: of the vectors in the file, 'float32' or 'float16'.
      batch_size: pictures of a batch.
      workers: processes that read pictures; None uses threads.
      on_bad_image: for pictures that cannot be decoded: 'error' stops, 'skip' leaves them out.

    Raises:
      ConfigError: a setting outside its range.
    """

    layer: str = PRE_LOGITS
    dtype: str = "float32"
    batch_size: int = 32
    workers: int | None = None
    on_bad_image: OnBadImage = "error"

    def __post_init__(self) -> None:
        check_choice("dtype", self.dtype, VECTOR_DTYPES)
        check_options(self.batch_size, self.on_bad_image, workers=self.workers or 0)

    def output(self, plan: Plan) -> str | tuple[int, ...]:
        """The output that `layer` names, as `jeffnet.inference.outputs.compiled_output` takes it.

        Args:
          plan: of the model.

        Returns:
          'pre_logits', or the number of a map.

        Raises:
          ConfigError: the model has no such layer.
        """
        layers = [PRE_LOGITS, *(feature.name for feature in plan.features)]
        check_choice("layer", self.layer, layers)
        return self.layer if self.layer == PRE_LOGITS else (layers.index(self.layer) - 1,)


def embed_source(
    start: Start,
    transform: EvalTransform,
    source: Source,
    path: str | os.PathLike,
    settings: EmbedSettings | None = None,
    progress: bool = False,
) -> list[int]:
    """Write the vectors of all pictures of a data set to a file.

    Blocks of vectors are written to the folder `PATH.blocks` while they are computed, so that any size of data set
    takes the same memory, and a run that was interrupted goes on after its last block; it gives the same file as one
    that was not. The folder is removed when the file is complete. A complete file of the same run is left as it is.

    Args:
      start: the model.
      transform: from a picture to the model's pixels.
      source: the pictures, see `jeffnet.data.open.open_source`.
      path: of the file, see `jeffnet.inference.vectors.write_vectors`.
      settings: everything else.
      progress: show on standard error how far it is.

    Returns:
      Numbers of the pictures that could not be decoded and were left out.

    Raises:
      ConfigError: the model has no such layer, or a vector has numbers that the dtype does not.
      ImageError: a picture cannot be decoded.
      DatasetError: there is no picture that can be decoded.
      OutputError: the file cannot be written, exists and is not of the same run, or `PATH.blocks` is of another one.
    """
    settings = settings or EmbedSettings()
    path = Path(path)
    check_vectors_path(path)
    output = settings.output(start.plan)
    run = _described(start, transform, source, settings)
    with locked(path.with_name(f".{path.name}.lock")):
        if (before := run_of(path)) is not None and before == run | {"skipped": before.get("skipped")}:
            _LOGGER.info("%s has these vectors already", printable(str(path)))
            return before["skipped"]
        check_absent(path)
        blocks = _Blocks(_opened(path, run), source, run)
        rows = settings.batch_size * -(-_BLOCK // settings.batch_size)
        with progress_bar("embedding", len(source), "image", shown=progress, initial=blocks.read) as bar:
            for batch in _batches(start, transform, source, settings, output, blocks.read):
                bar.update(len(batch.index) + len(batch.skipped))
                blocks.add(batch, rows)
        blocks.finish()
        write_vectors(path, blocks)
        shutil.rmtree(blocks.folder)
    return blocks.run["skipped"]


@dataclass(frozen=True)
class _Batch:
    """Vectors of some pictures, their labels and numbers, and the numbers of those that could not be decoded."""

    vectors: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    skipped: np.ndarray


def _batches(
    start: Start,
    transform: EvalTransform,
    source: Source,
    settings: EmbedSettings,
    output: str | tuple[int, ...],
    first: int,
) -> Iterator[_Batch]:
    """The vectors of a source from its picture `first` on."""
    if first >= len(source):
        return
    apply = _network(start, transform, settings, output)
    rest = Part(source, first, len(source))
    options = {"workers": settings.workers or 0, "on_bad_image": settings.on_bad_image}
    for batch in eval_loader(rest, transform, settings.batch_size, **options):
        kept = batch["mask"]
        vectors = _stored(apply(batch)[kept], settings.dtype)
        skipped = batch["index"][~kept & (batch["index"] >= 0)]
        yield _Batch(vectors, batch["label"][kept], batch["index"][kept] + first, skipped + first)


def _network(
    start: Start, transform: EvalTransform, settings: EmbedSettings, output: str | tuple[int, ...]
) -> Callable[[EvalBatch], np.ndarray]:
    compiled = compiled_output(start, output, settings.batch_size, transform.shape)
    preprocessing = transform.preprocessing

    def apply(batch: EvalBatch) -> np.ndarray:
        """float32 `(N, F)`: the mean over all positions, where the output has any."""
        given = compiled(normalize(batch["image"], preprocessing.mean, preprocessing.std))
        array = np.asarray(given[0] if isinstance(given, tuple) else given, np.float32)
        return array.mean(axis=(1, 2)) if array.ndim == 4 else array

    return apply


def _stored(vectors: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        stored = vectors.astype(dtype)
    if not np.isfinite(stored).all():
        reason = "are not finite numbers" if not np.isfinite(vectors).all() else f"exceed {dtype}: store float32"
        raise ConfigError(f"vectors of the model {reason}")
    return stored


def _described(start: Start, transform: EvalTransform, source: Source, settings: EmbedSettings) -> dict[str, Any]:
    """What decides about every number of the file, as JSON holds it."""
    # Names alone would take changed pictures and labels for those of before.
    pictures = hashlib.sha256(repr(source.classes).encode(errors="surrogatepass"))
    for index in range(len(source)):
        pictures.update(f"{source.name(index)}\0{stamp_of(source, index)}\0".encode(errors="surrogatepass"))
    arrays = sum(checksum(np.asarray(array)) for array in start.arrays.values()) % 2**64
    run = {
        "layer": settings.layer,
        "dtype": settings.dtype,
        "batch_size": settings.batch_size,
        "on_bad_image": settings.on_bad_image,
        "data": repr(source),
        "pictures": len(source),
        "pictures_sha256": pictures.hexdigest(),
        "weights_checksum": f"{arrays:016x}",
        "weights_dtype": np.dtype(start.dtype).name,
        **vars(transform.preprocessing),
        "image_size": transform.shape,
        "crop_mode": transform.crop_mode,
        "exif": transform.exif,
        "device": jax.devices()[0].device_kind,
        "versions": {"jeffnet": jeffnet.__version__, "jax": jax.__version__},
    }
    return json.loads(json.dumps(run))


def _opened(path: Path, run: Mapping[str, Any]) -> Path:
    """The folder of a run's blocks: a new one, or that of the same run, interrupted."""
    folder = path.with_name(f"{path.name}.blocks")
    about = folder / _RUN_FILE
    try:
        folder.mkdir(exist_ok=True)
        before = json.loads(about.read_text(encoding="utf-8")) if about.exists() else None
    except (OSError, ValueError) as error:
        reason = system_reason(error) or "it has no vectors of an interrupted run"
        raise OutputError(f"cannot write into {str(folder)!r}: {reason}") from error
    if before is None:
        if any(folder.iterdir()):
            raise OutputError(f"cannot write into {str(folder)!r}: it has other files, remove it")
        write_file(about, json.dumps(run, indent=1) + "\n")
    elif different := [name for name in run if before.get(name) != run[name]]:
        raise OutputError(
            f"{str(folder)!r} has vectors of an interrupted run with another {different[0]}: remove it to start anew, "
            "or give the same options"
        )
    return folder


class _Blocks:
    """A `jeffnet.inference.vectors.VectorTable` in a folder of blocks; vectors of one of them are in memory.

    Attributes:
      folder: of the blocks.
      read: how many pictures of the source they are of, those that could not be decoded included.
    """

    def __init__(self, folder: Path, source: Source, run: Mapping[str, Any]) -> None:
        self.folder, self.classes, self.run, self.read = folder, source.classes, dict(run), 0
        self.dtype = np.dtype(run["dtype"])
        self._source, self._files, self._waiting = source, 0, list[_Batch]()
        while self._path(self._files).exists():
            self.read += sum(len(self._array(self._files, name)) for name in ("index", "skipped"))
            self._files += 1

    def add(self, batch: _Batch, rows: int) -> None:
        """Add a batch; batches are written when they have so many pictures together."""
        self._waiting.append(batch)
        self.read += len(batch.index) + len(batch.skipped)
        if sum(len(each.index) + len(each.skipped) for each in self._waiting) >= rows:
            self._write()

    def finish(self) -> None:
        """Write the last block, and read what is beside the vectors."""
        if self._waiting:
            self._write()
        self.labels, self.index = (self._joined(name) for name in ("labels", "index"))
        if not len(self.index):
            raise DatasetError(f"{self._source!r} has no picture that can be decoded")
        self.names = tuple(map(self._source.name, self.index.tolist()))
        self.width = self._array(0, "vectors").shape[1]
        self.run["skipped"] = self._joined("skipped").tolist()

    def blocks(self) -> Iterator[np.ndarray]:
        """The vectors of one block after the other."""
        return (self._array(number, "vectors") for number in range(self._files))

    def _joined(self, name: str) -> np.ndarray:
        return np.concatenate([self._array(number, name) for number in range(self._files)])

    def _write(self) -> None:
        content = io.BytesIO()
        columns: dict[str, Sequence[np.ndarray]] = {
            name: [getattr(each, name) for each in self._waiting] for name in _Batch.__dataclass_fields__
        }
        arrays: dict[str, Any] = {name: np.concatenate(parts) for name, parts in columns.items()}
        np.savez(content, **arrays)
        write_file(self._path(self._files), content.getvalue())
        self._files, self._waiting = self._files + 1, []

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06}.npz"

    def _array(self, number: int, name: str) -> np.ndarray:
        with np.load(self._path(number)) as block:
            return block[name]
