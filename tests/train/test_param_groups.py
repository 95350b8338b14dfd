"""Parameter groups: layer-wise rates against timm's, patterns, and what decays."""

import jax
import pytest

from jeffnet.arch.summary import array_specs
from jeffnet.arch.zoo import list_models, model_plan
from jeffnet.errors import ConfigError
from jeffnet.train.config import OptimizerConfig, ParamGroup
from jeffnet.train.param_groups import layer_factors, treatments
from jeffnet.weights.timm import TIMM


def parameters(model):
    return {name: spec for name, spec in array_specs(model_plan(model)).items() if spec.is_parameter}


def shapes(model):
    return {name: jax.ShapeDtypeStruct(spec.shape, "float32") for name, spec in parameters(model).items()}


SHAPES = shapes("mnasnet_small")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "name",
    [
        "tf_efficientnet_b0",
        "tf_mobilenetv3_large_minimal_100",
        "mixnet_s",
        "fbnetv3_b",
        "mobilenetv1_100",
        "mobilenetv4_hybrid_medium_075",
        "efficientnet_cc_b0_4e",
        "efficientnet_b0_gn",
        "gc_efficientnetv2_rw_t",
    ],
)
def test_layer_decay_and_weight_decay_are_timms(timm, name):
    """Of every parameter."""
    import torch
    from timm.optim import param_groups_layer_decay

    with torch.device("meta"):
        model = timm.create_model(name)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.7)
    expected = {
        names[id(parameter)]: (group["lr_scale"], group["weight_decay"])
        for group in groups
        for parameter in group["params"]
    }
    treated = treatments(OptimizerConfig(weight_decay=0.05, layer_decay=0.7), shapes(name))
    theirs = TIMM.names(model_plan(name), ())
    ours = {theirs[key]: treated[key] for key in parameters(name)}
    assert {name: (treatment.rate, treatment.weight_decay) for name, treatment in ours.items()} == expected


@pytest.mark.parametrize("name", list_models())
def test_every_parameter_of_every_model_has_a_layer(name):
    factors = layer_factors(parameters(name), 0.5)
    blocks = sum(len(stage) for stage in model_plan(name).stages)
    assert factors["classifier.kernel"] == 1
    assert factors["conv_stem.kernel"] == factors["bn1.bias"] == 0.5 ** (blocks + 1) == min(factors.values())
    assert len(set(factors.values())) == blocks + 2


def test_frozen_parameters_count_as_layers():
    frozen = [name for name in SHAPES if name.startswith("blocks.1.")]
    trained = {name: shape for name, shape in SHAPES.items() if name not in frozen}
    config = OptimizerConfig(layer_decay=0.5)
    whole = treatments(config, SHAPES)
    assert treatments(config, trained, frozen) == {name: whole[name] for name in trained}
    assert treatments(config, trained)["conv_stem.kernel"].rate > whole["conv_stem.kernel"].rate


def test_the_first_group_that_matches_counts():
    groups = (
        ParamGroup(pattern="classifier.bias", learning_rate=3.0),
        ParamGroup(pattern="classifier.*", learning_rate=10.0, weight_decay=0.5),
        ParamGroup(pattern="*.bias", weight_decay=0.25),
    )
    treated = treatments(OptimizerConfig(groups=groups, weight_decay=0.1, layer_decay=0.5), SHAPES)
    plain = layer_factors(SHAPES, 0.5)
    for name, treatment in treated.items():
        rate = {"classifier.bias": 3.0, "classifier.kernel": 10.0}.get(name, 1.0) * plain[name]
        decay = 0.1 if name.endswith("kernel") else 0.25 if name.endswith("bias") else 0.0
        decay = {"classifier.bias": 0.0, "classifier.kernel": 0.5}.get(name, decay)
        assert (treatment.rate, treatment.weight_decay) == (rate, decay), name


def test_norms_and_biases_decay_only_where_all_do():
    for decay_all in (False, True):
        treated = treatments(OptimizerConfig(weight_decay=0.1, decay_all=decay_all), SHAPES)
        for name, treatment in treated.items():
            assert treatment.weight_decay == (0.1 if decay_all or name.endswith(".kernel") else 0.0)


def test_a_pattern_without_a_parameter_is_refused():
    config = OptimizerConfig(groups=(ParamGroup(pattern="clasifier.*"),))
    with pytest.raises(ConfigError, match=r"'clasifier\.\*' matches no parameter; the nearest are classifier\."):
        treatments(config, SHAPES)
    config = OptimizerConfig(groups=(ParamGroup(pattern="conv_stem.*"),))
    trained = {name: shape for name, shape in SHAPES.items() if name != "conv_stem.kernel"}
    with pytest.raises(ConfigError, match="matches frozen parameters only"):
        treatments(config, trained, ["conv_stem.kernel"])
    treatments(config, SHAPES)


@pytest.mark.parametrize("entry", ["learning_rate", "weight_decay"])
def test_a_negative_value_of_a_group_is_refused(entry):
    with pytest.raises(ConfigError, match=rf"'classifier\.\*' with {entry} -1"):
        ParamGroup(pattern="classifier.*", **{entry: -1.0})
