"""Fitting a source's arrays to a model: nothing goes in unseen, and all that is wrong is in one message."""

import logging

import ml_dtypes
import numpy as np
import pytest

from jeffnet.arch.summary import array_specs
from jeffnet.arch.zoo import model_plan
from jeffnet.errors import WeightsError
from jeffnet.ops.init import new_classifier
from jeffnet.weights.fit import adapt_input_channels, fit
from jeffnet.weights.naming import to_canonical_names, to_source_names
from jeffnet.weights.stored import stored
from jeffnet.weights.timm import EFFICIENTNET_PYTORCH, TIMM, state_dict_naming

PLAN = model_plan("mnasnet_small", num_classes=10)


def _state(plan=PLAN):
    """A timm state dict of values that tell every element of every array from all others."""
    rng = np.random.default_rng(0)
    ours = {name: np.zeros(spec.shape) for name, spec in array_specs(plan).items()}
    state = {name: rng.normal(size=array.shape) for name, array in to_source_names(ours, TIMM, plan).items()}
    return state | {"bn1.num_batches_tracked": np.asarray(7), "blocks.0.0.bn1.num_batches_tracked": np.asarray(7)}


def from_timm(state, plan, *, source="state dict", model="the model", initial=None):
    arrays = to_canonical_names({name: stored(value) for name, value in state.items()}, TIMM, plan)
    return fit(arrays, plan, source=source, model=model, initial=initial)


def test_layouts_turn_from_torchs_to_ours():
    state = _state()
    arrays = from_timm(state, PLAN)
    assert list(arrays) == list(array_specs(PLAN))
    names = TIMM.names(PLAN, ())
    for name, spec in array_specs(PLAN).items():
        theirs = state[names[name]]
        if theirs.ndim == 4:
            out, ins, row, column = (length - 1 for length in theirs.shape)
            assert arrays[name][row, column, ins, out] == theirs[out, ins, row, column]
            assert arrays[name][0, column, 0, out] == theirs[out, 0, 0, column]
        elif theirs.ndim == 2:
            np.testing.assert_array_equal(arrays[name], theirs.T)
        else:
            np.testing.assert_array_equal(arrays[name], theirs)
        assert arrays[name].shape == spec.shape


def test_torch_tensors_are_taken(timm):
    import torch

    state = {name: torch.from_numpy(np.asarray(value)) for name, value in _state().items()}
    expected = from_timm(_state(), PLAN)
    for name, array in from_timm(state, PLAN).items():
        np.testing.assert_array_equal(array, expected[name])


def test_a_timm_state_dict_is_recognised_by_its_first_convolution():
    assert state_dict_naming(_state()) is TIMM
    assert state_dict_naming({"_conv_stem.weight": np.ones(1)}) is EFFICIENTNET_PYTORCH


def test_all_faults_are_in_one_message():
    """A missing, a foreign and a misshapen array: what it was, what it should be, and how to mend it."""
    state = _state()
    del state["blocks.1.0.conv_dw.weight"], state["bn2.running_var"]
    state["blocks.9.0.conv_dw.weight"] = np.zeros(3)
    state["classifier.weight"] = np.zeros((1000, 1280))
    state["conv_stem.weight"] = np.zeros((8, 1, 3, 3))
    with pytest.raises(WeightsError) as raised:
        from_timm(state, PLAN, source="b0.safetensors", model="mnasnet_small")
    assert str(raised.value).splitlines() == [
        "weights 'b0.safetensors' do not fit mnasnet_small:",
        "  missing    (2): blocks.1.0.conv_dw.kernel, bn2.var",
        "  left over  (1): blocks.9.0.conv_dw.weight",
        "  misshapen  (2): conv_stem.kernel is (3, 3, 1, 8), the model has (3, 3, 3, 8): pass in_chans=1 to keep the "
        "file's input channels, or adapt=True to sum or repeat them, classifier.kernel is (1280, 1000), the model has "
        "(1280, 10): pass num_classes=1000 to keep the file's classes, or adapt=True to start a new classifier",
    ]


def test_arrays_of_another_width_bring_no_advice_on_channels_and_classes():
    state = _state() | {"classifier.weight": np.zeros((10, 64)), "conv_stem.weight": np.zeros((16, 3, 3, 3))}
    with pytest.raises(WeightsError, match=r"misshapen  \(2\): conv_stem\.kernel is") as raised:
        from_timm(state, PLAN)
    assert "in_chans" not in str(raised.value) and "num_classes" not in str(raised.value)


def test_long_lists_are_cut_but_counted():
    with pytest.raises(WeightsError) as raised:
        from_timm({"conv_stem.weight": _state()["conv_stem.weight"]}, PLAN)
    missing = next(line for line in str(raised.value).splitlines() if "missing" in line)
    count = len(array_specs(PLAN)) - 1
    assert f"({count}): " in missing and missing.endswith(f" and {count - 5} more")
    assert len(missing) < 250


@pytest.mark.parametrize("name", ["conv_head.weight", "blocks.2.1.bn3.running_mean", "classifier.bias"])
@pytest.mark.parametrize("fault", ["missing", "left over", "misshapen"])
def test_any_single_fault_is_found(name, fault):
    state = _state()
    if fault == "missing":
        del state[name]
    elif fault == "left over":
        state[f"{name}_"] = state[name]
    else:
        state[name] = state[name][1:]
    with pytest.raises(WeightsError, match=rf"{fault} +\(1\)"):
        from_timm(state, PLAN)


def test_the_same_number_of_values_in_another_shape_is_misshapen():
    """Defect 5 of the earlier implementation compared a shape with itself."""
    state = _state()
    state["conv_head.weight"] = state["conv_head.weight"].transpose(1, 0, 2, 3)
    with pytest.raises(WeightsError, match=r"misshapen +\(1\): conv_head.kernel"):
        from_timm(state, PLAN)


@pytest.mark.parametrize("fitting", [True, False], ids=["fit", "from_timm"])
def test_wrong_classes_go_in_only_when_asked(fitting, caplog):
    """Then the classifier starts anew, with a warning, and the trunk is the file's."""
    thousand = model_plan("mnasnet_small", num_classes=1000)
    initial = new_classifier(PLAN, 0)

    def load(**options):
        if fitting:
            return fit(from_timm(_state(thousand), thousand), PLAN, source="file", model="it", **options)
        return from_timm(_state(thousand), PLAN, source="file", model="it", **options)

    with pytest.raises(WeightsError, match="pass num_classes=1000 to keep"):
        load()
    with caplog.at_level(logging.INFO, "jeffnet"):
        arrays = load(initial=initial)
    assert "file: new classifier of 10 classes (the file has 1000 classes)" in caplog.text
    np.testing.assert_array_equal(arrays["classifier.kernel"], initial["classifier.kernel"])
    np.testing.assert_array_equal(arrays["classifier.bias"], initial["classifier.bias"])
    expected = from_timm(_state(thousand), thousand)
    for name in arrays.keys() - {"classifier.kernel", "classifier.bias"}:
        np.testing.assert_array_equal(arrays[name], expected[name])


def test_right_classes_stay_when_adapting_is_allowed(caplog):
    arrays = from_timm(_state(), PLAN, initial=new_classifier(PLAN, 0))
    np.testing.assert_array_equal(arrays["classifier.kernel"], _state()["classifier.weight"].T)
    assert not caplog.text


def test_a_model_without_classifier():
    """Leaves the file's out only when asked; a file without one gets a new one only when asked."""
    features = model_plan("mnasnet_small", num_classes=0)
    with pytest.raises(WeightsError, match=r"left over +\(2\): classifier.kernel, classifier.bias"):
        from_timm(_state(), features)
    assert set(from_timm(_state(), features, initial=new_classifier(features, 0))) == set(array_specs(features))
    with pytest.raises(WeightsError, match=r"missing +\(2\): classifier.kernel, classifier.bias"):
        from_timm(_state(features), PLAN)
    initial = new_classifier(PLAN, 0)
    arrays = from_timm(_state(features), PLAN, initial=initial)
    np.testing.assert_array_equal(arrays["classifier.kernel"], initial["classifier.kernel"])


@pytest.mark.parametrize("in_chans", [1, 2, 4, 6])
def test_input_channels_are_adapted_only_when_asked(in_chans, caplog):
    """A grey picture's response is the same over one channel as over the file's three, and over any number of them."""
    plan = model_plan("mnasnet_small", num_classes=10, in_chans=in_chans)
    with pytest.raises(WeightsError, match="pass in_chans=3 to keep"):
        from_timm(_state(), plan)
    with caplog.at_level(logging.WARNING, "jeffnet"):
        adapted = from_timm(_state(), plan, initial=new_classifier(plan, 0))
    assert f"from 3 to {in_chans} input channels" in caplog.text
    kernel, original = adapted["conv_stem.kernel"], from_timm(_state(), PLAN)["conv_stem.kernel"]
    assert kernel.shape == (3, 3, in_chans, 8)
    if in_chans == 1:
        np.testing.assert_allclose(kernel, original.sum(2, keepdims=True), rtol=1e-12)
    for channel in range(in_chans if in_chans > 1 else 0):
        np.testing.assert_allclose(kernel[:, :, channel], original[:, :, channel % 3] * 3 / in_chans, rtol=1e-12)
    if in_chans in (1, 6):
        np.testing.assert_allclose(kernel.sum(2), original.sum(2), rtol=1e-9, atol=1e-12)


def test_adapted_channels_keep_their_dtype():
    for in_chans in (1, 2, 6):
        assert adapt_input_channels(np.ones((3, 3, 3, 8), np.float32), in_chans).dtype == np.float32


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_an_error(value):
    state = _state()
    state["blocks.2.1.bn3.running_var"][3] = value
    with pytest.raises(WeightsError, match=r"NaN or infinite values: \(1\): blocks.2.1.bn3.var"):
        from_timm(state, PLAN, source="it")


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.bool_, np.complex64])
def test_other_dtypes_than_floats_are_an_error(dtype):
    state = _state()
    state["bn1.weight"] = np.ones(8, dtype)
    with pytest.raises(WeightsError, match=r"not floating point: \(1\): bn1.scale \("):
        from_timm(state, PLAN)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_float_dtypes_are_taken(dtype):
    state = {name: value.astype(dtype) for name, value in _state().items()}
    assert {array.dtype for array in from_timm(state, PLAN).values()} == {np.dtype(dtype)}
