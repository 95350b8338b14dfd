"""What a model looks at: the methods against references, in all backends, and the pictures that show it."""

import io
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jeffnet
from jeffnet import functional
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.backends import BACKENDS, load_backend
from jeffnet.cli.main import main
from jeffnet.data.preprocess import EvalTransform
from jeffnet.errors import ConfigError, InputError
from jeffnet.inference.explain import _NOISE, _SAMPLES, explain, explained, overlay, seen_part
from jeffnet.weights.start import start_model

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(2, 32, 32, 3))


@pytest.fixture(scope="module")
def start(tiny_model):
    return start_model("tiny_flat", num_classes=3, rng=4)


def _of_timm(model, layer, images, target):
    """A map of features of timm's model `(C, H, W)`, and the derivatives of a logit with respect to it, by a hook."""
    kept = []
    hook = model.get_submodule(layer).register_forward_hook(lambda _, __, output: kept.append(output))
    logits = model(images)
    hook.remove()
    (slopes,) = __import__("torch").autograd.grad(logits[0, target], kept)
    return kept[0][0].detach().numpy(), slopes[0].numpy()


def _scaled(heat):
    return (heat - heat.min()) / (heat.max() - heat.min())


@pytest.mark.parametrize("method", ["grad-cam", "grad-cam++"])
def test_class_activation_maps_are_those_of_timm(timm, x64, tmp_path, method):
    """In float64, with random statistics, by the equations of the papers; the first one's size is not the last's."""
    import torch

    torch.manual_seed(0)
    model = timm.create_model("lcnet_035", num_classes=7).double().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.01, 0.1)
            torch.nn.init.uniform_(module.bias, 0, 1)
    torch.nn.init.normal_(model.classifier.weight)
    torch.save(model.state_dict(), tmp_path / "lcnet.pth")
    start = start_model(
        "lcnet_035", num_classes=7, pretrained=tmp_path / "lcnet.pth", dtype=jnp.float64, param_dtype=jnp.float64
    )
    images = RNG.normal(size=(1, 96, 64, 3))
    tensor, seen = torch.from_numpy(images).permute(0, 3, 1, 2), set()
    for layer, target in itertools.product((None, start.plan.features[-2].name), range(7)):
        name = layer or start.plan.features[-1].name
        maps, slopes = _of_timm(model, name, tensor, target)
        if method == "grad-cam":
            weights = slopes.mean(axis=(1, 2))
        else:
            denominator = 2 * slopes**2 + maps.sum(axis=(1, 2))[:, None, None] * slopes**3 + 1e-6
            weights = (slopes**2 / denominator * np.maximum(slopes, 0)).sum(axis=(1, 2))
        heat = np.maximum((weights[:, None, None] * maps).sum(axis=0), 0)
        if layer in seen or np.ptp(heat) < 1e-3 * np.abs(weights[:, None, None] * maps).max():
            continue  # the class is nowhere, or the layer was compared
        seen.add(layer)
        heat = _scaled(heat)
        large = torch.nn.functional.interpolate(torch.from_numpy(heat)[None, None], (96, 64), mode="bilinear")
        found = explain(start, images, method, [target], layer)
        assert found.shape == (1, 96, 64) and found.dtype == np.float32
        np.testing.assert_allclose(found[0], _scaled(large[0, 0].numpy()), atol=1e-5)
    assert len(seen) == 2


def test_the_rest_of_a_network_gives_the_logits(tiny_model):
    for name in ("tiny", "tiny_tf"):
        model, variables = functional.create_model(name, num_classes=5, rng=1)

        @jax.jit
        def rests(images, model=model, variables=variables):
            maps = model.features(variables, images)
            return model.apply(variables, images), [
                model.from_features(variables, each, index) for index, each in enumerate(maps)
            ]

        logits, found = rests(IMAGES)
        assert len(found) == len(model.feature_info)
        for each in found:
            np.testing.assert_allclose(each, logits, rtol=1e-4, atol=1e-5)


def test_models_of_all_backends_are_explained_alike(start):
    for method in ("grad-cam", "smoothgrad"):
        expected = explain(start, IMAGES, method)
        assert expected.shape == (2, 32, 32) and expected.min() == 0 and expected.max() == 1
        of_classes = [explain(start, IMAGES, method, [label, label]) for label in range(3)]
        assert not np.array_equal(of_classes[0], of_classes[1]) or not np.array_equal(of_classes[1], of_classes[2])
        for backend in BACKENDS:
            if backend == "objax":
                pytest.importorskip("objax")
            model = load_backend(backend).build(start)
            np.testing.assert_allclose(explain(model, IMAGES, method), expected, atol=1e-4, err_msg=backend)


def test_smoothgrad_is_the_mean_of_slopes_of_noisy_pictures(start):
    model, variables = functional.build(start)
    images = jnp.asarray(IMAGES[:1], jnp.float32)
    slope = jax.grad(lambda images: model.apply(variables, images)[0, 2])
    noise = _NOISE * (images.max() - images.min())
    keys = jax.random.split(jax.random.key(0), _SAMPLES)
    total = np.mean([slope(images + noise * jax.random.normal(key, images.shape)) for key in keys], axis=0)
    heat = np.abs(total[0]).max(axis=-1)
    expected = _scaled(np.minimum(heat, np.percentile(heat, 99)))
    np.testing.assert_allclose(explain(start, images, "smoothgrad", [2])[0], expected, atol=1e-4)


def test_occlusion_shows_the_one_place_that_is_not_empty(start):
    """Covering what is empty already loses nothing."""
    image = np.zeros((1, 32, 32, 3), np.float32)
    image[0, 4:8, 20:24] = 3.0
    model, variables = functional.build(start)
    shares, empty = (jax.nn.softmax(model.apply(variables, jnp.asarray(each))) for each in (image, 0 * image))
    target = int((shares - empty).argmax())  # more probable with the square
    heat = explain(start, image, "occlusion", [target])[0]
    assert heat[4:8, 20:24].max() == 1 and heat[4:8, 20:24].min() > 0
    assert not heat[16:].any() and not heat[:, :12].any()
    # Windows of another colour would take probability from the class that the square makes less probable.
    assert not explain(start, image, "occlusion", [int((shares - empty).argmin())])[0][16:].any()


def test_overlays_show_the_part_that_the_model_sees():
    small = Image.fromarray(RNG.integers(0, 256, (4, 6, 3), np.uint8))
    for size, crop_mode in (((300, 200), "center"), ((200, 300), "center"), ((300, 200), "squash")):
        picture = small.resize(size, Image.Resampling.BICUBIC)
        transform = EvalTransform(Preprocessing(64, 0.8), crop_mode=crop_mode)
        part = seen_part(picture, transform)
        again = np.asarray(part.resize((64, 64), Image.Resampling.BICUBIC), np.float32)
        assert np.abs(again - transform(picture)).mean() < 1.5
    heat = np.zeros((8, 8), np.float32)
    heat[:, 4:] = 1
    shown = np.asarray(overlay(part, heat), np.float32)
    assert shown.shape[:2] == part.size[::-1] and np.ptp(shown[:, :80], axis=-1).max() < np.ptp(shown[:, -80:]).max()
    assert max(overlay(part.resize((2000, 1000)), heat).size) == 800


def test_what_cannot_be_explained_is_one_line(start):
    headless = start_model("tiny_flat", num_classes=0)
    options: Any
    for model, options, error, message in (
        (start, {"method": "lime"}, ConfigError, "method 'lime' is not one of grad-cam, "),
        (start, {"layer": "top"}, ConfigError, "layer 'top' is not one of "),
        (start, {"method": "occlusion", "layer": "blocks.0"}, ConfigError, "occlusion has no layer"),
        (start, {"classes": [3, 0]}, InputError, "the model has 3, 0 to 2"),
        (start, {"classes": [0]}, InputError, "are not 2 whole numbers"),
        (headless, {}, ConfigError, "has no classifier"),
    ):
        with pytest.raises(error, match=message):
            explain(model, IMAGES, **options)
    assert explain(start, IMAGES[:0]).shape == (0, 32, 32)


def test_the_command_draws_what_the_model_looks_at(start, tmp_path, capsys):
    classifier = jeffnet.Classifier(functional.build(start), name="tiny_flat")
    classifier.save(tmp_path / "tiny.safetensors")
    picture = tmp_path / "photo.png"
    Image.fromarray(RNG.integers(0, 256, (60, 90, 3), np.uint8)).save(picture)
    command = ["predict", str(picture), "--weights", str(tmp_path / "tiny.safetensors")]
    assert main([*command, "--output", str(tmp_path / "plain.png")]) == 0
    assert main([*command, "--explain", "grad-cam", "--output", str(tmp_path / "sheet.png")]) == 0
    plain, sheet = (
        np.asarray(Image.open(io.BytesIO((tmp_path / name).read_bytes()))) for name in ("plain.png", "sheet.png")
    )
    assert sheet.shape[1] > plain.shape[1] and sheet.shape[0] == plain.shape[0]
    capsys.readouterr()
    assert main([*command, "--explain", "occlusion"]) == 2
    assert capsys.readouterr().err == "error: --explain draws into --output: give its FILE too\n"
    shown = classifier.explain(picture)
    assert shown.size == (60, 60) and len(classifier.explain([picture, picture], classes=[0, 1])) == 2


def test_a_picture_without_a_class_is_explained_by_its_most_probable_one(start):
    """As where no label of several is above its threshold."""
    picture = Image.fromarray(RNG.integers(0, 256, (40, 40, 3), np.uint8))
    transform = EvalTransform(Preprocessing(32, 1.0))
    several = [explained(start, [picture], transform, classes=[number]) for number in range(3)]
    several = [np.asarray(shown[0]).tobytes() for shown in several]
    chosen, found = (explained(start, [picture], transform, classes=classes) for classes in ([None], None))
    assert np.asarray(chosen[0]).tobytes() == np.asarray(found[0]).tobytes() in several
    assert len(set(several)) > 1
