"""What is read off operations: kinds of convolutions, and the convolutions of a plan."""

from dataclasses import replace

import pytest

from jeffnet.arch.lower import lower
from jeffnet.arch.operations import Conv, ConvPart, Dense
from jeffnet.arch.spec import ModelSpec
from jeffnet.arch.summary import array_specs, layers
from jeffnet.arch.zoo import model_plan


def conv(*parts, stride=1):
    return Conv("conv", tuple(ConvPart("conv", *numbers, "SAME") for numbers in parts), stride, 1, False, None, None)


@pytest.mark.parametrize(
    ("parts", "stride", "is_depthwise", "is_pointwise"),
    [
        (((8, 8, 3, 8),), 2, True, False),
        (((4, 4, 3, 4), (4, 4, 5, 4)), 1, True, False),
        (((4, 4, 3, 4), (4, 4, 5, 1)), 1, False, False),
        (((8, 8, 3, 2),), 1, False, False),  # grouped, not depthwise
        (((8, 16, 3, 8),), 1, False, False),  # two outputs of every channel
        (((8, 16, 1, 1),), 1, False, True),
        (((8, 16, 1, 1),), 2, False, False),
        (((8, 16, 1, 4),), 1, False, False),
        (((4, 8, 1, 1), (4, 8, 1, 1)), 1, False, False),  # a part sees its share of the channels only
        (((8, 8, 3, 1),), 1, False, False),
    ],
)
def test_kinds_of_convolutions(parts, stride, is_depthwise, is_pointwise):
    op = conv(*parts, stride=stride)
    assert (op.is_depthwise, op.is_pointwise) == (is_depthwise, is_pointwise)


def test_a_padded_convolution_is_not_pointwise():
    op = conv((8, 16, 1, 1))
    for padding, expected in ((((0, 0), (0, 0)), True), (((1, 1), (1, 1)), False)):
        assert replace(op, parts=(replace(op.parts[0], padding=padding),)).is_pointwise == expected


def test_depthwise_kernels_are_known_by_their_arrays_too():
    plan = model_plan("mixnet_s")
    specs = array_specs(plan)
    for op in plan.convolutions:
        for part in op.parts:
            assert specs[f"{part.name}.kernel"].is_depthwise == part.is_depthwise == ("conv_dw" in part.name)
    assert not specs["classifier.kernel"].is_depthwise


def test_grouped_convolutions_are_not_called_depthwise():
    plan = lower(ModelSpec(stages=(("cn_r1_k3_s1_c16",),), stem=16, features=32))
    op = plan.stages[0][0].ops[0]
    assert isinstance(op, Conv)
    grouped = replace(op, parts=tuple(replace(part, groups=2) for part in op.parts))
    block = replace(plan.stages[0][0], ops=(grouped,))
    kinds = {row.name: row.kind for row in layers(replace(plan, stages=((block,),)), 32)}
    assert kinds["blocks.0.0.conv"] == "conv 3x3"


@pytest.mark.parametrize("name", ["efficientnet_b0", "mixnet_s", "tf_mobilenetv3_large_100"])
def test_a_plan_lists_all_of_its_convolutions(name):
    plan = model_plan(name)
    kernels = [f"{part.name}.kernel" for op in plan.convolutions for part in op.parts]
    assert [*kernels, "classifier.kernel"] == [key for key in array_specs(plan) if key.endswith(".kernel")]
    assert any(".se.conv_reduce" in kernel for kernel in kernels)


def test_classes():
    assert model_plan("mnasnet_small", num_classes=7).num_classes == 7
    assert model_plan("mnasnet_small", num_classes=0).num_classes == 0
    op = Dense("classifier", 16, 7).conv
    assert (op.in_channels, op.out_channels, op.bias, op.is_pointwise) == (16, 7, True, True)
