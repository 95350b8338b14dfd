"""Lowering: widths, depths, strides, dilations, drop rates and options."""

import itertools
import re
from dataclasses import replace

import pytest

from jeffnet.arch.blocks import round_channels
from jeffnet.arch.lower import GLOBAL_POOLS, lower, scale_repeats
from jeffnet.arch.operations import Attention, Conv, Downsample, ExpertConv, SqueezeExcite
from jeffnet.arch.spec import ModelSpec, as_tensorflow
from jeffnet.arch.summary import array_specs, count_macs, layers, output_size
from jeffnet.arch.zoo import list_models, model_plan, model_spec
from jeffnet.errors import ArchitectureError, JeffnetError

SMALL = ModelSpec(stages=(("ds_r1_k3_s1_c16",), ("ir_r2_k5_s2_e6_c24_se0.25",)), stem=16, features=64)


def convs(plan):
    yield plan.stem
    for block in plan.blocks:
        yield from (op for op in block.ops if isinstance(op, Conv))
    yield plan.head


@pytest.mark.parametrize(
    ("channels", "width", "rounded"),
    [
        (32, 1.0, 32),
        (32, 1.1, 32),  # 35.2
        (16, 1.4, 24),  # 22.4
        (24, 0.75, 24),  # 18 would go down to 16, less than 90 % of it
        (40, 0.75, 32),  # 30
        (320, 4.3, 1376),
        (1280, 4.3, 5504),
        (3, 1.0, 8),
        (12, 1.0, 16),  # halves go up
        (1, 0.1, 8),
    ],
)
def test_round_channels(channels, width, rounded):
    assert round_channels(channels, width) == rounded


@pytest.mark.parametrize("divisor", [4, 8])
def test_rounded_channels_are_near_and_never_far_below(divisor):
    for channels, width in itertools.product(range(1, 400), (0.35, 0.75, 1.0, 1.1, 1.4, 2.2, 4.3)):
        wanted = channels * width
        rounded = round_channels(channels, width, divisor)
        assert rounded % divisor == 0 and rounded >= divisor and rounded >= 0.9 * wanted
        nearest = max(divisor, int(wanted / divisor + 0.5) * divisor)
        assert rounded == (nearest if nearest >= 0.9 * wanted else nearest + divisor)


@pytest.mark.parametrize(
    ("repeats", "depth", "rounding", "scaled"),
    [
        ([2], 1.0, "ceil", [2]),
        ([3], 1.1, "ceil", [4]),
        ([3], 1.1, "round", [3]),
        ([1], 3.1, "ceil", [4]),
        ([1, 3], 1.2, "round", [1, 4]),
        ([1, 1, 2], 2.0, "ceil", [2, 2, 4]),
        ([1, 1, 1, 1], 1.2, "ceil", [1, 2, 1, 1]),  # shares are rounded from the last to the first, half to even
        ([1, 1], 0.1, "ceil", [1, 1]),
        ([2, 2], 0.1, "round", [1, 1]),
    ],
)
def test_scale_repeats(repeats, depth, rounding, scaled):
    assert scale_repeats(repeats, depth, rounding) == scaled


@pytest.mark.parametrize(
    ("name", "depths"),
    [
        ("efficientnet_b0", [1, 2, 2, 3, 3, 4, 1]),
        ("efficientnet_b4", [2, 4, 4, 6, 6, 8, 2]),
        ("efficientnet_b7", [4, 7, 7, 10, 10, 13, 4]),
        ("tf_efficientnet_l2", [6, 11, 11, 16, 16, 22, 6]),
        ("efficientnet_lite4", [1, 4, 4, 6, 6, 8, 1]),  # its ends are not scaled
        ("mobilenetv2_120d", [1, 3, 5, 6, 5, 5, 1]),
        ("mixnet_xl", [1, 2, 5, 5, 5, 5]),  # rounded, not ceiled
    ],
)
def test_depths_of_the_papers(name, depths):
    assert [len(stage) for stage in model_plan(name).stages] == depths


def test_only_the_first_block_of_a_stage_strides():
    for name in list_models():
        for stage in model_plan(name).stages:
            assert all(op.stride == 1 for block in stage[1:] for op in block.ops if isinstance(op, Conv))


def test_a_residual_needs_equal_shapes():
    """A block adds its input where the string allows it, nothing strides and the width stays."""
    first, second = lower(SMALL).stages[1]
    assert (first.residual, second.residual) == (False, True)
    assert [stage[0].residual for stage in lower(SMALL).stages] == [True, False]
    forbidden = replace(SMALL, stages=(("ds_r1_k3_s1_c16_noskip",), ("ir_r2_k5_s2_e6_c24",)))
    assert not lower(forbidden).stages[0][0].residual


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("name", list_models())
def test_strides_never_exceed_the_output_stride(name, output_stride):
    """Strides become dilations, and the widths, names and parameters stay what they are."""
    if model_spec(name).downsample and output_stride < 32:
        pytest.skip("refused, as a test below shows")
    plain, plan = model_plan(name), model_plan(name, output_stride=output_stride)
    assert [feature.stride for feature in plan.features] == [min(stride, output_stride) for stride in (2, 4, 8, 16, 32)]
    assert [(f.name, f.channels, f.stage) for f in plan.features] == [
        (f.name, f.channels, f.stage) for f in plain.features
    ]
    assert array_specs(plan) == array_specs(plain)
    reached = 1
    for op in plan.operations:
        if isinstance(op, Downsample):
            reached *= 2
            continue
        if not isinstance(op, Conv | ExpertConv):
            continue  # keys and values of attention have a stride of their own
        conv = op.conv if isinstance(op, ExpertConv) else op
        reached *= conv.stride
        assert reached <= output_stride
        # A larger kernel reaches as far as it would on the map that the stride would have made.
        assert conv.dilation <= 32 // output_stride
        for part in conv.parts:
            assert conv.dilation == 1 or conv.stride == 1
            if not isinstance(part.padding, str) and conv.stride == 1:
                assert output_size(part, 1, conv.dilation, 13) == 13
    assert reached == output_stride


def test_dilation_starts_behind_the_stride_it_replaces():
    """The block that would have strided still sees a dense map; those behind it reach twice as far."""
    dilations = {
        stride: [
            [next(op for op in block.ops if op.name.endswith("conv_dw")).dilation for block in stage]
            for stage in model_plan("efficientnet_b0", output_stride=stride).stages
        ]
        for stride in (8, 16, 32)
    }
    assert dilations[32] == [[1], [1] * 2, [1] * 2, [1] * 3, [1] * 3, [1] * 4, [1]]
    assert dilations[16] == [[1], [1] * 2, [1] * 2, [1] * 3, [1] * 3, [1, 2, 2, 2], [2]]
    assert dilations[8] == [[1], [1] * 2, [1] * 2, [1, 2, 2], [2] * 3, [2, 4, 4, 4], [4]]


def test_paddings():
    """`symmetric` is half the dilated kernel, `same` depends on the input's size; EdgeTPU's expansion is symmetric."""
    symmetric, same = lower(SMALL, output_stride=8), lower(as_tensorflow(SMALL))
    assert symmetric.stem.parts[0].padding == ((1, 1), (1, 1))
    assert symmetric.stages[1][0].ops[1].parts[0].padding == ((2, 2), (2, 2))
    assert symmetric.head.parts[0].padding == ((0, 0), (0, 0))
    assert {part.padding for conv in convs(same) for part in conv.parts} == {"SAME"}
    dilated = model_plan("efficientnet_b0", output_stride=16).stages[5][1].ops[1]
    assert (dilated.dilation, dilated.parts[0].padding) == (2, ((4, 4), (4, 4)))
    edge = {op.name: op for block in model_plan("tf_efficientnet_es").blocks for op in block.ops}
    assert edge["blocks.1.0.conv_exp"].parts[0].padding == ((1, 1), (1, 1))
    assert edge["blocks.1.0.conv_exp"].stride == 2 and edge["blocks.1.0.conv_pwl"].stride == 1


@pytest.mark.parametrize("name", list_models())
def test_features_are_the_last_maps_before_each_stride(name):
    plan = model_plan(name)
    widths = {f"blocks.{index}": stage[-1].out_channels for index, stage in enumerate(plan.stages)}
    widths["bn1"] = plan.stem.out_channels
    assert [feature.channels for feature in plan.features] == [widths[feature.name] for feature in plan.features]
    assert [feature.stride for feature in plan.features] == [2, 4, 8, 16, 32]
    # Stage -1 is the stem's, which is a feature of its own only where the first block strides.
    assert [feature.name == "bn1" for feature in plan.features] == [feature.stage == -1 for feature in plan.features]
    assert (plan.features[0].name == "bn1") == bool(re.search(r"v3_small|v4|efficientnet_[xh]_", name))
    assert plan.features[-1].stage == len(plan.stages) - 1


@pytest.mark.parametrize("rate", [None, 0.0, 0.3])
def test_drop_path_rates_grow_linearly(rate):
    """Block i of n has i / n of the rate where it has a shortcut; None is the paper's 0.2."""
    blocks = list(model_plan("efficientnet_b0", drop_path_rate=rate).blocks)
    total = 0.2 if rate is None else rate
    rates = [total * index / len(blocks) if block.residual else 0.0 for index, block in enumerate(blocks)]
    assert [block.drop_path_rate for block in blocks] == pytest.approx(rates)
    assert sum(block.residual for block in blocks) == 9


def test_drop_rates_of_the_papers():
    assert [model_plan(f"efficientnet_b{index}").drop_rate for index in range(9)] == [
        0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5, 0.5, 0.5,
    ]  # fmt: skip
    assert model_plan("efficientnet_b0", drop_rate=0.0).drop_rate == 0.0
    assert model_plan("efficientnet_b0", drop_rate=0.7).drop_rate == 0.7


def test_batch_norm_constants():
    """TensorFlow's originals keep 99 % of their statistics a step, and add 1e-3 to the variance."""
    for name, momentum, epsilon in (("mixnet_s", 0.9, 1e-5), ("tf_mixnet_s", 0.99, 1e-3)):
        plan = model_plan(name)
        assert plan.bn_momentum == momentum
        assert {conv.norm.epsilon for conv in plan.convolutions if conv.norm} == {epsilon}


def test_options_reach_the_plan():
    plan = lower(SMALL, num_classes=7, in_chans=1, global_pool="max")
    assert (plan.in_chans, plan.stem.in_channels, plan.global_pool) == (1, 1, "max")
    assert (plan.classifier.in_features, plan.classifier.out_features) == (64, 7)
    assert lower(SMALL, num_classes=0).classifier is None
    trunk = set(array_specs(lower(SMALL, num_classes=0)))
    assert set(array_specs(lower(SMALL))) - trunk == {"classifier.kernel", "classifier.bias"}
    assert set(GLOBAL_POOLS) == {"avg", "max", "avgmax", "none"}


def test_costs_follow_the_pooling():
    """Without pooling the classifier, and MobileNetV3's head convolution, run at every position of the last map."""
    pooled, mapped = (layers(model_plan("mobilenetv3_small_100", global_pool=kind), 64) for kind in ("avg", "none"))
    for name in ("conv_head", "classifier"):
        one, many = (next(row for row in rows if row.name == name) for rows in (pooled, mapped))
        assert (one.out_size, many.out_size, many.macs) == (1, 2, 4 * one.macs)


@pytest.mark.parametrize("name", ["efficientnet_b0", "tf_efficientnet_b0"])
def test_costs_grow_with_the_picture(name):
    """The convolutions' cost goes with the area; 'SAME' and symmetric padding keep the same number of positions."""
    rows = {size: layers(model_plan(name), size) for size in (63, 64, 65, 128)}
    assert [rows[size][0].out_size for size in rows] == [32, 32, 33, 64]
    assert rows[128][0].macs == 4 * rows[64][0].macs == 64 * 64 * 27 * 32
    assert count_macs(model_plan(name), 63) == count_macs(model_plan(name), 64)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"num_classes": -1}, "num_classes -1"),
        ({"in_chans": 0}, "in_chans 0"),
        ({"drop_rate": 1.0}, "drop_rate 1.0"),
        ({"drop_rate": -0.1}, "drop_rate -0.1"),
        ({"drop_rate": float("nan")}, "drop_rate nan"),
        ({"drop_path_rate": 1.5}, "drop_path_rate 1.5"),
        ({"drop_path_rate": -1.0}, "drop_path_rate -1.0"),
        ({"global_pool": "mean"}, "global_pool 'mean' is not one of avg, max, avgmax, none"),
        ({"output_stride": 4}, "output_stride 4 is not one of 8, 16, 32"),
        ({"output_stride": 64}, "output_stride 64"),
    ],
)
def test_impossible_options_are_errors(options, fault):
    with pytest.raises(ArchitectureError) as raised:
        model_plan("efficientnet_b0", **options)
    assert fault in str(raised.value)
    assert isinstance(raised.value, JeffnetError)


def test_a_broken_block_string_is_an_error():
    with pytest.raises(ArchitectureError, match="'ir_r1_k4_s1_e6_c24'"):
        lower(replace(model_spec("efficientnet_b0"), stages=(("ir_r1_k4_s1_e6_c24",),)))


@pytest.mark.parametrize(
    ("stages", "options", "message"),
    [
        (("er_r1_k3_s2_e2_c8", "uir_r1_a3_k3_s2_e2_c8"), {"downsample": "blur"}, "blocks.2 halves .*; give 16 or 32, "),
        (("cn_r1_k3_s2_c8", "er_r1_k3_s2_e2_c8", "cn_r1_k3_s2_c8"), {"downsample": "blur"}, "blocks.2 .*; give 32, "),
        (("cn_r1_k3_s2_c8", "uir_r1_k3_p3_s2_e2_c8"), {}, "blocks.2 has a kernel after its stride.*; give 16 or 32, "),
        (("cn_r1_k3_s2_c8", "cn_r1_k3_s2_c8", "ds_r1_k3_s1_c8_d1"), {}, "blocks.3 packs positions .*; give 32, "),
    ],
)
def test_an_output_stride_that_dilation_cannot_give_is_refused(stages, options, message):
    spec = ModelSpec(stages=(("cn_r1_k3_s2_c8",), *((stage,) for stage in stages)), **options)
    lower(spec)
    with pytest.raises(ArchitectureError, match=f"output_stride 8: {message}and take the map at stride 8 "):
        lower(spec, output_stride=8)


def test_attention_keeps_its_reach_in_a_denser_map():
    """Its kernels are dilated as those of the other blocks, and it has no other distances."""
    plan = model_plan("mobilenetv4_hybrid_medium_075", output_stride=8)
    (key, _), *_ = (op.key for block in plan.blocks for op in block.ops if isinstance(op, Attention))
    assert (key.stride, key.dilation) == (2, 2)


def test_a_stride_that_became_a_dilation_adds_no_residual():
    stages = (("cn_r1_k3_s2_c8",), ("cn_r1_k3_s2_c24",), ("ir_r2_k3_s2_e2_c24",))
    for output_stride in (8, 32):
        plan = lower(ModelSpec(stages=stages), output_stride=output_stride)
        assert [block.residual for block in plan.blocks] == [False, False, False, True]


@pytest.mark.parametrize(
    ("block", "options", "fault"),
    [
        ("ir_r1_k3_s2_e2_c24_p3", {"output_stride": 8}, "kernel 'a' or 'p' of more than 1x1"),
        ("ir_r1_k3.5_s1_e1_c8_x1", {}, "2 kernels cannot share 1 input channels"),
    ],
)
def test_a_block_that_cannot_be_lowered_is_an_error(block, options, fault):
    with pytest.raises(ArchitectureError, match=fault):
        lower(ModelSpec(stages=(("cn_r1_k3_s2_c8",), ("cn_r1_k3_s2_c16",), (block,))), **options)


def test_squeeze_and_excitation_has_a_channel_at_least():
    plan = lower(ModelSpec(stages=(("ir_r1_k3_s1_e1_c8_se0.01",),)))
    assert [op.reduced for block in plan.blocks for op in block.ops if isinstance(op, SqueezeExcite)] == [1]


def test_the_map_before_positions_are_packed_is_a_feature():
    plan = lower(ModelSpec(stages=(("cn_r1_k3_s1_c8",), ("ds_r1_k3_s1_c16_d1",), ("cn_r1_k3_s2_c8",))))
    assert [(feature.name, feature.stride) for feature in plan.features] == [("blocks.0", 2), ("blocks.2", 4)]
