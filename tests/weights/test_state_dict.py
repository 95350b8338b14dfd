"""State dicts as training loops leave them: the network's arrays are found, and what was left out is said."""

import logging

import numpy as np
import pytest
from safetensors.numpy import save_file

from jeffnet.errors import WeightsError
from jeffnet.weights.load import read_weights
from jeffnet.weights.state_dict import find_state_dict

STATE = {
    "conv_stem.weight": np.zeros((8, 3, 3, 3)),
    "bn1.running_var": np.ones(8),
    "blocks.0.0.conv_dw.weight": np.zeros((8, 1, 3, 3)),
    "classifier.weight": np.zeros((5, 8)),
    "classifier.bias": np.zeros(5),
}
LAST = {name: array + 1 for name, array in STATE.items()}
PREFIXES = (
    *("", "module.", "_orig_mod.", "model._orig_mod.", "_orig_mod.module.", "model.module.", "module.model.net."),
    *("_fsdp_wrapped_module.", "student.backbone.", "0.", "model.conv_stem."),
)


def _named(prefix, state=STATE):
    return {prefix + name: array for name, array in state.items()}


def _found(content):
    return find_state_dict(content, "a.pth")


def _is(found, expected=STATE):
    return found.keys() == expected.keys() and all(found[name] is expected[name] for name in expected)


@pytest.mark.parametrize("keys", [(), ("state_dict",), ("model", "weights"), ("anything",)], ids="-".join)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_any_prefix_comes_off_under_any_keys(prefix, keys):
    content = _named(prefix)
    for key in keys:
        content = {"epoch": 3, "best_acc1": np.float32(71.5), key: content, "optimizer": {"state": {0: LAST}}}
    assert _is(_found(content))


def test_wrappers_within_names_come_off():
    """Of parts that were compiled or wrapped alone."""
    within = {"conv_stem._orig_mod.weight", "blocks._orig_mod.0._checkpoint_wrapped_module.0.conv_dw.weight"}
    state = dict(zip(sorted(within), (STATE["blocks.0.0.conv_dw.weight"], STATE["conv_stem.weight"]), strict=True))
    assert _found(state).keys() == {"conv_stem.weight", "blocks.0.0.conv_dw.weight"}


def test_names_of_efficientnet_pytorch():
    state = {"_conv_stem.weight": np.zeros(1), "_blocks.0._bn1.weight": np.zeros(1), "_fc.bias": np.zeros(1)}
    assert _is(_found({"state_dict": _named("model.", state)}), state)


@pytest.mark.parametrize(
    "beside",
    [
        {"loss.weight": np.ones(3)},
        {"n_averaged": np.array(5)},
        {"criterion.margins": np.ones((2, 2)), "model.loss.weight": np.ones(3)},
    ],
    ids=lambda beside: next(iter(beside)),
)
@pytest.mark.parametrize("prefix", ["", "model.", "module."])
def test_arrays_of_no_network_are_left_out_with_a_warning(prefix, beside, caplog):
    with caplog.at_level(logging.WARNING, "jeffnet"):
        assert _is(_found({**_named(prefix), **beside}))
    assert all(repr(name) in caplog.text for name in beside) and "left out" in caplog.text


def test_what_belongs_to_a_network_is_never_left_out():
    """It is for the fit to the model to say that there is too much."""
    state = STATE | {"blocks.0.0.attention.weight": np.zeros(1), "norm_head.weight": np.zeros(1)}
    assert _is(_found(state), state)


def test_a_head_that_is_none_of_timms_is_said(caplog):
    headless = {name: array for name, array in STATE.items() if not name.startswith("classifier.")}
    with caplog.at_level(logging.WARNING, "jeffnet"):
        assert _is(_found(_named("backbone.", headless) | {"head.weight": np.zeros((5, 8))}), headless)
    assert "have no classifier; left out 'head.weight'" in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": LAST, "state_dict_ema": STATE},
        {"model": LAST, "model_ema": {"n_averaged": np.array(5), **_named("module.")}},
        {**_named("model.", LAST), **_named("ema_model.module.")},
        {"state_dict": {**_named("net.", LAST), **_named("swa.")}},
        {"ema": {"model": STATE}, "model": LAST},
    ],
    ids=lambda content: list(content)[-1],
)
def test_averaged_weights_come_before_others(content, caplog):
    with caplog.at_level(logging.WARNING, "jeffnet"):
        assert _is(_found(content))
    assert "took the averaged weights" in caplog.text


def test_an_average_of_nothing_is_none(caplog):
    """torch's AveragedModel begins with a copy of the weights at that time, which may be the initial ones."""
    never = {"n_averaged": np.array(0), **_named("module.", LAST)}
    assert _is(_found({"model": STATE, "model_ema": never}))
    with caplog.at_level(logging.WARNING, "jeffnet"):
        assert _is(_found(never), LAST)
    assert "'n_averaged' is 0" in caplog.text


@pytest.mark.parametrize(
    "content",
    [{**_named("student."), **_named("teacher.", LAST)}, {"generator": STATE, "encoder": LAST}],
    ids=["prefixes", "keys"],
)
def test_several_of_equal_standing_are_an_error(content):
    with pytest.raises(WeightsError, match=r"'a.pth' have several state dicts: .*save the one that you want alone"):
        _found(content)


def test_the_networks_own_key_comes_before_others():
    assert _is(_found({"best": LAST, "state_dict": STATE}))


def test_content_that_contains_itself_comes_to_an_end():
    content: dict = {"a": 1}
    content["self"] = content
    deep = {}
    for _ in range(10**4):
        deep = {"deeper": deep}
    for nested in (content, deep):
        with pytest.raises(WeightsError, match="no state dict in them"):
            _found(nested)
    assert _is(_found({"self": content, "model": STATE}))


@pytest.mark.parametrize("prefix", ["module.", "model._orig_mod."])
def test_prefixes_in_safetensors(prefix, tmp_path, caplog):
    save_file({**_named(prefix), "loss.weight": np.ones(3)}, tmp_path / "a.safetensors")
    with caplog.at_level(logging.WARNING, "jeffnet"):
        assert read_weights(tmp_path / "a.safetensors").arrays.keys() == STATE.keys()
    assert "'loss.weight'" in caplog.text and str(tmp_path / "a.safetensors") in caplog.text
