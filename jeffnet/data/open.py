"""Opens a data set by its name."""

import glob
import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from jeffnet.data.columns import USUAL, Columns
from jeffnet.data.images import is_picture
from jeffnet.data.sources import Digits, ImageFolder, Source
from jeffnet.data.table import ENDINGS, Table
from jeffnet.data.tfds_source import is_prepared
from jeffnet.errors import DatasetError
from jeffnet.system.reading import is_url, user_path
from jeffnet.text.names import counted, listed

_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def open_source(
    data: str,
    split: str,
    channels: int,
    classes: Sequence[str] | None = None,
    min_images: int = 1,
    data_dir: str | None = None,
    columns: Columns = USUAL,
) -> Source:
    """Open the data set of this name.

    Args:
      data: 'digits' (a folder of this name is './digits'); `hf:owner/name[:config][@revision]` of the hub, a `.parquet`
        file or a folder of them (`HubDataset`); `tfds:name[/config]` or the folder of a prepared data set
        (`TfdsSource`); an `.npz` file (`open_npz`); a `.tar` file, a folder of them or a pattern such as
        `shard-{000..146}.tar` (`TarShards`); a `.csv`, `.tsv` or `.jsonl` table, COCO's `.json`, or a `.parquet` file
        if `columns` says where its paths are (`Table`); any other folder holds one folder per class (`ImageFolder`).
      split: 'train', 'val' or another split of the data set.
      channels: 3 for RGB, 1 for grey.
      classes: the order of labels, for an image folder or a table. All others have their own; theirs must be the first
        of these.
      min_images: fewest pictures that will do.
      data_dir: where data sets of `tfds:` are prepared.
      columns: what the columns of a table say.

    Returns:
      The data set, with `classes`, `len()` and one picture at a time.

    Raises:
      DatasetError: there is no such data set, it cannot be read, its classes are others, or it has fewer pictures than
        `min_images`.
      ImageError: `channels` is neither 1 nor 3.
    """
    source = _open(data, split, channels, classes, data_dir, columns)
    names = source.classes
    if classes is not None and names != tuple(classes)[: len(names)]:
        raise DatasetError(
            f"data set 'digits' has the classes 0 to 9, not {listed(classes)}: give another data set"
            if data == "digits"
            else f"{split} set of {data!r} has the classes {listed(names)}, not {listed(classes)}: labels would not "
            "match; give the same names in the same order"
        )
    if len(source) < min_images:
        raise DatasetError(
            f"{split} set of {data!r} has {counted(len(source), 'picture')}: at least {min_images} are needed, add some"
        )
    return source


def _open(
    data: str, split: str, channels: int, classes: Sequence[str] | None, data_dir: str | None, columns: Columns
) -> Source:
    if is_url(data):
        raise DatasetError(
            f"data set {data!r} is an address: download it and give its folder or file; hf:owner/name reads one of the "
            "model hub"
        )
    kind = "table" if columns.path and data.lower().endswith(".parquet") else _kind(data)
    if kind == "table":
        return Table(data, split, channels, classes, columns)
    if columns != USUAL:
        raise DatasetError(f"data set {data!r} is no table: leave out what is said of its columns and of the task")
    if kind == "digits":
        return Digits(split, channels)
    if kind == "parquet":
        from jeffnet.data.hub_dataset import HubDataset

        return HubDataset(data, split, channels)
    if kind == "tfds":
        from jeffnet.data.tfds_source import TfdsSource

        return TfdsSource(data.removeprefix("tfds:"), split, channels, data_dir)
    if kind == "npz":
        from jeffnet.data.arrays import open_npz

        return open_npz(data, split, channels)
    if kind == "tar":
        from jeffnet.data.tar import TarShards

        return TarShards(data, split, channels)
    return ImageFolder(data, split, channels, classes)


def _kind(data: str) -> str:
    if data == "digits":
        return "digits"
    for prefix, kind in (("hf:", "parquet"), ("tfds:", "tfds")):
        if data.startswith(prefix):
            return kind
    path = user_path(data)
    if os.path.isdir(path):
        return _kind_of_folder(path)
    lower = data.lower()
    if lower.endswith(ENDINGS):
        return "table"
    if lower.endswith(_ARCHIVES) or (glob.has_magic(data) and not os.path.exists(path)):
        return "tar"
    return next((kind for kind in ("npz", "parquet") if lower.endswith(f".{kind}")), "folder")


def _kind_of_folder(folder: Path) -> str:
    """The kind of data in a folder. Folders of pictures take precedence over archives."""
    if is_prepared(folder):
        return "tfds"
    try:
        visible = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
        folders = [entry for entry in visible if entry.is_dir()]
        if any(_holds_pictures(Path(entry)) for entry in folders):
            return "folder"
    except OSError:
        return "folder"  # whose error says what is wrong
    for kind in ("tar", "parquet"):
        if any(folder.glob(f"*.{kind}")) or any(folder.glob(f"*/*.{kind}")):
            return kind
    return "parquet" if any(folder.glob("*/*/*.parquet")) else "folder"


def _holds_pictures(folder: Path) -> bool:
    """Whether a folder, or one in it, has pictures, as far as the first few files tell."""
    with os.scandir(folder) as entries:
        some = list(islice(entries, 100))
    if any(is_picture(entry.name) for entry in some):
        return True
    return any(_holds_pictures(Path(entry)) for entry in some[:10] if entry.is_dir(follow_symlinks=False))
