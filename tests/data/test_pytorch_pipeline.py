"""PyTorch's pipeline: timm's pixels, every example once in order, any data set of PyTorch, and errors that arrive."""

import gc
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.data.batches import EvalBatch, EvalLoader, Shard
from jeffnet.data.preprocess import EvalTransform
from jeffnet.data.pytorch import eval_loader
from jeffnet.data.sources import Digits, ImageFolder
from jeffnet.errors import ConfigError, DatasetError, ImageError

# Everything here needs torch; where it is missing this skips.
pytestmark = pytest.mark.usefixtures("timm")

EVALUATE = EvalTransform(Preprocessing(8, crop_pct=1.0))
PIXELS = np.random.default_rng(0).integers(0, 256, (11, 12, 9, 3), dtype=np.uint8)


class Pairs:
    """A data set of PyTorch with no more than it must have."""

    def __init__(self, *examples: Any) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Any:
        return self.examples[index]


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolder:
    """Eleven pictures of noise."""
    for number, pixels in enumerate(PIXELS):
        (tmp_path / "train" / "ab"[number // 6]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "train" / "ab"[number // 6] / f"{number:02}.png")
    return ImageFolder(tmp_path)


@pytest.fixture
def damaged(folder: ImageFolder) -> ImageFolder:
    """One of the eleven is cut short."""
    path = folder.path(7)
    path.write_bytes(path.read_bytes()[:100])
    return folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photographs in many formats, the class folders in the root."""
    samples = pytest.importorskip("sklearn.datasets")
    root = tmp_path_factory.mktemp("photographs")
    for name in ("china", "flower"):
        image = Image.fromarray(samples.load_sample_image(f"{name}.jpg"))
        (root / name).mkdir()
        rotated = Image.Exif()
        rotated[0x0112] = 6
        opacity = Image.linear_gradient("L").resize(image.size)
        image.save(root / name / "colour.jpg", quality=95)
        image.transpose(Image.Transpose.ROTATE_90).save(root / name / "upright.jpg", quality=75, subsampling=2)
        image.resize((211, 97)).save(root / name / "small.jpeg", quality=50, progressive=True)
        image.convert("L").save(root / name / "grey.jpg")
        image.convert("CMYK").save(root / name / "cmyk.jpg")
        image.save(root / name / "rotated.jpg", exif=rotated)
        image.convert("RGBA").save(root / name / "opaque.png")
        Image.merge("RGBA", (*image.split(), opacity)).save(root / name / "transparent.png")
        image.quantize(64).save(root / name / "palette.png")
        image.quantize(64).save(root / name / "palette_transparent.png", transparency=bytes(range(64)))
        image.convert("1").save(root / name / "bilevel.png")
    return root


def rows(loader: EvalLoader) -> EvalBatch:
    """All batches, one after the other."""
    found = list(loader)
    assert len(found) == len(loader)
    image, label, mask, index = (
        np.concatenate([batch[key] for batch in found]) for key in ("image", "label", "mask", "index")
    )
    return {"image": image, "label": label, "mask": mask, "index": index}


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # timm leaves that to the garbage collector
@pytest.mark.parametrize(("size", "crop_pct", "interpolation"), [(224, 0.875, "bicubic"), (260, 0.904, "bilinear")])
def test_pixels_equal_those_of_timms_loader(
    size: int, crop_pct: float, interpolation: str, photographs: Path, timm: ModuleType
):
    """Without normalisation, bit for bit; of a folder read by jeffnet, by timm and by torchvision."""
    import torch
    from timm.data.dataset_factory import create_dataset
    from timm.data.loader import create_loader
    from torchvision.datasets import ImageFolder as TorchvisionImageFolder

    dataset: Any = create_dataset("", str(photographs))
    reference = create_loader(
        dataset,
        (3, size, size),
        batch_size=5,
        interpolation=interpolation,
        crop_pct=crop_pct,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        num_workers=0,
        persistent_workers=False,
        use_prefetcher=False,
    )
    pixels, labels = (torch.cat(arrays) for arrays in zip(*reference, strict=True))
    pixels = (255 * pixels).numpy()
    expected = np.rint(pixels).astype(np.uint8).transpose(0, 2, 3, 1)
    assert np.abs(pixels - np.rint(pixels)).max() < 1e-4 and len(expected) == 22
    transform = EvalTransform(Preprocessing(size, crop_pct, interpolation))
    ours = ImageFolder(photographs, "val")
    for source in (ours, create_dataset("", str(photographs)), TorchvisionImageFolder(str(photographs))):
        loader = eval_loader(source, transform, 5, workers=0)
        found = rows(loader)
        assert loader.classes == ("china", "flower")
        # timm's order is of paths, like ours, and torchvision's too.
        assert [Path(loader.name(index)).name for index in range(22)] == [Path(name).name for name in ours.names]
        np.testing.assert_array_equal(found["mask"], [True] * 22 + [False] * 3)
        np.testing.assert_array_equal(found["label"][:22], labels.numpy())
        np.testing.assert_array_equal(found["image"][:22], expected)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes:UserWarning")
@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_every_example_once_in_order_and_the_last_batch_padded(folder: ImageFolder, batch_size: int, workers: int):
    loader = eval_loader(folder, EvalTransform(Preprocessing(9, crop_pct=1.0)), batch_size, workers=workers)
    found = list(loader)
    assert len(found) == len(loader) == -(-11 // batch_size)
    for batch in found:
        assert isinstance(batch["image"], np.ndarray)
        assert batch["image"].shape == (batch_size, 9, 9, 3) and batch["image"].dtype == np.uint8
        for key, dtype in (("label", np.int32), ("mask", np.bool_), ("index", np.int32)):
            assert batch[key].shape == (batch_size,) and batch[key].dtype == dtype
    padding = len(found) * batch_size - 11
    merged = rows(loader)
    image, label, mask, index = merged["image"], merged["label"], merged["mask"], merged["index"]
    np.testing.assert_array_equal(mask, [True] * 11 + [False] * padding)
    np.testing.assert_array_equal(index, [*range(11)] + [-1] * padding)
    np.testing.assert_array_equal(label, [0] * 6 + [1] * 5 + [0] * padding)
    # Nine columns are kept of nine, and of twelve rows the middle nine: round(1.5) leaves out two above.
    np.testing.assert_array_equal(image[:11], PIXELS[:, 2:11])
    assert not image[11:].any()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [33, 65, 120])
def test_batches_of_several_chunks_are_those_of_one(folder: ImageFolder, batch_size: int, workers: int):
    """Sizes that the chunks do not divide, of which the last chunks are smaller; one of them beyond the data set."""
    from torch.utils.data import ConcatDataset

    expected = rows(eval_loader(folder, EVALUATE, 1, workers=0))
    copies: Any = [folder] * 9
    loader = eval_loader(ConcatDataset(copies), EVALUATE, batch_size, classes=folder.classes, workers=workers)
    found = rows(loader)
    np.testing.assert_array_equal(found["index"][:99], range(99))
    assert (found["index"][99:] == -1).all() and len(found["index"]) == len(loader) * batch_size
    for key in ("image", "label", "mask"):
        np.testing.assert_array_equal(found[key][:99], np.concatenate([expected[key]] * 9))
        assert not found[key][99:].any()


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_can_be_repeated_and_broken_off(folder: ImageFolder, workers: int):
    loader = eval_loader(folder, EVALUATE, 3, workers=workers)
    for _ in loader:
        break
    whole = [batch["index"].tolist() for batch in loader]
    assert whole == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, -1]]


@pytest.mark.parametrize(("count", "batch_size"), [(2, 4), (3, 2), (4, 16), (12, 3)])
def test_hosts_share_an_evaluation_set(folder: ImageFolder, count: int, batch_size: int):
    """Each example once over all of them, as many batches for each, and the pixels of a single host."""
    whole = rows(eval_loader(folder, EVALUATE, 11, workers=0))
    loaders = [eval_loader(folder, EVALUATE, batch_size, workers=0, shard=Shard(host, count)) for host in range(count)]
    assert len({len(loader) for loader in loaders}) == 1
    assert {loader.num_examples for loader in loaders} == {11}
    found = [rows(loader) for loader in loaders]
    index, mask, image = (np.concatenate([batch[key] for batch in found]) for key in ("index", "mask", "image"))
    np.testing.assert_array_equal(np.sort(index[mask]), range(11))
    np.testing.assert_array_equal(image[mask], whole["image"][index[mask]])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_picture_reaches_the_caller_by_name(damaged: ImageFolder, workers: int):
    """As it would without workers: the class, and one line; and the workers end."""
    with pytest.raises(ImageError, match=r"^image '.*07\.png' .*truncated") as raised:
        list(eval_loader(damaged, EVALUATE, 4, workers=workers))
    assert type(raised.value) is ImageError and "\n" not in str(raised.value)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 16])
def test_a_damaged_picture_can_be_left_out(damaged: ImageFolder, batch_size: int, workers: int):
    """Its row stays, masked, so that it can be named; all others are as they would be without it."""
    loader = eval_loader(damaged, EVALUATE, batch_size, workers=workers, on_bad_image="skip")
    found = rows(loader)
    index, mask = found["index"], found["mask"]
    assert [loader.name(i) for i in index[(index >= 0) & ~mask]] == ["train/b/07.png"]
    np.testing.assert_array_equal(index[mask], np.setdiff1d(range(11), [7]))
    expected = EVALUATE(damaged[10].image)
    np.testing.assert_array_equal(found["image"][10], expected)


@pytest.mark.parametrize("kind", ["timm", "torchvision"])
def test_damage_under_another_librarys_data_set_is_found_too(kind: str, damaged: ImageFolder):
    """timm's would give the next picture, with its label, in place of the damaged one."""
    from timm.data.dataset_factory import create_dataset
    from torchvision.datasets import ImageFolder as TorchvisionImageFolder

    root = str(damaged.path(0).parents[1])
    dataset = create_dataset("", root) if kind == "timm" else TorchvisionImageFolder(root)
    with pytest.raises(ImageError, match=r"^image '.*07\.png' cannot be decoded \(.*truncated"):
        list(eval_loader(dataset, EVALUATE, 4, workers=0))
    found = rows(eval_loader(dataset, EVALUATE, 11, workers=0, on_bad_image="skip"))
    np.testing.assert_array_equal(np.flatnonzero(~found["mask"]), [7])
    damaged.path(7).unlink()
    with pytest.raises(ImageError, match=r"^image '.*07\.png' cannot be .*No such file"):
        list(eval_loader(dataset, EVALUATE, 4, workers=0))


@pytest.mark.parametrize("kind", ["jeffnet", "timm", "torchvision"])
def test_a_pipe_is_an_error_at_once(kind: str, folder: ImageFolder):
    from timm.data.dataset_factory import create_dataset
    from torchvision.datasets import ImageFolder as TorchvisionImageFolder

    root = str(folder.path(0).parents[1])
    dataset = {"timm": lambda: create_dataset("", root), "torchvision": lambda: TorchvisionImageFolder(root)}.get(
        kind, lambda: folder
    )()
    folder.path(1).unlink()
    os.mkfifo(folder.path(1))
    with pytest.raises(ImageError, match=r"cannot be read \(it is a pipe"):
        list(eval_loader(dataset, EVALUATE, 4, workers=0))


def test_timms_transform_of_labels_is_kept(folder: ImageFolder):
    from timm.data.dataset_factory import create_dataset

    dataset = create_dataset("", str(folder.path(0).parents[1]), target_transform=lambda label: 1 - label)
    found = rows(eval_loader(dataset, EVALUATE, 11, workers=0))
    np.testing.assert_array_equal(found["label"], 1 - folder.labels)


def pixels_of(picture: Any, **options: Any) -> np.ndarray:
    loader = eval_loader(Pairs((picture, 0)), EVALUATE, 1, classes=["a"], workers=0, **options)
    return rows(loader)["image"][0]


def test_pictures_may_be_of_pil_arrays_or_tensors_of_the_right_size():
    import torch

    image = Image.fromarray(PIXELS[0])
    expected = EVALUATE(image)
    assert np.ptp(expected) > 50
    alpha = np.dstack([PIXELS[0], PIXELS[1, :, :, 0]])
    for picture in (image, PIXELS[0], alpha, torch.tensor(expected).permute(2, 0, 1)):
        np.testing.assert_array_equal(pixels_of(picture), expected)
    grey = EVALUATE(Image.fromarray(PIXELS[0, :, :, 0]))
    for picture in (PIXELS[0, :, :, 0], PIXELS[0, :, :, :1], Image.fromarray(PIXELS[0, :, :, 0])):
        np.testing.assert_array_equal(pixels_of(picture), np.repeat(grey, 3, axis=2))
        np.testing.assert_array_equal(pixels_of(picture, channels=1), grey)


def test_a_palette_with_transparency_is_left_as_it_was():
    image = Image.fromarray(PIXELS[0]).quantize(8)
    expected = EVALUATE(image.convert("RGB"))
    image.info["transparency"] = bytes(8)
    np.testing.assert_array_equal(pixels_of(image), expected)
    assert image.info["transparency"] == bytes(8)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_pictures_of_more_than_8_bits_are_refused_not_clipped(dtype: type):
    with pytest.raises(ImageError, match=r"^image 'example 0' cannot be decoded .*8 bits"):
        pixels_of(Image.fromarray(np.full((9, 9), 40_000, dtype)))


@pytest.mark.parametrize(
    ("example", "fault"),
    [
        ((np.zeros((9, 9, 3), np.float32), 0), r"float32 \(9, 9, 3\): remove its transform"),
        ((np.zeros((3, 9, 9), np.uint8), 0), r"uint8 \(3, 9, 9\): remove its transform"),
        (("a.jpg", 0), "str as a picture"),
        ((PIXELS[0], "a"), "'a' as a label"),
        ((PIXELS[0], 0.5), "0.5 as a label"),
        ((PIXELS[0], 2), "'example 0' the label 2, but has 2 classes"),
        ((PIXELS[0], -1), "'example 0' the label -1, but has 2 classes"),
        ((PIXELS[0],), "tuple: "),
        ({"image": PIXELS[0], "label": 0}, "dict: "),
    ],
    ids=["float", "CHW", "path", "text", "share", "large", "negative", "alone", "dict"],
)
def test_what_a_data_set_must_not_give_is_an_error(example: Any, fault: str):
    """Also where bad images are skipped: it is the data set that is wrong."""
    loader = eval_loader(Pairs(example), EVALUATE, 1, classes=["a", "b"], workers=0, on_bad_image="skip")
    with pytest.raises(DatasetError, match=f"^data set Pairs gives .*{fault}"):
        list(loader)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("dtype", "shape"), [("float32", (3, 8, 8)), ("uint8", (3, 9, 8)), ("uint8", (8, 8, 3))])
def test_tensors_of_another_type_or_size_are_refused(dtype: str, shape: tuple[int, ...], workers: int):
    """From a worker too the error is one line."""
    import torch
    from torch.utils.data import TensorDataset

    dataset = TensorDataset(torch.zeros(4, *shape, dtype=getattr(torch, dtype)), torch.zeros(4, dtype=torch.int64))
    loader = eval_loader(dataset, EVALUATE, 4, classes=["a"], workers=workers)
    with pytest.raises(DatasetError, match=rf"torch\.{dtype} \({shape[0]}, .*remove its transform") as raised:
        list(loader)
    assert "\n" not in str(raised.value)


def test_a_defect_of_the_data_set_is_not_a_bad_picture():
    class Broken(Pairs):
        def __getitem__(self, index: int) -> Any:
            raise KeyError("defect")

    with pytest.raises(KeyError, match="defect"):
        list(eval_loader(Broken(0), EVALUATE, 1, classes=["a"], workers=0, on_bad_image="skip"))


def test_names_and_classes_are_those_that_the_data_set_knows(folder: ImageFolder):
    """A string called `filename`, as CIFAR10 has, names no example; torchvision's ImageNet has synonyms."""
    plain = Pairs((PIXELS[0], 1))
    vars(plain).update(classes=[("tench", "Tinca tinca"), ("goldfish",)], filename="cifar-10-python.tar.gz")
    loader = eval_loader(plain, EVALUATE, 1, workers=0)
    assert loader.classes == ("tench, Tinca tinca", "goldfish") and loader.name(0) == "example 0"
    assert eval_loader(plain, EVALUATE, 1, classes=["x", "y"], workers=0).classes == ("x", "y")
    for attribute in ("samples", "imgs"):
        vars(plain)[attribute] = [("x/0.png", 1)]
        assert eval_loader(plain, EVALUATE, 1, workers=0).name(0) == "x/0.png"
        del vars(plain)[attribute]
    assert eval_loader(folder, EVALUATE, 1, workers=0).name(3) == "train/a/03.png"
    with pytest.raises(DatasetError, match=r"^data set Pairs does not say .*pass classes"):
        eval_loader(Pairs((PIXELS[0], 0)), EVALUATE, 1, workers=0)


def test_a_grey_source_gives_one_channel_unless_told_otherwise():
    pytest.importorskip("sklearn")
    digits = Digits("val")
    grey, colour = (rows(eval_loader(digits, EVALUATE, 64, channels=channels, workers=0)) for channels in (None, 3))
    assert grey["image"].shape[3] == 1
    np.testing.assert_array_equal(colour["image"], np.repeat(grey["image"], 3, axis=3))


def test_data_sets_without_numbered_examples_are_refused():
    from torch.utils.data import IterableDataset

    class Endless(IterableDataset):
        def __iter__(self):
            return itertools.count()

    for dataset in (Endless(), iter([1])):
        with pytest.raises(DatasetError, match="is not map-style"):
            eval_loader(dataset, EVALUATE, 1, classes=["a"])


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 0}, {"workers": -1}, {"on_bad_image": "drop"}],
    ids=str,
)
def test_a_setting_out_of_range_is_an_error_naming_it(folder: ImageFolder, options: dict[str, Any]):
    with pytest.raises(ConfigError, match=f"^{next(iter(options))} "):
        eval_loader(folder, EVALUATE, **{"batch_size": 1, **options})


def test_without_pytorch_the_extra_is_named(folder: ImageFolder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch.utils.data", None)
    with pytest.raises(DatasetError, match=r"pip install torch"):
        eval_loader(folder, EVALUATE, 1)


def test_what_cannot_be_pickled_is_an_error_saying_so(folder: ImageFolder):
    vars(folder)["transform"] = lambda image: image
    with pytest.raises(DatasetError, match=r"^data set ImageFolder cannot be sent to worker processes .*0 workers$"):
        list(eval_loader(folder, EVALUATE, 4, workers=1))
    assert len(list(eval_loader(folder, EVALUATE, 4, workers=0))) == 3


def test_a_worker_that_dies_is_an_error(folder: ImageFolder):
    """As where memory runs out; this one is killed while it waits for a place for its next chunk."""
    loader = eval_loader(folder, EVALUATE, 1, workers=1)
    batches = iter(loader)
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid or 0, signal.SIGKILL)
    with pytest.raises(DatasetError, match=r"worker process of the loader died .*memory"):
        list(batches)


def test_no_worker_is_left_behind(folder: ImageFolder):
    """Neither at the end nor where the caller breaks off."""
    loader = eval_loader(folder, EVALUATE, 1, workers=2)
    list(loader)
    assert not multiprocessing.active_children()
    batches = iter(loader)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    del batches
    gc.collect()
    assert not multiprocessing.active_children()


PROGRAM = """
import sys
import jax
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.data.preprocess import EvalTransform
from jeffnet.data.pytorch import eval_loader
from jeffnet.data.sources import Example, ImageFolder

class Asking(ImageFolder):
    def __getitem__(self, index):
        import threading, torch
        assert "jax._src.xla_bridge" not in sys.modules or not jax._src.xla_bridge._backends, "JAX's threads"
        return super().__getitem__(index)._replace(label=torch.get_num_threads() - 1)

if __name__ == "__main__":
    jax.block_until_ready(jax.numpy.zeros(3) + 1)
    loader = eval_loader(Asking(sys.argv[1]), EvalTransform(Preprocessing(8)), 4, workers=2)
    print([batch["label"].tolist() for batch in loader])
"""


def test_worker_processes_start_beside_jax_and_share_the_processors(folder: ImageFolder, tmp_path: Path):
    """A program whose JAX runs: workers are none of its forks, which JAX warns of, and have one thread each."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    command = [sys.executable, "-W", "error::RuntimeWarning", str(path), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]\n" and "Warning" not in done.stderr


def test_what_worker_processes_import_is_light():
    """Beside torch, NumPy and Pillow: each of many processes would pay for JAX's import and memory."""
    program = "import sys, jeffnet.data.pytorch; print({'jax', 'flax', 'grain', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
