"""Tar archives: what each layout says of pictures and labels, read in place, and what is refused."""

import io
import json
import multiprocessing
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jeffnet.data.archives import expand_braces
from jeffnet.data.tar import TarShards
from jeffnet.errors import DatasetError, ImageError


def encoded(value: int, file_format: str = "PNG") -> bytes:
    """A picture whose red is `value`; of random size, so that offsets differ."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(value).integers(0, 256, (8, 5 + value % 7, 3), dtype=np.uint8)
    noise[:, :, 0] = value
    Image.fromarray(noise).save(buffer, file_format)
    return buffer.getvalue()


def pack(path: Path, members: dict[str, bytes], tar_format: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format) as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def red(image: Image.Image) -> int:
    pixel = image.convert("RGB").getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return int(pixel[0])


def web(first: int, count: int = 3, **others: bytes) -> dict[str, bytes]:
    """Members of `count` examples; the red of each is its number, its label that modulo 4."""
    members = dict(others)
    for number in range(first, first + count):
        members[f"{number:04d}.cls"] = str(number % 4).encode()
        members[f"{number:04d}.png"] = encoded(number)
    return members


FOLDERS = {"dog/1.png": encoded(1), "cat/x/0.png": encoded(0), "dog/2.JPEG": encoded(2, "JPEG"), "cat/._a.png": b""}


def in_folder(folder: str, members: dict[str, bytes] = FOLDERS) -> dict[str, bytes]:
    return {f"{folder}/{name}": content for name, content in members.items()}


def test_web_dataset_shards_are_read_in_order_of_their_names(tmp_path: Path):
    for number in (1, 0, 2):
        pack(tmp_path / f"shard-{number:06d}.tar", web(3 * number))
    source = TarShards(tmp_path, "val")
    assert len(source) == 9 and source.classes == ("0", "1", "2", "3")
    np.testing.assert_array_equal(source.labels, [number % 4 for number in range(9)])
    for number in range(9):
        image, label, name = source[number]
        assert (image.mode, red(image), label) == ("RGB", number, number % 4)
        assert name == source.name(number) == f"shard-{number // 3:06d}.tar/{number:04d}.png"
    assert TarShards(tmp_path, "val", channels=1)[0].image.mode == "L"
    with pytest.raises(IndexError):
        source[9]


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_of_tar_with_long_names_gives_the_very_bytes(tar_format: int, tmp_path: Path):
    folder = "/".join(["deep" * 10] * 3)
    path = pack(tmp_path / "a.tar", {f"./{folder}/dog/n.png": encoded(7), f"./{folder}/cat/n.png": encoded(8)})
    source = TarShards(path, "val")
    assert [red(source[index].image) for index in range(2)] == [7, 8]
    assert source.name(0) == f"a.tar/{folder}/dog/n.png"


def test_labels_come_from_cls_or_json_and_cls_decides(tmp_path: Path):
    members = {
        "a.b.png": encoded(1),  # the key ends at the first dot
        "a.json": json.dumps({"label": 2}).encode(),
        "dir.d/a.webp": encoded(2, "WEBP"),
        "dir.d/a.json": json.dumps({"cls": 1, "caption": "a dog"}).encode(),
        "c.cls": b" 3\n",
        "c.jpg": encoded(3, "JPEG"),
        "c.json": json.dumps({"label": 0}).encode(),
        "__license__.txt": b"text",
    }
    source = TarShards(pack(tmp_path / "a.tar", members), "val")
    assert source.labels.tolist() == [2, 1, 3] and source.classes == ("0", "1", "2", "3")


@pytest.mark.parametrize("beside", [True, False])
def test_names_of_the_labels_come_from_classes_txt(beside: bool, tmp_path: Path):
    names = b"ant\nbee\n\ncat\ndog\neel\n"
    pack(tmp_path / "a.tar", web(0) if beside else {**web(0), "meta/classes.txt": names})
    if beside:
        (tmp_path / "classes.txt").write_bytes(names)
    assert TarShards(tmp_path, "val").classes == ("ant", "bee", "cat", "dog", "eel")


@pytest.mark.parametrize("folder", ["val", "imagenette160/val", "validation", "data/test"])
def test_class_folders_of_a_split_inside_the_archive(folder: str, tmp_path: Path):
    top = folder.rpartition("/")[0]
    train = {f"{top}/train/{name}".lstrip("/"): encoded(99) for name in ("cat/a.png", "emu/b.png")}
    path = pack(tmp_path / "any-train.tar", {**train, **in_folder(folder)})
    source = TarShards(path, "val")
    assert source.classes == ("cat", "dog") and source.labels.tolist() == [1, 0, 1]
    assert [red(source[0].image), red(source[1].image)] == [1, 0]
    assert source.name(1) == f"any-train.tar/{folder}/cat/x/0.png"
    assert TarShards(path, "train").classes == ("cat", "emu")


@pytest.mark.parametrize("folder", ["", "flowers"])
def test_class_folders_without_a_split_serve_as_val_only(folder: str, tmp_path: Path):
    path = pack(tmp_path / "a.tar", in_folder(folder) if folder else FOLDERS)
    assert TarShards(path, "val").classes == ("cat", "dog")
    with pytest.raises(DatasetError, match="no split 'train'"):
        TarShards(path, "train")


def test_a_class_may_be_called_train(tmp_path: Path):
    path = pack(tmp_path / "a.tar", {"train/1.png": encoded(1), "tram/1.png": encoded(2)})
    assert TarShards(path, "val").classes == ("train", "tram")


def test_a_split_that_is_not_inside_is_an_error_naming_those_that_are(tmp_path: Path):
    path = pack(tmp_path / "a.tar", in_folder("train"))
    with pytest.raises(DatasetError, match="no split 'val' inside: only train"):
        TarShards(path, "val")


@pytest.mark.parametrize("names", ["{}/shard-0.tar", "imagenet1k-{}-0000.tar", "{}0.tar"])
def test_folders_and_names_of_archives_tell_the_split(names: str, tmp_path: Path):
    for split, first in {"train": 0, "validation": 10, "extra": 20}.items():
        pack(tmp_path / names.format(split), web(first))
    assert [red(TarShards(tmp_path, split)[0].image) for split in ("train", "val", "extra")] == [0, 10, 20]
    with pytest.raises(DatasetError, match="no split 'minival'"):
        TarShards(tmp_path, "minival")


def test_only_a_whole_word_of_a_name_tells_the_split(tmp_path: Path):
    for number, name in enumerate(("strains", "latest")):
        pack(tmp_path / f"{name}-{number}.tar", web(number, 1))
    assert len(TarShards(tmp_path, "val")) == 2


def test_archives_of_no_split_serve_as_val_only(tmp_path: Path):
    for number in range(2):
        pack(tmp_path / f"set/shard-{number}.tar", web(number))
        pack(tmp_path / f"inside/{number}.tar", in_folder("train", {"cat/a.png": encoded(number)}))
        pack(tmp_path / f"train/shard-{number}.tar", web(number))
    assert len(TarShards(tmp_path / "set", "val")) == 6
    with pytest.raises(DatasetError, match="no split 'train': put its files into a folder 'train'"):
        TarShards(tmp_path / "set", "train")
    assert len(TarShards(tmp_path / "inside", "train")) == 2
    assert len(TarShards(tmp_path / "train", "train")) == 6


@pytest.mark.parametrize(
    "pattern", ["s-{000..002}.tar", "s-*.tar", "s-00[0-2].tar", "s-{000,001,002}.tar", "{s-000,s-00{1..2}}.tar"]
)
def test_patterns_name_archives(pattern: str, tmp_path: Path):
    for number in range(3):
        pack(tmp_path / f"s-{number:03d}.tar", web(number, 1))
    assert TarShards(str(tmp_path / pattern), "val").labels.tolist() == [0, 1, 2]


def test_a_list_names_archives(tmp_path: Path):
    paths = [pack(tmp_path / name / "s.tar", web(number, 1)) for number, name in enumerate("ba")]
    assert TarShards(paths, "val").labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    "pattern", ["{0..9999999999}", "{1..1000001}.tar", "{0..999}{0..99}{0..99}", "{a," * 2000 + "}" * 2000]
)
def test_a_range_of_more_than_a_million_is_an_error(pattern: str):
    with pytest.raises(DatasetError, match="more than 1,000,000"):
        expand_braces(pattern)


def test_braces_mean_what_they_do_in_a_shell():
    assert expand_braces("a{08..11}b") == ["a08b", "a09b", "a10b", "a11b"]
    assert expand_braces("{9..11}") == ["9", "10", "11"]
    assert expand_braces("{x,y}{0..1}") == ["x0", "x1", "y0", "y1"]
    assert expand_braces("{plain}") == ["{plain}"]
    assert expand_braces("{a,b{c,d}}") == ["a", "bc", "a", "bd"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_among_archives_is_an_error_at_once(tmp_path: Path):
    pack(tmp_path / "a.tar", web(0, 1))
    os.mkfifo(tmp_path / "b.tar")
    with pytest.raises(DatasetError, match=r"b.tar' does not exist \(1 of 2 do not\), or is no file"):
        TarShards(tmp_path, "val")
    (tmp_path / "b.tar").rename(tmp_path / "classes.txt")
    with pytest.raises(DatasetError, match=r"classes.txt' cannot be read .it is a pipe"):
        TarShards(tmp_path, "val")


def test_names_of_classes_that_are_too_many_to_be_read_are_no_numbers(tmp_path: Path):
    pack(tmp_path / "a.tar", {"classes.txt": b"a name\n" * 2**18, **web(0, 1)})
    with pytest.raises(DatasetError, match=r"classes.txt' have 1,835,008 bytes, more than 1 MiB"):
        TarShards(tmp_path / "a.tar", "val")


@pytest.mark.parametrize(
    ("members", "fault"),
    [
        ({"1.png": b"", "1.cls": b"0", "2.png": b""}, r"picture '2.png' of a.tar has no label: add the member '2.cls'"),
        ({"1.png": b"", "1.cls": b"dog"}, r"label 'a.tar/1.cls' is b'dog'"),
        ({"1.png": b"", "1.cls": b"-1"}, "has the label -1: this part of the data set has no labels"),
        ({"1.png": b"", "1.cls": b"2", "classes.txt": b"a\nb"}, r"'a.tar/1.png' has the label 2, but .* 2 classes"),
        ({"1.png": b"", "1.json": b"{}"}, "'1.png' of a.tar has no label: put it into a folder"),
        ({"ILSVRC2012_val_00000001.JPEG": b""}, "has no label: put it into a folder of its class"),
        ({"readme.txt": b""}, "has no pictures"),
        ({}, "has no pictures"),
    ],
)
def test_an_archive_without_pictures_or_labels_is_an_error_of_one_line(
    members: dict[str, bytes], fault: str, tmp_path: Path
):
    path = pack(tmp_path / "a.tar", members)
    with pytest.raises(DatasetError, match=fault) as raised:
        TarShards(path, "val")
    assert "\n" not in str(raised.value)


def test_a_member_that_comes_twice_is_an_error(tmp_path: Path):
    path = pack(tmp_path / "a.tar", web(0))
    with tarfile.open(path, "a") as archive:
        archive.addfile(tarfile.TarInfo("0001.png"))
    with pytest.raises(DatasetError, match=r"a\.tar' has the member '0001.png' twice"):
        TarShards(path, "val")


def test_two_pictures_of_one_key_are_an_error(tmp_path: Path):
    path = pack(tmp_path / "a.tar", {**web(0), "0001.jpg": encoded(1, "JPEG")})
    with pytest.raises(DatasetError, match=r"'0001\.png' and '0001\.jpg' of a\.tar are both of the key '0001'"):
        TarShards(path, "val")


def test_a_link_is_an_error(tmp_path: Path):
    path = pack(tmp_path / "a.tar", FOLDERS)
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("dog/link.png")
        link.type, link.linkname = tarfile.LNKTYPE, "dog/1.png"
        archive.addfile(link)
    with pytest.raises(DatasetError, match=r"'dog/link\.png' .* is a link"):
        TarShards(path, "val")


@pytest.mark.parametrize("method", ["gz", "bz2", "xz"])
def test_a_compressed_archive_is_an_error_that_says_so(method: str, tmp_path: Path):
    with tarfile.open(tmp_path / "a.tar", f"w:{method}") as archive:  # pyright: ignore
        archive.addfile(tarfile.TarInfo("cat/1.png"))
    with pytest.raises(DatasetError, match=r"a\.tar' is compressed with .*decompress it first"):
        TarShards(tmp_path / "a.tar", "val")


def test_an_archive_cut_anywhere_is_an_error(tmp_path: Path):
    """Between two members tarfile sees an end like any other: then only the end mark is missing."""
    path = pack(tmp_path / "a.tar", web(0))
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-1]
        end = archive.offset
    cuts = {0, 100, 512, last.offset, last.offset + 100, last.offset_data, last.offset_data + 10, end - 1, end}
    for cut in sorted(cuts):
        path.write_bytes(whole[:cut])
        with pytest.raises(DatasetError, match="truncated or damaged"):
            TarShards(path, "val")
    path.write_bytes(whole[: last.offset] + b"x" * 512 + whole[last.offset + 512 :])
    with pytest.raises(DatasetError, match="truncated or damaged"):
        TarShards(path, "val")
    path.write_bytes(whole)
    assert len(TarShards(path, "val")) == 3


def _header(name: str, size: int, kind: bytes = b"0") -> bytes:
    """A header as tarfile would write it, but for the size, which may be negative."""
    entry = tarfile.TarInfo(name)
    block = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"%011o\0" % size if size >= 0 else (size % 256**12).to_bytes(12, "big")
    block[156:157], block[148:156] = kind, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _extended(*records: tuple[str, str]) -> bytes:
    """A header of pax records."""
    lines = b""
    for key, value in records:
        rest = f" {key}={value}\n".encode()
        length = next(count for count in range(len(rest), len(rest) + 9) if len(str(count)) + len(rest) == count)
        lines += str(length).encode() + rest
    return _header("x", len(lines), b"x") + lines + bytes(-len(lines) % 512)


_END = bytes(1024)
_NO_SPARSE_MAP = ("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.name", "a/x.png")


@pytest.mark.parametrize(
    "content",
    [
        _header("a/x.png", 0) + _header(".x", -512) + _END,
        _header("a/x.png", -(2**90)) + _END,
        _header("a/x.png", 2**60) + _END,
        _header("a/x.png", 5000) + _END,
        _extended(("size", "-512")) + _header("a/x.png", 0) + _END,
        _extended(("size", "9" * 30)) + _header("a/x.png", 0) + _END,
        _header("x", -512, b"x") + _END,
        _header("x", 2**50, b"L") + _END,
        _extended(*_NO_SPARSE_MAP) + _header("a/x.png", 0),
        _extended(*_NO_SPARSE_MAP) + _header("a/x.png", 512) + b"999999999\n" + bytes(502) + _END,
        (_header("x", 5, b"L") + b"a.png" + bytes(507)) * 3000 + _header("a/x.png", 0) + _END,
    ],
    ids=range(11),
)
def test_headers_that_lie_about_sizes_are_an_error_at_once(content: bytes, tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(DatasetError, match=r"a\.tar' (is no tar archive|has no pictures)|is a link or sparse"):
        TarShards(tmp_path / "a.tar", "val")


def test_a_member_larger_than_any_picture_is_an_error_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = TarShards(pack(tmp_path / "a.tar", {"cat/1.png": encoded(1)}), "val")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ImageError, match=r"'a.tar/cat/1.png' has [0-9]+ bytes, more than 60"):
        source[0]


def test_names_that_are_not_utf8_stay_different(tmp_path: Path):
    folders = [os.fsdecode(name) for name in (b"caf\xe8", b"caf\xe9")]
    members = {f"{folder}/1.png": encoded(number) for number, folder in enumerate(folders)}
    source = TarShards(pack(tmp_path / "a.tar", members, tarfile.GNU_FORMAT), "val")
    assert list(source.classes) == folders
    assert [source[index].label for index in range(2)] == [0, 1]


def test_names_of_classes_that_are_not_utf8_are_an_error(tmp_path: Path):
    pack(tmp_path / "a.tar", web(0))
    (tmp_path / "classes.txt").write_bytes("häher\n".encode("latin-1") * 4)
    with pytest.raises(DatasetError, match=r"classes\.txt' are not in UTF-8"):
        TarShards(tmp_path / "a.tar", "val")


def test_members_without_a_picture_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    TarShards(pack(tmp_path / "a.tar", web(0) | {"0001.txt": b"", "0001.json": b"{}"}), "val")
    assert not caplog.messages
    TarShards(pack(tmp_path / "b.tar", web(0) | {"0009.heic": b"", "0009.cls": b"1"}), "val")
    TarShards(pack(tmp_path / "c.tar", FOLDERS | {"cat/a.heic": b"", "cat/b.HEIC": b""}), "val")
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        "1 file of unknown endings skipped: .heic (1)",
        "2 files of unknown endings skipped: .heic (2)",
    ]


@pytest.mark.parametrize("label", [2**20, 3 * 10**9, 10**30])
def test_a_label_that_is_none_makes_no_list_of_as_many_names(label: int, tmp_path: Path):
    pack(tmp_path / "a.tar", {"0.png": encoded(0), "0.cls": str(label).encode()})
    with pytest.raises(DatasetError, match=f"'a.tar/0.png' has the label {label}: labels without names go up to"):
        TarShards(tmp_path / "a.tar", "val")
    (tmp_path / "classes.txt").write_text("cat\n")
    with pytest.raises(DatasetError, match=f"has the label {label}, but there are 1 classes"):
        TarShards(tmp_path / "a.tar", "val")


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ("missing.tar", r"missing\.tar' does not exist"),
        ("a-{0..2}.tar", r"a-1\.tar' does not exist \(2 of 3"),
        ("b-*.tar", "no archive is so named"),
        ("empty", "has no archives"),
    ],
)
def test_missing_archives_are_an_error(data: str, fault: str, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    pack(tmp_path / "a-0.tar", web(0))
    with pytest.raises(DatasetError, match=fault):
        TarShards(str(tmp_path / data), "val")


def test_a_damaged_picture_is_named_when_it_is_read(tmp_path: Path):
    source = TarShards(pack(tmp_path / "a.tar", {"cat/1.png": b"no picture", "cat/2.png": b""}), "val")
    with pytest.raises(ImageError, match=r"image 'a.tar/cat/1.png' is not a picture"):
        source[0]
    with pytest.raises(ImageError, match=r"image 'a.tar/cat/2.png' is empty"):
        source[1]


def test_an_archive_that_shrank_or_vanished_is_an_image_error(tmp_path: Path):
    path = pack(tmp_path / "a.tar", {"cat/1.png": encoded(1)})
    source = TarShards(path, "val")
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ImageError, match=r"'a.tar/cat/1.png' is truncated"):
        source[0]
    path.unlink()
    with pytest.raises(ImageError, match=r"'a.tar/cat/1.png' cannot be read"):
        source[0]


def test_many_threads_and_processes_read_the_same(tmp_path: Path):
    for number in range(3):
        pack(tmp_path / f"{number}.tar", web(10 * number, 10))
    source = TarShards(tmp_path, "val")
    source[0]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda index: red(source[index].image), list(range(30)) * 10)) == list(range(30)) * 10
    copy = pickle.loads(pickle.dumps(source))
    assert [red(copy[index].image) for index in (29, 0)] == [29, 0]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(TarShards.__getitem__, (source, 17)).label == 17 % 4


def test_no_file_stays_open(tmp_path: Path):
    """A thousand shards would be more than a process may have open."""
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no list of open files here")
    before = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        pack(tmp_path / f"{number:02d}.tar", web(number, 1))
    source = TarShards(tmp_path, "val")
    for index in range(20):
        source[index]
    assert len(os.listdir("/proc/self/fd")) == before
