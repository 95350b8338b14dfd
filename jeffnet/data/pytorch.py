"""Pictures through PyTorch's DataLoader, for evaluation; needs the extra `torch`.

Worker processes decode and transform, and hand whole chunks of a batch over in shared memory. The pixels are those of
timm's pipeline before normalisation, and of `jeffnet.data.loaders`. What worker processes import stays clear of JAX.
"""

import math
import multiprocessing
import operator
import os
import pickle
import struct
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from multiprocessing.context import BaseContext
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image

from jeffnet.data.batches import WHOLE, EvalBatch, OnBadImage, Shard, check_options, load_rows
from jeffnet.data.images import check_image_file, image_mode, read_image
from jeffnet.data.preprocess import EvalTransform
from jeffnet.data.resize import native as native_resize
from jeffnet.data.workers import end_with_caller
from jeffnet.errors import DatasetError, ImageError, JeffnetError, first_line
from jeffnet.system.extras import install
from jeffnet.system.processor import processors

if TYPE_CHECKING:
    import torch

# At most so many pictures are one task of a worker: large enough that handing them over costs nothing to speak of,
# small enough that all workers share the first and the last batch, and that shared memory, often scarce, suffices.
_CHUNK = 64
# Bytes of pixels from which on a chunk is handed on where it lies. Who keeps so many of such batches that their file
# descriptors run out has run out of memory before.
_LARGE = 2**22
# What data sets answer a damaged file with, passing on Pillow's exceptions; others are defects of the data set.
_DAMAGE = (OSError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)


def eval_loader(
    dataset: Any,
    transform: EvalTransform,
    batch_size: int,
    *,
    classes: Sequence[str] | None = None,
    channels: int | None = None,
    workers: int | None = None,
    shard: Shard = WHOLE,
    on_bad_image: OnBadImage = "error",
) -> "PyTorchEvalLoader":
    """Batches for evaluation, as of `jeffnet.data.loaders.eval_loader`.

    Worker processes start afresh, without the caller's memory: they receive the data set by pickle, and import the
    caller's main module, which must be guarded by `if __name__ == "__main__"`.

    Args:
      dataset: a source, or any map-style data set of PyTorch that gives (picture, label, ...): the picture of PIL, a
        uint8 array `(h, w)` or `(h, w, 1, 3 or 4)`, or a uint8 tensor `(C, H, W)` of the very size of the result, which
        is taken as it is; an int the label. Of timm's `ImageDataset` without a transform the files are read here, since
        it would give a neighbour in place of a picture that cannot be decoded.
      transform: turns a picture into pixels.
      batch_size: rows in a batch, of this host.
      classes: name of every label; None takes those of the data set.
      channels: 3 for RGB, 1 for grey; None takes the source's, or 3. Pictures of other modes are converted.
      workers: processes that prepare pictures; 0 prepares them in the caller's, None takes one for each processor.
      shard: which host this is of how many.
      on_bad_image: 'error' or 'skip'.

    Returns:
      Iterable over `EvalBatch`, of uint8 pixels. It raises ImageError, naming the picture, and DatasetError where the
      data set gives something else than described, cannot be pickled, or a worker process dies.

    Raises:
      ConfigError: a setting outside its range.
      DatasetError: PyTorch is not installed, the data set is not map-style, or nobody says what its classes are.
      ImageError: `channels` is neither 1 nor 3.
    """
    workers = len(processors()) if workers is None else workers
    check_options(batch_size, on_bad_image, workers=workers)
    try:
        from torch.utils.data import IterableDataset
    except ImportError:
        raise DatasetError(f"the loader 'pt' needs PyTorch: {install('torch')}") from None
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise DatasetError(
            f"data set {type(dataset).__name__} is not map-style: give one with a length and numbered examples"
        )
    names = _class_names(dataset) if classes is None else tuple(classes)
    if channels is None:
        channels = int(dataset.channels) if _is_source(dataset) else 3
    image_mode(channels)
    examples = _Examples(dataset, channels, transform, len(names))
    return PyTorchEvalLoader(_Chunks(examples, batch_size, shard, on_bad_image), names, workers)


class PyTorchEvalLoader:
    """A `jeffnet.data.batches.EvalLoader`; made by `eval_loader`."""

    def __init__(self, chunks: "_Chunks", classes: tuple[str, ...], workers: int) -> None:
        self.classes, self.num_examples, self.name = classes, len(chunks.examples), chunks.examples.name
        self._chunks = chunks
        self._workers = workers

    def __len__(self) -> int:
        return len(self._chunks) // self._chunks.per_batch

    def __iter__(self) -> Iterator[EvalBatch]:
        chunks = self._read()
        try:
            while parts := _received(chunks, self._chunks.per_batch):
                yield _assembled(parts)
        finally:
            # The workers end with it, even where the traceback of an error keeps this frame.
            del chunks

    def _read(self) -> Iterator[Any]:
        """The chunks, in order."""
        from torch.utils.data import DataLoader

        workers = min(self._workers, len(self._chunks))
        if workers:
            native_resize()  # compiled here, if at all, and not by every worker
        # Any object with a length and numbered examples is a data set to DataLoader.
        dataset: Any = self._chunks
        loader = DataLoader(
            dataset,
            batch_size=None,
            sampler=range(len(self._chunks)),
            collate_fn=_unchanged,
            num_workers=workers,
            # While a step runs, the next batch is prepared, and there is something to begin with after it.
            prefetch_factor=math.ceil((self._chunks.per_batch + workers) / workers) if workers else None,
            multiprocessing_context=_processes() if workers else None,
            worker_init_fn=end_with_caller,
        )
        try:
            with warnings.catch_warnings():
                # Torch says the same as the error below, at greater length.
                warnings.filterwarnings("ignore", "Got pickle error")
                return iter(loader)
        # What pickle says of a function inside a function, of an open file and of other things.
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise DatasetError(
                f"{self._chunks.examples.kind} cannot be sent to worker processes ({error}): define what it is made of "
                "at the top level of a module, or read with 0 workers"
            ) from error


@dataclass(frozen=True)
class _Chunks:
    """A data set of PyTorch whose examples are chunks of batches, `per_batch` for each."""

    examples: "_Examples"
    batch_size: int
    shard: Shard
    on_bad_image: OnBadImage

    @property
    def per_batch(self) -> int:
        return -(-self.batch_size // _CHUNK)

    def __len__(self) -> int:
        return -(-self.shard.rows(len(self.examples)) // self.batch_size) * self.per_batch

    def __getitem__(self, number: int) -> dict[str, Any] | JeffnetError:
        """A chunk, its pixels a tensor, since tensors go through shared memory; or the error in it."""
        import torch

        batch, part = divmod(number, self.per_batch)
        size = -(-self.batch_size // self.per_batch)
        rows = range(self.batch_size)[part * size : (part + 1) * size]
        numbers = [self.shard.example(batch * self.batch_size + row, len(self.examples)) for row in rows]
        # In a worker the pixels are written into the memory that the caller reads, which comes as zeros.
        zeros = _shared_zeros if torch.utils.data.get_worker_info() else torch.zeros
        pixels = zeros((len(numbers), *self.examples.shape), dtype=torch.uint8)
        try:
            chunk = load_rows(
                self.examples.__getitem__, numbers, self.examples.shape, self.on_bad_image, pixels.numpy()
            )
        except JeffnetError as error:
            return error  # raised here, it would arrive with the worker's traceback in its message
        return {**chunk, "image": pixels}


class _Examples:
    """Pixels and labels of any data set that `eval_loader` takes.

    Attributes:
      shape: of the pixels: height, width and channels.
      kind: what errors call the data set.
    """

    def __init__(self, dataset: Any, channels: int, transform: EvalTransform, classes: int) -> None:
        self.shape = (*transform.shape, channels)
        self.kind = f"data set {type(dataset).__name__}"
        self._dataset, self._transform, self._classes = dataset, transform, classes

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        picture, label = self._read_file(index) if _is_timms(self._dataset) else self._ask(index)
        try:
            label = operator.index(label)
        except TypeError:
            raise DatasetError(f"{self.kind} gives {label!r} as a label: it must give a whole number") from None
        if not 0 <= label < self._classes:
            raise DatasetError(
                f"{self.kind} gives {self.name(index)!r} the label {label}, but has {self._classes} classes: pass "
                "classes with a name for each label"
            )
        return self._pixels(picture, index), label

    def name(self, index: int) -> str:
        """The source's name of an example, the path of its file, or 'example N'."""
        dataset = self._dataset
        if _is_source(dataset):
            return dataset.name(index)
        if callable(getattr(dataset, "filename", None)):  # timm's; that of CIFAR10 is a string
            return str(dataset.filename(index))
        return self._listed_file(index) or f"example {index}"

    def _listed_file(self, index: int) -> str | None:
        """Of a data set that has a list of files, as those of torchvision, the one of the example."""
        files = getattr(self._dataset, "samples", None) or getattr(self._dataset, "imgs", None)
        if isinstance(files, list) and isinstance(files[index], tuple) and isinstance(files[index][0], str):
            return files[index][0]
        return None

    def _read_file(self, index: int) -> tuple[Image.Image, Any]:
        dataset = self._dataset
        self._check_file(str(dataset.filename(index, absolute=True)))
        try:
            file, label, *_ = dataset.reader[index]
            with file:
                content = file.read()
        except OSError as error:
            raise ImageError(f"image {self.name(index)!r} cannot be read ({error}): check its file") from error
        if label is not None and dataset.target_transform is not None:
            label = dataset.target_transform(label)
        return read_image(content, self.shape[2], self.name(index)), label

    def _check_file(self, path: str) -> None:
        """Raises the ImageError of a pipe, device or huge file, which the data set would read without end."""
        # What is called so may lie in an archive.
        if os.path.exists(path):
            check_image_file(path)

    def _ask(self, index: int) -> tuple[Any, Any]:
        if path := self._listed_file(index):
            self._check_file(path)
        try:
            example = self._dataset[index]
        except _DAMAGE as error:
            raise self._damaged(index, error) from error
        if not isinstance(example, tuple | list) or len(example) < 2:
            raise DatasetError(f"{self.kind} gives {type(example).__name__}: it must give (picture, label)")
        return example[0], example[1]

    def _pixels(self, picture: Any, index: int) -> np.ndarray:
        import torch

        if isinstance(picture, torch.Tensor):
            return self._tensor_pixels(picture)
        if isinstance(picture, np.ndarray):
            picture = self._from_array(picture)
        if not isinstance(picture, Image.Image):
            raise DatasetError(
                f"{self.kind} gives {type(picture).__name__} as a picture: it must give one of PIL, or a uint8 array"
            )
        try:
            picture = _converted(picture, image_mode(self.shape[2]))
        # A file may be decoded here only. Pillow's decoders answer damaged data with almost any exception.
        except Exception as error:
            raise self._damaged(index, error) from error
        return self._transform(picture)

    def _tensor_pixels(self, tensor: "torch.Tensor") -> np.ndarray:
        height, width, channels = self.shape
        if str(tensor.dtype) != "torch.uint8" or tensor.shape != (channels, height, width):
            raise DatasetError(
                f"{self.kind} gives tensors of {tensor.dtype} {tuple(tensor.shape)}: remove its transform, so that it "
                f"gives pictures, or make it give torch.uint8 {(channels, height, width)}"
            )
        return tensor.permute(1, 2, 0).numpy()

    def _from_array(self, pixels: np.ndarray) -> Image.Image:
        if pixels.ndim == 3 and pixels.shape[2] == 1:
            pixels = pixels[:, :, 0]
        if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))):
            raise DatasetError(
                f"{self.kind} gives arrays of {pixels.dtype} {pixels.shape}: remove its transform, or make it give "
                "uint8 (height, width, channels)"
            )
        return Image.fromarray(pixels)

    def _damaged(self, index: int, error: Exception) -> ImageError:
        return ImageError(f"image {self.name(index)!r} cannot be decoded ({first_line(error)}): replace or remove it")


def _class_names(dataset: Any) -> tuple[str, ...]:
    """What the data set says of its classes."""
    names = getattr(dataset, "classes", None)
    if names is None:
        # timm's data sets know the numbers of the folders only.
        numbers = getattr(getattr(dataset, "reader", dataset), "class_to_idx", None) or {}
        names = sorted(numbers, key=numbers.__getitem__)
        if not names or [numbers[name] for name in names] != list(range(len(names))):
            raise DatasetError(
                f"data set {type(dataset).__name__} does not say what its classes are: pass classes with their names"
            )
    # torchvision's ImageNet has all synonyms of each.
    return tuple(name if isinstance(name, str) else ", ".join(name) for name in names)


def _is_source(dataset: Any) -> bool:
    return all(hasattr(dataset, attribute) for attribute in ("classes", "channels", "name"))


def _is_timms(dataset: Any) -> bool:
    """Whether it is an `ImageDataset` of timm that gives pictures as they are."""
    return all(hasattr(dataset, name) for name in ("reader", "load_bytes", "transform")) and dataset.transform is None


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """The decoded picture in mode 'RGB' or 'L', as `jeffnet.data.images` would give it."""
    image.load()
    if image.mode == mode:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        raise ImageError("its pixels have more than 8 bits, which Pillow would clip")
    if "transparency" in image.info:
        # The conversion drops it, and warns of that; the picture may be the data set's own.
        image = image.copy()
        del image.info["transparency"]
    return image.convert(mode)


def _processes() -> BaseContext:
    """How worker processes start: forking this one would copy the locks that JAX's threads hold."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # Imported once, in the process that all workers of all epochs are forked from.
    context.set_forkserver_preload(["__main__", "torch.utils.data", __name__])
    return context


def _unchanged(chunk: Any) -> Any:
    return chunk


def _received(chunks: Iterator[Any], count: int) -> list[Any]:
    """The next so many chunks, or errors in their place; none at the end."""
    try:
        return list(islice(chunks, count))
    # What the data set raises is none of these: with a worker its end of a pipe is gone, sooner or later noticed.
    except (OSError, EOFError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
            raise
        raise DatasetError(
            f"a worker process of the loader died ({first_line(error)}): use fewer workers or none, give them "
            'more (shared) memory, and guard the main module by `if __name__ == "__main__"`'
        ) from error


def _shared_zeros(shape: tuple[int, ...], dtype: "torch.dtype") -> "torch.Tensor":
    """As `torch.zeros`, in shared memory from the start, like torch's own collation: `share_memory_` would copy."""
    import torch

    empty = torch.empty(0, dtype=dtype)
    return empty.new(empty._typed_storage()._new_shared(math.prod(shape), device="cpu")).resize_(shape)


def _assembled(chunks: Sequence[Any]) -> EvalBatch:
    """A batch, or the first error in it."""
    if error := next((chunk for chunk in chunks if isinstance(chunk, JeffnetError)), None):
        raise error
    if len(chunks) == 1 and chunks[0]["image"].numel() >= _LARGE:
        return cast(EvalBatch, {**chunks[0], "image": chunks[0]["image"].numpy()})
    # Copied even where it is a single chunk: each holds one of the process's file descriptors, which are few.
    return cast(EvalBatch, {key: np.concatenate([chunk[key] for chunk in chunks]) for key in chunks[0]})
