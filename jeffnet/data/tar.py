"""Labelled pictures in tar archives, read where they lie: WebDataset shards, and archives of class folders."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image

from jeffnet.data.archives import Member, find_archives, read_headers
from jeffnet.data.checks import checked_labels, of_unknown_endings
from jeffnet.data.images import SUFFIXES, is_picture, most_bytes, read_image
from jeffnet.data.sources import Labelled, file_stamp
from jeffnet.data.splits import KNOWN, files_of_split, find_split
from jeffnet.errors import DatasetError, ImageError
from jeffnet.system.reading import MOST_TEXT, parse_json, read_file
from jeffnet.text.names import listed

_CLASSES = "classes.txt"

_LOGGER = logging.getLogger("jeffnet.data")


class _Picture(NamedTuple):
    """A picture in the archive of that number; `path` is its name in the archive, from a split's folder on."""

    shard: int
    member: Member
    path: tuple[str, ...]


class TarShards(Labelled):
    """Pictures in tar archives that are not compressed, in the order of the archives.

    Their contents decide between two layouts. WebDataset's: the members of an example have the same name up to the
    first dot, such as `0001.jpg` and `0001.cls`, the label in digits, or `0001.json` with the label under "label" or
    "cls"; the names of the labels are in a member `classes.txt` or a file of this name beside the archives, one a line.
    Or class folders as in `ImageFolder`: `[split/]<class>/**/*.jpg`, perhaps all in one more folder.

    The split is the one that a folder or the name of an archive tells, see `files_of_split` in `jeffnet.data.splits`,
    or a folder inside. Where nothing tells, everything serves as 'val'. Hidden files are ignored,
    other files without a picture beside them counted in a warning.

    Class folders are sorted, labels without names are called '0' to the greatest.

    Raises:
      DatasetError: no such archive, one that is compressed, truncated or laid out otherwise, a picture without a label
        or with one outside the classes, the same member twice, or no such split.

    Source: https://github.com/webdataset/webdataset, "The WebDataset Format".
    """

    def __init__(
        self,
        data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        split: str = "train",
        channels: int = 3,
    ) -> None:
        """Reads the headers and labels of the archives that `jeffnet.data.archives.find_archives` finds, no picture."""
        super().__init__(os.fspath(data) if isinstance(data, str | os.PathLike) else f"{len(data)} archives", channels)
        root, self._shards = find_archives(data)
        if len(self._shards) > 1:  # a single one may have the splits inside, whatever it is called
            self._shards = files_of_split(self._shards, root, split, or_all=True)
        pictures, labels, classes = self._read_headers()
        by_key = {(shard, key) for shard, key in labels}
        is_web_dataset = any((picture.shard, _key(picture.member.name)) in by_key for picture in pictures)
        chosen = _in_split(pictures, split, self._data, least=2 if is_web_dataset else 3)
        if chosen is None:
            files_of_split(self._shards, root, split)  # an error where their names tell of other splits
            chosen = _without_top(pictures)
        self._shard = np.array([picture.shard for picture in chosen], np.int32)
        # Not the members themselves, which take several times the memory and go to every worker process.
        self._offsets = np.array([picture.member.offset for picture in chosen], np.int64)
        self._sizes = np.array([picture.member.size for picture in chosen], np.int64)
        self._names = [picture.member.name for picture in chosen]
        if is_web_dataset:
            self._check_keys(chosen)
            numbers = [self._label(picture, labels) for picture in chosen]
            classes = classes or _read_classes([self._shards[0].parent, root])
        else:
            folders = [self._class_folder(picture) for picture in chosen]
            classes = tuple(sorted(set(folders)))
            number = {name: index for index, name in enumerate(classes)}
            numbers = [number[name] for name in folders]
        self.labels, self.classes = checked_labels(numbers, classes, self._data, self.name)

    def name(self, index: int) -> str:
        """Name of the archive and path inside."""
        return f"{self._shards[self._shard[index]].name}/{self._names[index]}"

    def _picture(self, index: int, name: str) -> Image.Image:
        return read_image(self.file(index), self.channels, name)

    def _origin(self, index: int) -> str:
        return file_stamp(self._shards[self._shard[index]])

    def file(self, index: int) -> bytes:
        """The contents of a picture's member; an ImageError if they cannot be read."""
        name = self.name(index)
        offset, size = int(self._offsets[index]), int(self._sizes[index])
        if (most := most_bytes()) and size > most:
            raise ImageError(
                f"image {name!r} has {size:,} bytes, more than {most:,}: scale it down, or raise "
                "PIL.Image.MAX_IMAGE_PIXELS if you trust it"
            )
        try:
            # Opened for each picture, which takes microseconds: a thousand archives would be too many to keep open.
            with self._shards[self._shard[index]].open("rb", buffering=0) as file:
                file.seek(offset)
                content = file.read(size)
        except OSError as error:
            raise ImageError(f"image {name!r} cannot be read ({error.strerror}): check its archive") from error
        if len(content or b"") != size:
            raise ImageError(f"image {name!r} is truncated: its archive has changed; open the data set again")
        return content

    def _read_headers(self) -> tuple[list[_Picture], dict[tuple[int, str], int], tuple[str, ...] | None]:
        """All pictures, the labels that members tell by archive and key, and the names of the classes if one tells."""
        pictures, labels, classes = [], {}, None
        skipped: list[str] = []
        for shard, path in enumerate(self._shards):
            members, texts = read_headers(path, _is_text)
            keys, others = set(), []
            for member in members:
                if is_picture(PurePosixPath(member.name).name):
                    pictures.append(_Picture(shard, member, tuple(member.name.split("/"))))
                    keys.add(_key(member.name))
                elif not _is_text(member.name):
                    others.append(member.name)
                elif PurePosixPath(member.name).name == _CLASSES and member.name not in texts:
                    raise DatasetError(
                        f"names of classes '{path.name}/{member.name}' have {member.size:,} bytes, more than 1 MiB: "
                        "put the file beside the archive"
                    )
            # Beside a picture there may be anything about it.
            skipped += [PurePosixPath(name).name for name in others if _key(name) not in keys]
            # First JSON, since a label of its own in `.cls` decides.
            for name in sorted(texts, key=lambda name: name.endswith(".cls")):
                if PurePosixPath(name).name == _CLASSES:
                    classes = classes or _lines(f"{path.name}/{name}", texts[name])
                elif (label := _parse_label(f"{path.name}/{name}", texts[name])) is not None:
                    labels[shard, _key(name)] = label
        if not pictures:
            raise DatasetError(
                f"data set {self._data!r} has no pictures: add files of {listed(sorted(SUFFIXES), len(SUFFIXES))}"
                + (f" ({of_unknown_endings(skipped)})" if skipped else "")
            )
        if skipped:
            _LOGGER.warning("%r: %s", self._data, of_unknown_endings(skipped))
        return pictures, labels, classes

    def _check_keys(self, pictures: list[_Picture]) -> None:
        first: dict[tuple[int, str], str] = {}
        for picture in pictures:
            name, key = picture.member.name, (picture.shard, _key(picture.member.name))
            if (other := first.setdefault(key, name)) is not name:
                raise DatasetError(
                    f"pictures {other!r} and {name!r} of {self._shards[picture.shard].name} are both of the key "
                    f"{key[1]!r}: rename one"
                )

    def _label(self, picture: _Picture, labels: dict[tuple[int, str], int]) -> int:
        key = _key(picture.member.name)
        if (picture.shard, key) not in labels:
            raise self._unlabelled(picture, f"add the member {key + '.cls'!r}")
        return labels[picture.shard, key]

    def _class_folder(self, picture: _Picture) -> str:
        if len(picture.path) < 2:
            member = f"add the member {_key(picture.member.name) + '.cls'!r}"
            raise self._unlabelled(picture, f"put it into a folder of its class, or {member}")
        return picture.path[0]

    def _unlabelled(self, picture: _Picture, remedy: str) -> DatasetError:
        place = f"{picture.member.name!r} of {self._shards[picture.shard].name}"
        return DatasetError(f"picture {place} has no label: {remedy}")


def _in_split(pictures: list[_Picture], split: str, data: str, least: int) -> list[_Picture] | None:
    """Pictures in a split's folder inside the archives, at the top or one folder down; None without such folders.

    A path of fewer parts than `least`, from the split on, is not one of a split: a class may be called `train`.
    """
    depths = (0, 1) if len({picture.path[0] for picture in pictures}) == 1 else (0,)
    for depth in depths:
        found: dict[str, list[_Picture]] = {}
        for picture in pictures:
            path = picture.path[depth:]
            if len(path) >= least and path[0] in (*KNOWN, split):
                found.setdefault(path[0], []).append(picture._replace(path=path[1:]))
        if name := find_split(split, found):
            return found[name]
        if found:
            raise DatasetError(f"data set {data!r} has no split {split!r} inside: only {listed(sorted(found))}")
    return None


def _without_top(pictures: list[_Picture]) -> list[_Picture]:
    """Paths below the folder that holds all class folders, if there is one."""
    if len({picture.path[0] for picture in pictures}) == 1 and all(len(picture.path) > 2 for picture in pictures):
        return [picture._replace(path=picture.path[1:]) for picture in pictures]
    return pictures


def _key(name: str) -> str:
    """What WebDataset calls the key of an example: the name up to the first dot after the last '/'."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _is_text(name: str) -> bool:
    return name.endswith((".cls", ".json")) or PurePosixPath(name).name == _CLASSES


def _parse_label(name: str, content: bytes) -> int | None:
    """The label in a `.cls` or `.json` member; None where a JSON has none, since it may be about something else."""
    if name.endswith(".cls"):
        try:
            return int(content)
        except ValueError:
            raise DatasetError(f"label {name!r} is {content[:20]!r}: write an integer in digits") from None
    try:
        value = parse_json(content)
    except ValueError:
        return None
    labels = (value.get("label"), value.get("cls")) if isinstance(value, dict) else ()
    return next((label for label in labels if type(label) is int), None)


def _read_classes(folders: Sequence[Path]) -> tuple[str, ...] | None:
    file = next((folder / _CLASSES for folder in folders if (folder / _CLASSES).exists()), None)
    try:
        return file and _lines(str(file), read_file(file, MOST_TEXT))
    except OSError as error:
        fault = f"cannot be read ({error.strerror}): fix or remove it"
        raise DatasetError(f"names of classes {str(file)!r} {fault}") from error


def _lines(name: str, content: bytes) -> tuple[str, ...]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"names of classes {name!r} are not in UTF-8 (byte {error.start:,}): convert them") from None
    return tuple(line.strip() for line in text.splitlines() if line.strip())
