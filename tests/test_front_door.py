"""What `import jeffnet` offers: models of any backend by one function, with the same shape of return."""

import inspect
import pydoc

import jax.numpy as jnp
import numpy as np
import pytest

import jeffnet
from jeffnet.backends import BACKENDS, convert, load_backend, to_start
from jeffnet.checkpoints import save_checkpoint
from jeffnet.errors import ArchitectureError, JeffnetError, UnknownOptionError
from jeffnet.functional import fuse
from jeffnet.weights.start import ModelOptions, PretrainedOptions

pytestmark = pytest.mark.users

IMAGES = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def file(tiny_model, tmp_path_factory):
    """A file of weights with three classes."""
    path = tmp_path_factory.mktemp("weights") / "three.safetensors"
    model = load_backend("functional").create_model("tiny_flat", num_classes=3, rng=11)
    save_checkpoint(path, model, "tiny_flat", classes=("cat", "dog", "eel"))
    return path


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_come_as_the_same_three_things_in_every_backend(backend, file):
    loaded = jeffnet.from_pretrained(file, backend=backend)
    module = load_backend(backend)
    assert loaded.card.classes == ("cat", "dog", "eel")
    if backend in ("linen", "functional"):
        model, variables, card = loaded
        assert loaded.variables is variables and set(variables) == {"params", "batch_stats"}
        apply, arrays = module.inference(model, variables)
    else:
        model, card = loaded
        assert loaded.variables is None
        apply, arrays = module.inference(model)
    assert isinstance(model, module.ImageClassifier) and loaded.model is model and loaded.card is card
    expected = np.asarray(apply(arrays, IMAGES))
    # What takes a model takes all of it.
    np.testing.assert_allclose(fuse(loaded, batch_size=2, image_size=32)(IMAGES), expected, rtol=1e-4, atol=1e-5)
    assert to_start(convert(loaded, "functional")).plan == to_start(loaded).plan


def test_the_backend_is_nnx_unless_given(tiny_model):
    assert isinstance(jeffnet.create_model("tiny_flat"), jeffnet.nnx.ImageClassifier)
    model, variables = jeffnet.create_model("tiny_flat", "linen", num_classes=5)
    assert model.apply(variables, IMAGES).shape == (2, 5)
    with pytest.raises(JeffnetError, match="backend 'flax' is not one of linen, nnx"):
        jeffnet.create_model("tiny_flat", backend="flax")


def test_weights_take_the_options_that_do_not_contradict_them(file):
    start = to_start(
        jeffnet.from_pretrained(
            file, param_dtype="bfloat16", drop_rate=0.3, drop_path_rate=0.2, bn_momentum=0.7, remat=True
        )
    )
    assert (start.plan.drop_rate, start.plan.bn_momentum, start.remat) == (0.3, 0.7, True)
    assert list(start.plan.blocks)[-1].drop_path_rate > 0
    assert start.arrays["conv_stem.kernel"].dtype == jnp.bfloat16 and start.arrays["bn1.mean"].dtype == jnp.float32
    loaded = jeffnet.from_pretrained(file, num_classes=7, in_chans=1, rng=3)
    assert loaded.card.classes == () and loaded.model(IMAGES[..., :1]).shape == (2, 7)
    other = jeffnet.from_pretrained(file, num_classes=7, rng=4).model
    assert not np.array_equal(other.classifier.kernel.get_value(), loaded.model.classifier.kernel.get_value())
    assert jeffnet.from_pretrained(file, num_classes=0).model(IMAGES).shape == (2, 16)
    with pytest.raises(UnknownOptionError, match=r"no option 'global_pool'; there are num_classes, .*remat"):
        jeffnet.from_pretrained(file, global_pool="max")
    with pytest.raises(ArchitectureError, match=r"drop_rate 1\.0"):
        jeffnet.from_pretrained(file, drop_rate=1.0)


@pytest.mark.parametrize("module", ["jeffnet", *(f"jeffnet.{name}" for name in BACKENDS)])
def test_help_shows_every_option(module):
    page = pydoc.locate(module)
    for function, kind in ((page.create_model, ModelOptions), (page.from_pretrained, PretrainedOptions)):
        parameters = inspect.signature(function).parameters
        assert [name for name in kind.__annotations__ if name not in parameters] == []
        assert all(each.kind is not inspect.Parameter.VAR_KEYWORD for each in parameters.values())
        text = pydoc.plain(pydoc.render_doc(function))
        assert [name for name in kind.__annotations__ if f"  {name}: " not in text] == []
        assert "their 0.1 is 0.9 here" in text
    assert inspect.signature(page.create_model).parameters["output_stride"].default == 32


def test_options_that_are_shown_are_the_defaults(tiny_model):
    """None as the number of classes is as good as no number."""
    shown = {
        name: each.default
        for name, each in inspect.signature(jeffnet.create_model).parameters.items()
        if name in ModelOptions.__annotations__
    }
    assert to_start(jeffnet.create_model("tiny_flat", **shown)).plan == to_start(jeffnet.create_model("tiny_flat")).plan
