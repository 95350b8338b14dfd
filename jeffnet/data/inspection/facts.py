"""Reads every picture of a data set once, in threads; an interrupted scan goes on where it stopped."""

import hashlib
import json
import logging
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from PIL import Image

from jeffnet.data.images import converted, decoded, image_content, orientation
from jeffnet.data.inspection.duplicates import perceptual_hash
from jeffnet.data.sources import Labelled, Source, stamp_of
from jeffnet.errors import DatasetError, ImageError, OutputError
from jeffnet.system.files import LockedError, cache_folder, locked
from jeffnet.system.processor import processors

_log = logging.getLogger("jeffnet.data")

_FORM = 1  # of the records; those of another form are not used
_DIGEST_BYTES = 16
_AHEAD = 8  # pictures of each thread that may wait to be recorded


class Facts(NamedTuple):
    """What there is to know of a picture.

    Attributes:
      label: index into the source's classes; -1 where it is read with the picture, and that cannot be decoded.
      error: why it cannot be decoded; '' if it can. The attributes below have no meaning for such a picture.
      format: Pillow's name of the file's format, such as 'JPEG'; '' where the data set has pixels alone.
      mode: Pillow's mode in the file, such as 'RGB'.
      width: in pixels.
      height: in pixels.
      orientation: EXIF's, 1 to 8.
      digest: of the file's content, in hexadecimal; of size and pixels where there is no file.
      hash: of `perceptual_hash`.
      mean: of the pixels in [0, 1], by channel.
      square: mean of their squares.
    """

    label: int
    error: str = ""
    format: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    orientation: int = 1
    digest: str = ""
    hash: int = 0
    mean: tuple[float, ...] = ()
    square: tuple[float, ...] = ()

    @property
    def deviation(self) -> float:
        """The largest standard deviation of a channel, in [0, 1]; about 0 for a picture of one colour."""
        variances = (square - mean * mean for mean, square in zip(self.mean, self.square, strict=True))
        return max(max(variances), 0.0) ** 0.5


def scan(
    source: Source, key: str, threads: int | None = None, advance: Callable[[int], object] = lambda count: None
) -> list[Facts]:
    """Read all pictures of a source.

    What was read is recorded in the cache folder until all is read. The next scan of the same pictures reads only
    those that are not recorded, or whose file has changed since.

    Args:
      source: the pictures.
      key: tells this source from others, such as path and split.
      threads: how many read; None takes one for each processor.
      advance: called with the number of pictures that were done since the last call.

    Returns:
      The facts of each picture.

    Raises:
      OutputError: another process scans the same.
    """
    with ExitStack() as stack:
        record = _open_record(stack, source, key)
        facts = {
            number: row for number, row in record.known.items() if record.stamps[number] == stamp_of(source, number)
        }
        advance(len(facts))
        rest = (number for number in range(len(source)) if number not in facts)

        def read(number: int) -> tuple[int, str, Facts]:
            return number, stamp_of(source, number), _facts(source, number)

        with closing(_in_threads(read, rest, threads or len(processors()))) as results:
            for number, stamp, row in results:
                facts[number] = row
                record.add(number, stamp, row)
                advance(1)
        record.remove()
        return [facts[number] for number in range(len(source))]


def _in_threads(work: Callable[[int], Any], numbers: Iterator[int], threads: int) -> Generator[Any, None, None]:
    """Results of the work on each number, in order; few are begun ahead, so that an interrupt is obeyed at once."""
    pool, begun = ThreadPoolExecutor(threads), deque[Future]()
    try:
        for number in numbers:
            begun.append(pool.submit(work, number))
            if len(begun) > _AHEAD * threads:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _facts(source: Source, number: int) -> Facts:
    """What there is to know of a picture of a source."""
    label, name = -1, source.name(number)
    try:
        if isinstance(source, Labelled):
            label = int(source.labels[number])
            if (file := source.file(number)) is not None:
                content = file if isinstance(file, bytes) else image_content(file, name)
                digest = _digest(content)
                return decoded(content, lambda image: _measured(label, image, digest), repr(name))
        example = source[number]
        digest = _digest(np.asarray(example.image).tobytes(), repr(example.image.size))
        return _measured(example.label, example.image, digest)
    except (ImageError, DatasetError) as error:
        return Facts(label, str(error).removeprefix(f"image {name!r} "))


def _measured(label: int, image: Image.Image, digest: str) -> Facts:
    rgb = converted(image)
    histogram = np.array(rgb.histogram(), np.float64).reshape(3, 256)
    values = np.arange(256) / 255
    mean, square = ((histogram @ values**power / histogram.sum(1)).round(7).tolist() for power in (1, 2))
    return Facts(
        label=label,
        format=sys.intern(image.format or ""),
        mode=sys.intern(image.mode),
        width=image.width,
        height=image.height,
        orientation=orientation(image),
        digest=digest,
        hash=perceptual_hash(rgb.convert("L")),
        mean=tuple(mean),
        square=tuple(square),
    )


def _digest(content: bytes, more: str = "") -> str:
    return hashlib.sha256(content + more.encode()).hexdigest()[: 2 * _DIGEST_BYTES]


class _Record:
    """Facts on the disk, one JSON list per line, behind a line that says of which pictures they are."""

    def __init__(self, path: Path | None, of_what: str) -> None:
        self.known: dict[int, Facts] = {}
        self.stamps: dict[int, str] = {}
        self._path = path
        self._file: TextIO | None = None
        if path is None:
            return
        goes_on = self._read(path, of_what)
        # The last line of a killed process may have no end.
        self._file = path.open("a" if goes_on else "w", buffering=1, encoding="utf-8")
        self._file.write("\n" if goes_on else f"{json.dumps(of_what)}\n")

    def _read(self, path: Path, of_what: str) -> bool:
        """Read what is recorded; False where that is nothing, or of other pictures."""
        try:
            with path.open(encoding="utf-8") as lines:
                if next(lines, "") != f"{json.dumps(of_what)}\n":
                    return False
                for line in lines:
                    self._take(line)
        except (OSError, UnicodeDecodeError):
            return False
        return True

    def _take(self, line: str) -> None:
        try:
            number, stamp, *values, mean, square = json.loads(line)
            self.known[number], self.stamps[number] = Facts._make([*values, tuple(mean), tuple(square)]), stamp
        except (ValueError, TypeError):  # a line that was half written
            return

    def add(self, number: int, stamp: str, facts: Facts) -> None:
        """Write the facts of a picture."""
        if self._file is None:
            return
        try:
            self._file.write(f"{json.dumps([number, stamp, *facts])}\n")
        except OSError as error:  # the report needs no record
            _cannot_go_on(error)
            with suppress(OSError):
                self._file.close()
            self._file = None

    def close(self) -> None:
        """Write out what is waiting."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()

    def remove(self) -> None:
        """Forget everything: the scan is complete."""
        self.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _cannot_go_on(error: Exception) -> None:
    _log.warning("an interrupted scan will start again: %s", error)


def _open_record(stack: ExitStack, source: Source, key: str) -> _Record:
    """The record of a source, locked; without a folder for it a scan cannot go on later, which is logged."""
    pictures = hashlib.sha256(repr((_FORM, source.classes, len(source))).encode())
    for number in range(len(source)):
        pictures.update(source.name(number).encode(errors="surrogateescape") + b"\0")
    try:
        path = (
            cache_folder() / "scans" / f"{hashlib.sha256(key.encode(errors='surrogateescape')).hexdigest()[:32]}.jsonl"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        stack.enter_context(locked(path.with_suffix(".lock")))
        return stack.enter_context(closing(_Record(path, pictures.hexdigest())))
    except LockedError:
        raise
    except (OSError, OutputError) as error:
        _cannot_go_on(error)
        return _Record(None, "")
