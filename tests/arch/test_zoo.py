"""The models: their names, sizes, costs and preprocessing, against facts from outside jeffnet."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jeffnet.arch import zoo
from jeffnet.arch.families import mobilenet, searched
from jeffnet.arch.imagenet import LABEL_SETS
from jeffnet.arch.lower import lower
from jeffnet.arch.model import Architecture, Model, WeightSet
from jeffnet.arch.operations import Conv, SqueezeExcite
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.spec import as_tensorflow
from jeffnet.arch.summary import array_specs, count_macs, count_parameters, layers
from jeffnet.arch.zoo import MODELS, list_models, model_plan, model_preprocessing, model_spec, resolve_name
from jeffnet.errors import ArchitectureError, JeffnetError, UnknownModelError

FACTS = json.loads(Path(__file__).parents[1].joinpath("zoo_facts.json").read_text(encoding="utf-8"))
# timm's name of every set of weights, and ours: the first of an architecture is called like it.
TIMM_NAMES = {
    f"{name}.{tag}": f"{name}.{tag}" if place else name
    for name, facts in FACTS.items()
    for place, tag in enumerate(facts["weights"])
}

every_model = pytest.mark.parametrize("name", FACTS)


def test_all_models_are_there():
    """All of timm's EfficientNet and MobileNet modules but its test models, and eight of Keras and TensorFlow."""
    assert len(FACTS) == 157 and len(TIMM_NAMES) == 166
    assert list_models() == sorted(FACTS)
    assert list_models(tags=True) == sorted(TIMM_NAMES)


@every_model
def test_parameters_and_statistics_are_exact(name):
    """To the unit: one block, one width or one bias more or less shows."""
    plan = model_plan(name)
    specs = array_specs(plan).values()
    sizes = {is_parameter: 0 for is_parameter in (True, False)}
    for spec in specs:
        length = 1
        for axis in spec.shape:
            length *= axis
        sizes[spec.is_parameter] += length
    assert sizes[True] == FACTS[name]["parameters"]
    assert FACTS[name]["statistics"] in (None, sizes[False])
    assert count_parameters(plan) == FACTS[name]["parameters"]


@every_model
def test_macs_are_within_half_a_percent(name):
    if FACTS[name]["macs"] is None:
        pytest.skip("the reference does not count products of attention and of mixed kernels")
    macs = count_macs(model_plan(name), FACTS[name]["image_size"])
    assert macs == pytest.approx(FACTS[name]["macs"], rel=5e-3)


@every_model
def test_widths_and_depths(name):
    plan = model_plan(name)
    assert plan.num_features == FACTS[name]["num_features"]
    assert FACTS[name]["blocks"] in (None, sum(1 for _ in plan.blocks))


@every_model
def test_preprocessing_is_exact(name):
    facts = FACTS[name]
    assert model_preprocessing(name) == Preprocessing(
        image_size=facts["image_size"],
        crop_pct=facts["crop_pct"],
        interpolation=facts["interpolation"],
        mean=tuple(facts["mean"]),
        std=tuple(facts["std"]),
        crop_mode=facts["crop_mode"],
        train_size=facts["train_size"],
    )


@every_model
def test_layers_add_up_to_the_model(name):
    """The table that users see leaves no parameter out and counts none twice."""
    plan = model_plan(name, num_classes=7, in_chans=4)
    rows = layers(plan, 96)
    assert sum(row.parameters for row in rows) == count_parameters(plan)
    assert sum(row.macs for row in rows) == count_macs(plan, 96)
    assert len({row.name for row in rows}) == len(rows)


@pytest.mark.parametrize("name", ["efficientnet_es", "tf_efficientnet_es"])
def test_edgetpu_has_the_lower_cost(name):
    """1.789 G, not the 2.3 G of an expansion that computes what a strided projection throws away; in both paddings."""
    assert count_macs(model_plan(name), 224) == pytest.approx(1.789e9, rel=5e-3)


@pytest.mark.parametrize(
    ("name", "parameters", "expanded"),
    [("es", 5_438_392, 96), ("em", 6_899_496, 96), ("el", 10_589_712, 128)],
)
@pytest.mark.parametrize("prefix", ["", "tf_"])
def test_edgetpu_expands_what_the_block_string_says(prefix, name, parameters, expanded):
    """Defect 1 of the earlier implementation: its first block multiplied the stem's width, not `fc24`."""
    plan = model_plan(f"{prefix}efficientnet_{name}")
    assert count_parameters(plan) == parameters
    expansion = plan.stages[0][0].ops[0]
    assert expansion.in_channels == plan.stem.out_channels
    assert expansion.out_channels == expanded != 4 * plan.stem.out_channels


def test_fbnet_expands_where_the_expansion_is_1():
    """Defect 2: blocks with expansion 1 have their expansion convolution all the same, as the weights' names tell."""
    plan = model_plan("fbnetc_100")
    assert count_parameters(plan) == 5_572_200
    unexpanded = [block for block in plan.blocks if block.ops[0].in_channels == block.ops[0].out_channels]
    assert len(unexpanded) == 3
    assert all(block.ops[0].name == f"{block.name}.conv_pw" for block in plan.blocks)


@pytest.mark.parametrize("name", [name for name in FACTS if "mixnet" in name])
def test_mixnet_mixes_kernels_of_different_sizes(name):
    """Defect 4: all parts of a mixed convolution once had one size, since a list was no longer a list."""
    convs = [op for block in model_plan(name).blocks for op in block.ops if isinstance(op, Conv)]
    mixed = [[part.kernel_size for part in conv.parts] for conv in convs if conv.name.endswith("conv_dw")]
    assert all(sizes == list(range(3, 3 + 2 * len(sizes), 2)) for sizes in mixed)
    assert max(map(len, mixed)) == (5 if name.endswith("_s") else 4)
    pointwise = [conv for conv in convs if not conv.name.endswith("conv_dw")]
    assert {len(conv.parts) for conv in pointwise} == {1, 2}
    assert {part.kernel_size for conv in pointwise for part in conv.parts} == {1}
    for conv in convs:
        for part in conv.parts:
            shape = array_specs(model_plan(name))[f"{part.name}.kernel"].shape
            assert shape[:2] == (part.kernel_size, part.kernel_size)


def test_squeeze_and_excitation_rules():
    """MobileNetV3 takes its ratio of the expanded channels, in steps of 8; EfficientNet of the block's input."""

    def reduced(name):
        ops = [op for block in model_plan(name).blocks for op in block.ops if isinstance(op, SqueezeExcite)]
        return [(op.channels, op.reduced, op.act, op.gate) for op in ops]

    assert reduced("efficientnet_b0")[:2] == [(32, 8, "silu", "sigmoid"), (96, 4, "silu", "sigmoid")]
    assert reduced("mobilenetv3_large_100")[0] == (72, 24, "relu", "hard_sigmoid")
    assert reduced("mobilenetv2_100") == []


@pytest.mark.parametrize("timm_name", TIMM_NAMES)
def test_published_names_of_timm_are_aliases(timm_name):
    assert resolve_name(timm_name) == TIMM_NAMES[timm_name]
    assert model_plan(timm_name) == model_plan(TIMM_NAMES[timm_name])


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("pt_mobilenetv3_large_100", "mobilenetv3_large_100"),
        ("pt_efficientnet_b0", "efficientnet_b0"),
        ("pt_efficientnet_b0.ra_in1k", "efficientnet_b0"),
        ("tf_efficientnet_b0_ns", "tf_efficientnet_b0.ns_jft_in1k"),
        ("tf_efficientnet_b8_ap", "tf_efficientnet_b8.ap_in1k"),
        ("tf_efficientnet_l2_ns", "tf_efficientnet_l2"),
        ("tf_efficientnet_l2_ns_475", "tf_efficientnet_l2.ns_jft_in1k_475"),
        ("mnasnet_a1", "semnasnet_100"),
        ("mnasnet_b1", "mnasnet_100"),
        ("tf_efficientnet_b0", "tf_efficientnet_b0"),
    ],
)
def test_other_names_are_aliases(alias, name):
    assert resolve_name(alias) == name
    assert model_spec(alias) is MODELS[name].spec
    assert model_preprocessing(alias) == model_preprocessing(name)


@pytest.mark.parametrize(
    ("name", "stem", "features"),
    [("mobilenetv2_060", 24, 1280), ("tf_mobilenetv2_060", 24, 1280), ("tf_mobilenetv2_175", 56, 2240)],
)
def test_mobilenetv2_is_there_in_any_width(name, stem, features):
    """Though not every one of 999 is listed; an alias of one is timm's name."""
    plan = model_plan(name)
    assert (plan.stem.out_channels, plan.num_features) == (stem, features)
    assert name.startswith("tf_") or model_plan(f"pt_{name}") == plan
    assert model_preprocessing(name) == model_preprocessing(f"{'tf_' * name.startswith('tf_')}mobilenetv2_100")
    assert name not in list_models()


@pytest.mark.parametrize("name", list_models("*mobilenetv2_???"))
def test_widths_that_are_listed_are_as_those_that_are_not(name):
    model = mobilenet.scaled(name)
    assert lower(model.spec) == model_plan(name)
    assert model.preprocessing == model_preprocessing(name)


def test_mnasnet_has_widths_that_are_not_listed():
    """As those that are; 1.3 is torchvision's, which has 6,282,256 parameters."""
    for name in ("mnasnet_050", "mnasnet_075", "mnasnet_100", "mnasnet_140"):
        assert lower(searched.scaled(name).spec) == model_plan(name)
    assert count_parameters(model_plan("mnasnet_130")) == 6_282_256 and "mnasnet_130" not in list_models()


@pytest.mark.parametrize(
    "name", ["tf_mobilenetv2_000", "tf_mobilenetv2_60", "tf_mobilenetv2_0600", "mobilenetv2", "mnasnet_000"]
)
def test_other_names_are_no_widths(name):
    with pytest.raises(UnknownModelError):
        model_spec(name)


@every_model
def test_a_models_own_name_is_no_alias(name):
    assert resolve_name(name) == name


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("efficientnet_b9", "efficientnet_b8"),
        ("tf_eficientnet_b1", "tf_efficientnet_b1"),
        ("mobilenet_v3_small", "mobilenetv3_small_100"),
        ("fbnet", "fbnetc_100"),
        ("tf_efficientnet_b3.wrong_tag", "tf_efficientnet_b3"),
    ],
)
def test_an_unknown_name_is_answered_with_near_ones(name, near):
    with pytest.raises(UnknownModelError) as raised:
        model_plan(name)
    message = str(raised.value)
    assert f"unknown model {name!r}" in message and near in message
    for suggestion in message.partition("near it: ")[2].split(", "):
        resolve_name(suggestion)  # every suggestion is a name that works
    assert isinstance(raised.value, JeffnetError)


@pytest.mark.parametrize("name", ["", "zzz", "*"])
def test_a_name_near_nothing_points_to_the_list(name):
    with pytest.raises(UnknownModelError, match="jeffnet list"):
        resolve_name(name)


def test_models_are_listed_by_wildcard():
    assert list_models("tf_efficientnet_b[0-2]") == ["tf_efficientnet_b0", "tf_efficientnet_b1", "tf_efficientnet_b2"]
    assert list_models("mnasnet_[1s]*") == ["mnasnet_100", "mnasnet_140", "mnasnet_small"]
    assert list_models("efficientnet_b1.*", tags=True) == [
        "efficientnet_b1.ft_in1k",
        "efficientnet_b1.ra4_e3600_r240_in1k",
    ]
    assert not [name for name in list_models() if "." in name or name.startswith("pt_")]
    assert list_models("nothing*") == []


def test_wildcards_match_earlier_names():
    """Where no present name matches."""
    assert list_models("pt_efficientnet_b?") == [f"efficientnet_b{number}" for number in range(9)]
    assert list_models("pt_efficientnet_*b0") == ["efficientnet_b0", "efficientnet_blur_b0"]
    assert list_models("tf_*_b[01]_ns") == [f"tf_efficientnet_b{number}.ns_jft_in1k" for number in range(2)]
    assert list_models("tf_*_b[01]_ns", tags=True) == list_models("tf_*_b[01]_ns")
    assert list_models("pt_efficientnet_b[08]", pretrained=True) == ["efficientnet_b0"]
    assert list_models("pt_efficientnet_b[08]", tags=True) == list_models("efficientnet_b0.*")


def test_an_earlier_name_lists_its_model():
    assert list_models("pt_efficientnet_b0") == ["efficientnet_b0"]
    assert list_models("tf_efficientnet_b0_ns") == ["tf_efficientnet_b0.ns_jft_in1k"]
    assert list_models("efficientnet_b0.ra_in1k") == ["efficientnet_b0.ra_in1k"]


def test_suggestions_do_not_repeat():
    with pytest.raises(UnknownModelError) as raised:
        resolve_name("tf_efficientnet_b0.nope")
    near = str(raised.value).partition("near it: ")[2].split(", ")
    assert len(set(near)) == len(near) > 1


def test_published_weights_are_known_with_their_scores():
    published = {name: model for name, model in MODELS.items() if model.weights}
    assert sorted(published) == sorted(TIMM_NAMES.values())
    assert list_models(pretrained=True) == [name for name, facts in FACTS.items() if facts["weights"]]
    for name, model in published.items():
        architecture, _, tag = model.timm.partition(".")
        top1, top5, num_classes = FACTS[architecture]["weights"][tag]
        assert TIMM_NAMES[model.timm] == name
        assert (model.weights.top1, model.weights.top5) == (top1, top5)
        assert LABEL_SETS[model.weights.classes] == num_classes


def test_weight_sets_of_one_architecture_are_models():
    """The first is called like the architecture; the others have the tag in their name."""
    sets = {"a": WeightSet(1, 2, "0"), "b": WeightSet(3, 4, "1", {"image_size": 96})}
    spec, preprocessing = model_spec("efficientnet_b0"), Preprocessing(64, 1.0)
    assert Architecture(spec, preprocessing, **sets).models("net") == {
        "net": Model(spec, preprocessing, "net.a", sets["a"]),
        "net.b": Model(spec, Preprocessing(96, 1.0), "net.b", sets["b"]),
    }
    assert Architecture(spec).models("tf_net") == {"tf_net": Model(as_tensorflow(spec), Preprocessing())}


def test_a_model_defined_twice_is_an_error():
    with pytest.raises(ArchitectureError, match="'b' is defined twice"):
        zoo._merge([{"a": 1, "b": 2}, {"c": 3, "b": 2}])


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"image_size": 0}, "image_size 0"),
        ({"crop_pct": 0.0}, "crop_pct 0.0"),
        ({"crop_pct": 1.1}, "crop_pct 1.1"),
        ({"interpolation": "nearest"}, "'nearest' is not one of bicubic, bilinear"),
        ({"mean": (0.5,)}, "as many of each"),
        ({"std": (0.2, 0.2, 0.0)}, "no std of 0"),
        ({"mean": 0.5}, "mean 0.5: give a number for each channel"),
        ({"std": ("0.5",) * 3}, "give a number for each channel"),
        ({"crop_pct": "0.9"}, "crop_pct '0.9'"),
    ],
)
def test_impossible_preprocessing_is_an_error(options, fault):
    with pytest.raises(ArchitectureError) as raised:
        Preprocessing(**options)
    assert fault in str(raised.value)


HEAVY = ("jax", "jaxlib", "flax", "numpy", "torch", "timm")
USE_THE_ZOO = """
from jeffnet.arch.summary import array_specs, count_macs, layers
from jeffnet.arch.zoo import MODELS, list_models, model_plan, model_preprocessing
assert len(list_models()) == 157
for name in MODELS:
    plan = model_plan(name, num_classes=10)
    assert array_specs(plan) and count_macs(plan, model_preprocessing(name).image_size)
"""


def _loaded(script):
    """Which heavy packages a fresh interpreter has loaded after a script."""
    report = f"import sys; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"{script}\n{report}"], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.split()


def test_the_zoo_needs_no_arrays():
    assert _loaded(USE_THE_ZOO) == []


def test_the_test_above_can_fail():
    assert "numpy" in _loaded(f"{USE_THE_ZOO}\nimport numpy")
