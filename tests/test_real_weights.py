"""Trained weights on photographs: every way from a file to probabilities ends where timm's does."""

import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from PIL import Image

from jeffnet.arch.imagenet import class_titles
from jeffnet.arch.zoo import model_preprocessing
from jeffnet.backends import BACKENDS, load_backend
from jeffnet.data.preprocess import EvalTransform
from jeffnet.ops.image import normalize
from jeffnet.weights.card import ModelCard

NAME = "tf_efficientnet_lite0"
TOLERANCE = 1e-5
# Of timm's blocks: the first has no expansion.
FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
OTHERS = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}  # fmt: skip
AROUND = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}


class Answers(NamedTuple):
    """Of a model to the photographs: its normalised pictures, its probabilities, and its card."""

    images: np.ndarray
    probabilities: np.ndarray
    card: ModelCard


def _normalized(pixels: Any) -> np.ndarray:
    preprocessing = model_preprocessing(NAME)
    return np.asarray(normalize(np.asarray(pixels), preprocessing.mean, preprocessing.std), np.float32)


def _answers(backend: str, images: np.ndarray, weights: Path) -> tuple[np.ndarray, Any, ModelCard]:
    module = load_backend(backend)
    *model, card = module.from_pretrained(weights, NAME)
    apply, arrays = module.inference(*model)
    return np.asarray(jax.nn.softmax(jax.jit(apply)(arrays, images))), model, card


@pytest.fixture(scope="module")
def answers(photographs: dict[Path, str], lite0_weights: Path) -> Answers:
    """Of the backend of functions."""
    transform = EvalTransform(model_preprocessing(NAME))
    images = _normalized(np.stack([transform(Image.open(path).convert("RGB")) for path in photographs]))
    probabilities, _, card = _answers("functional", images, lite0_weights)
    return Answers(images, probabilities, card)


def _check(probabilities: np.ndarray, answers: Answers, tolerance: float = TOLERANCE) -> None:
    """The same five classes in the same order, and the same probability of every class."""
    np.testing.assert_allclose(probabilities, answers.probabilities, atol=tolerance)
    np.testing.assert_array_equal(_five(probabilities), _five(answers.probabilities))


def _five(probabilities: np.ndarray) -> np.ndarray:
    return np.argsort(-probabilities, axis=1)[:, :5]


def test_photographs_are_of_their_classes(answers: Answers, photographs: dict[Path, str]):
    found = [answers.card.classes[first] for first in _five(answers.probabilities)[:, 0]]
    assert found == list(photographs.values())


def test_timm_answers_the_same(timm, answers: Answers, photographs: dict[Path, str], lite0_weights: Path):
    """With its own pictures, and the file's arrays under its names."""
    import torch

    state = {}
    reference = timm.create_model(NAME)
    blocks = [f"blocks.{stage}.{place}" for stage, part in enumerate(reference.blocks) for place in range(len(part))]
    for name, array in torch.load(lite0_weights, weights_only=True).items():
        match = re.fullmatch(r"(?:_blocks\.(?P<block>\d+)\.)?(?P<layer>\w+)\.(?P<leaf>\w+)", name)
        number = match["block"]
        layers = AROUND if number is None else FIRST if number == "0" else OTHERS
        prefix = "" if number is None else f"{blocks[int(number)]}."
        state[f"{prefix}{layers[match['layer']]}.{match['leaf']}"] = array
    reference.load_state_dict(state, strict=True)
    config = timm.data.resolve_data_config({}, model=reference)
    transform = timm.data.create_transform(**config)
    images = torch.stack([transform(Image.open(path).convert("RGB")) for path in photographs])
    np.testing.assert_allclose(images.numpy().transpose(0, 2, 3, 1), answers.images, atol=1e-6)
    with torch.no_grad():
        _check(torch.softmax(reference.eval()(images), 1).numpy(), answers)


@pytest.mark.parametrize("backend", [backend for backend in BACKENDS if backend != "functional"])
def test_backends_answer_the_same(backend: str, answers: Answers, lite0_weights: Path):
    if backend == "objax":
        pytest.importorskip("objax")
    probabilities, _, _ = _answers(backend, answers.images, lite0_weights)
    _check(probabilities, answers)


def test_the_fused_model_answers_the_same(answers: Answers, lite0_weights: Path):
    from jeffnet.functional import from_pretrained
    from jeffnet.inference.fused import fuse

    functions, variables, _ = from_pretrained(lite0_weights, NAME)
    fused = fuse(functions, variables, batch_size=len(answers.images), image_size=answers.images.shape[1])
    _check(np.asarray(jax.nn.softmax(fused(answers.images))), answers)


def test_what_commands_run_on_a_cpu_answers_the_same(
    answers: Answers, photographs: dict[Path, str], lite0_weights: Path
):
    """Pixels in, logits as near as 1e-5 of the largest, from the weights of the file on."""
    from jeffnet.inference.fused_forward import BY_FUSED, FusedForward, computed_by
    from jeffnet.weights.start import start_pretrained

    assert computed_by("functional", "float32") == BY_FUSED
    start, card = start_pretrained(lite0_weights, NAME, place=lambda array: array)
    transform = EvalTransform(card.preprocessing)
    pixels = np.stack([transform(Image.open(path).convert("RGB")) for path in photographs])
    logits = np.asarray(FusedForward(start, card.preprocessing)({}, pixels))
    # Up to a summand for each picture, which a softmax takes away.
    expected = np.log(answers.probabilities)
    expected += (logits - expected).mean(1, keepdims=True)
    assert np.abs(logits - expected).max() <= TOLERANCE * np.abs(logits).max()
    np.testing.assert_array_equal(_five(logits), _five(answers.probabilities))


@pytest.fixture(scope="module")
def folder(photographs: dict[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The photographs as a data set, whose order is that of their classes."""
    from jeffnet.data.sources import ImageFolder

    root = tmp_path_factory.mktemp("photographs")
    for path, wordnet in photographs.items():
        (root / "val" / wordnet).mkdir(parents=True)
        shutil.copy(path, root / "val" / wordnet)
    return ImageFolder(root, "val")


@pytest.mark.parametrize("loader", ["grain", "pytorch", "tensorflow"])
def test_loaders_give_the_same_pictures(loader: str, folder: Any, answers: Answers, photographs: dict[Path, str]):
    """Bit for bit; TensorFlow's but for rounding."""
    transform, count = EvalTransform(model_preprocessing(NAME)), len(photographs)
    if loader == "grain":
        from jeffnet.data.loaders import eval_loader

        batches = eval_loader(folder, transform, count, threads=0)
    elif loader == "pytorch":
        pytest.importorskip("torch")
        from jeffnet.data.pytorch import eval_loader

        batches = eval_loader(folder, transform, count, workers=0)
    else:
        pytest.importorskip("tensorflow")
        from jeffnet.data.tensorflow import eval_loader

        batches = eval_loader(folder, "val", transform, count, threads=0, resize="pillow")
    (batch,) = batches
    wordnets = list(photographs.values())
    order = [wordnets.index(name) for name in sorted(wordnets)]
    assert batch["label"].tolist() == list(range(count))
    steps = np.abs(_normalized(batch["image"]) - answers.images[order]) * 255 / 2
    if loader == "tensorflow":
        # Pillow rounds between its two passes, and clips what bicubic interpolation overshoots.
        assert steps.max() < 6 and steps.mean() < 0.25
    else:
        assert steps.max() == 0


def test_the_page_on_exporting_names_a_photograph(
    photographs: dict[Path, str], lite0_weights: Path, tmp_path, monkeypatch, capsys
):
    """The code of docs/export.md as it stands there."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    page = Path(__file__).parents[1].joinpath("docs", "export.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python notest\n(.*?)```", page, re.DOTALL)
    path, name = next((path, name) for path, name in photographs.items() if path.suffix == ".jpg")
    shutil.copy(path, tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JEFFNET_OFFLINE", "1")
    exec(compile(code, "docs/export.md", "exec"), {})
    assert capsys.readouterr().out.splitlines()[-1] == class_titles([name])[0]
