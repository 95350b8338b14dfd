"""Small models to export, what they compute, and a format for tests of what all formats share."""

import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))


def _random_arrays(arrays: dict[str, Any]) -> dict[str, np.ndarray]:
    """Every array random, so that a norm that is left out, or another's, changes the logits."""
    rng = np.random.default_rng(0)
    draws = {
        "kernel": lambda x: x * rng.uniform(0.8, 1.2, x.shape),
        "scale": lambda x: rng.uniform(0.5, 1.5, x.shape),
        "var": lambda x: rng.uniform(0.5, 1.5, x.shape),
        "bias": lambda x: rng.normal(0, 0.1, x.shape),
        "mean": lambda x: rng.normal(0, 0.1, x.shape),
    }
    return {name: draws[name.rpartition(".")[2]](array).astype(np.float32) for name, array in arrays.items()}


@pytest.fixture(scope="module")
def network_of(tiny_model: str, every_operation: None) -> Callable[..., Any]:
    """The `ExportNetwork` of a model of 7 classes, by its name and the options of its file."""
    from jeffnet.arch.zoo import model_preprocessing
    from jeffnet.export.network import ExportNetwork
    from jeffnet.export.options import ExportOptions
    from jeffnet.weights.card import ModelCard
    from jeffnet.weights.start import Start, start_model

    @cache
    def start_of(name: str) -> Start:
        start = start_model(name, num_classes=7)
        return Start(start.plan, _random_arrays(dict(start.arrays)))

    def network(name: str, **options: Any) -> ExportNetwork:
        preprocessing, classes = model_preprocessing(name), tuple("abcdefg")
        return ExportNetwork.of(start_of(name), ModelCard(name, 7, 3, preprocessing, classes), ExportOptions(**options))

    network.start_of = start_of  # pyright: ignore[reportFunctionMemberAccess]
    return network


@pytest.fixture(scope="module")
def metadata_of() -> Callable[..., Any]:
    """What a file of a target says of an `ExportNetwork`."""
    from dataclasses import replace

    from jeffnet.export.metadata import ExportMetadata

    def metadata(target: str, network: Any) -> ExportMetadata:
        return ExportMetadata(target, network.card, replace(network.options, image_size=network.image_size))

    return metadata


@pytest.fixture(scope="module")
def expected_of(network_of: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """What the file of an `ExportNetwork` must give, by the model that was not folded."""
    import jax

    from jeffnet.functional import ImageClassifier, to_variables

    @cache
    def compiled(name: str) -> Callable[[Any], Any]:
        start = network_of.start_of(name)  # pyright: ignore[reportFunctionMemberAccess]
        variables = to_variables(start.arrays)
        return jax.jit(lambda images: ImageClassifier(start.plan).apply(variables, images))

    def expected(network: Any, images: np.ndarray) -> np.ndarray:
        if network.options.layout == "nchw":
            images = images.transpose(0, 2, 3, 1)
        if network.takes_pixels:
            preprocessing = network.card.preprocessing
            mean, std = (np.asarray(values, np.float32) for values in (preprocessing.mean, preprocessing.std))
            images = (images.astype(np.float32) / 255 - mean) / std
        logits = np.asarray(compiled(network.card.model)(images))
        if "softmax" not in network.options.include:
            return logits
        powers = np.exp(logits - logits.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)

    return expected


@pytest.fixture(scope="module")
def pictures_of() -> Callable[..., np.ndarray]:
    """Random pictures as the file of an `ExportNetwork` takes them."""

    def pictures(network: Any, count: int) -> np.ndarray:
        like, rng = network.images(count), np.random.default_rng(1)
        if like.dtype == np.uint8:
            return rng.integers(0, 256, like.shape, np.uint8)
        return rng.normal(size=like.shape).astype(np.float32)

    return pictures


@pytest.fixture
def fake(monkeypatch):
    """The format 'fake', with files `*.fake`, as a module."""
    import fake_target

    from jeffnet.export import run, snippet
    from jeffnet.export.targets import TARGETS, Target

    monkeypatch.setitem(TARGETS, "fake", Target("fake_target", (".fake",), "onnx"))
    monkeypatch.setitem(run._STARTS, "fake", lambda start: start.startswith(b"FAKE"))
    monkeypatch.setitem(snippet._IMPORTS, "fake", "import fake_target")
    monkeypatch.setitem(snippet._RUNS, "fake", "outputs = fake_target.open_runner({path!r})(images)")
    monkeypatch.setattr(fake_target, "faults", {})
    return fake_target


@pytest.fixture
def tiny(tiny_model):
    """A model of three classes, whose norms have random statistics, and its card: as `from_pretrained` gives them."""
    import numpy as np

    from jeffnet.arch.zoo import model_preprocessing
    from jeffnet.functional import build
    from jeffnet.ops.init import initial_arrays
    from jeffnet.weights.card import ModelCard
    from jeffnet.weights.start import Start

    card = ModelCard("tiny_flat", 3, 3, model_preprocessing("tiny_flat"), ("cat", "dog", "owl"))
    arrays, rng = dict(initial_arrays(card.plan(), 0)), np.random.default_rng(0)
    for name, array in arrays.items():
        if name.endswith((".mean", ".bias")):
            arrays[name] = rng.normal(0, 0.3, array.shape).astype(np.float32)
        elif name.endswith((".var", ".scale")):
            arrays[name] = rng.uniform(0.5, 2, array.shape).astype(np.float32)
    return build(Start(card.plan(), arrays)), card


@pytest.fixture
def run_example(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Runs the code of docs/export_formats.md that has a text, for smaller pictures: what it defines."""
    page = Path(__file__).parents[2].joinpath("docs", "export_formats.md").read_text(encoding="utf-8")

    def run(text: str, path: Path) -> dict[str, Any]:
        (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if text in block]
        monkeypatch.chdir(path.parent)
        names: dict[str, Any] = {}
        exec(
            compile(code.replace("224", "32").replace('"b0', f'"{path.stem}'), "docs/export_formats.md", "exec"), names
        )
        return names

    return run
