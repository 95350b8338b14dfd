"""Models by name, wildcard or `all`, and batch sizes that fit."""

import jax
import pytest

import jeffnet.validation.batch_size as batch_size_module
from jeffnet.arch.zoo import list_models, model_plan, resolve_name
from jeffnet.errors import ConfigError, UnknownModelError
from jeffnet.validation.batch_size import BatchSize, picture_bytes
from jeffnet.validation.candidates import Candidate, select_models


def names(*arguments):
    return [candidate.name for candidate in select_models(*arguments)]


def test_names_wildcards_and_all():
    assert names("mixnet_s") == ["mixnet_s"]
    assert names("tf_efficientnet_b[0-1].ns_*, mixnet_s,tf_efficientnet_b1.ns_jft_in1k") == [
        "tf_efficientnet_b0.ns_jft_in1k", "tf_efficientnet_b1.ns_jft_in1k", "mixnet_s",
    ]  # fmt: skip
    assert names("all") == list_models(pretrained=True)
    assert set(names("*.*")) == {resolve_name(name) for name in list_models(tags=True)}
    assert names("pt_mixnet_s, tf_efficientnet_b0_ap") == ["mixnet_s", "tf_efficientnet_b0.ap_in1k"]  # older names
    # Without published weights, but one may have others.
    assert names("efficientnet_l*", "{model}.safetensors")
    with pytest.raises(UnknownModelError, match="no model with published weights matches"):
        list(select_models("efficientnet_l2*", None))


def test_weights_belong_to_one_model_or_have_its_name_in_theirs():
    assert select_models(None, "w") == [Candidate(None, "w")]
    assert select_models("mixnet_s", "w") == [Candidate("mixnet_s", "w")]
    assert select_models("mixnet_s,mixnet_m", "x/{model}.pth") == [
        Candidate("mixnet_s", "x/mixnet_s.pth"), Candidate("mixnet_m", "x/mixnet_m.pth"),
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"for 2 models: put \{model\}"):
        select_models("mixnet_s,mixnet_m", "w")
    with pytest.raises(ConfigError, match="--model NAME"):
        select_models(None, None)
    for nothing in ("resnet*", "resnet50"):
        with pytest.raises(UnknownModelError, match="resnet"):
            select_models(nothing, None)


def out_of_memory_above(limit, error):
    tried = []

    def work(size):
        tried.append(size)
        if size > limit:
            raise error
        return size

    return work, tried


@pytest.mark.parametrize(
    "error", [jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying"), MemoryError()]
)
def test_a_free_batch_size_is_halved_until_it_fits_and_stays(error, caplog):
    batch_size = BatchSize("auto")
    start = batch_size.value
    work, tried = out_of_memory_above(10, error)
    assert batch_size.run(work) == 8
    assert tried == [start, start // 2, start // 4, start // 8][: len(tried)] and tried[-1] == 8
    assert batch_size.run(work) == 8 and tried.count(8) == 2
    assert "going on with a batch size of 8" in caplog.text


def test_a_chosen_batch_size_is_not_changed():
    work, tried = out_of_memory_above(10, MemoryError())
    with pytest.raises(ConfigError, match="batch of 16 does not fit"):
        BatchSize(16).run(work)
    assert tried == [16]
    work, _ = out_of_memory_above(0, MemoryError())
    with pytest.raises(ConfigError, match="batch of 1 does not fit"):
        BatchSize("auto").run(work)


def test_a_free_batch_size_begins_with_what_is_likely_to_fit(monkeypatch):
    """EfficientNet-B0's largest map at 224 px is 112 x 112 x 96 of float32, 4.8 MB."""
    need = picture_bytes(model_plan("tf_efficientnet_b0"), 224, 224)
    assert need == 3 * 4 * 112 * 112 * 96
    for free, expected in ((10 * need / 0.7, 8), (0, 1), (10**15, None)):
        monkeypatch.setattr(batch_size_module, "_free_bytes", lambda device, free=free: free)
        batch_size = BatchSize("auto")
        start = batch_size.value
        batch_size.fit(need)
        assert batch_size.value == (expected or start)
        chosen = BatchSize(77)
        chosen.fit(need)
        assert chosen.value == 77
    monkeypatch.undo()
    assert all(batch_size_module._free_bytes(device) > 0 for device in jax.local_devices())


def test_other_errors_pass():
    work, tried = out_of_memory_above(0, jax.errors.JaxRuntimeError("INTERNAL: something else"))
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        BatchSize("auto").run(work)
    assert len(tried) == 1
