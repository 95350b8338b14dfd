"""EfficientNet with other norms, with mixed kernels (CondConv), and for accelerators (X and H).

Sources: GroupNorm, arXiv:1803.08494, as in timm; Yang et al., "CondConv", arXiv:1904.04971; Li et al., "Searching for
Fast Model Families on Datacenter Accelerators", arXiv:2102.05610 (X); H is timm's.
"""

from dataclasses import replace

from jeffnet.arch.families.efficientnet import B0, B1, B3
from jeffnet.arch.model import Architecture, WeightSet
from jeffnet.arch.preprocessing import Preprocessing, inception
from jeffnet.arch.spec import ModelSpec, as_tensorflow

B0_GN = replace(B0, norm="group", norm_group=8)
B3_GN = replace(B3, norm="group", norm_group=16, divisor=16)


def _grouped(spec: ModelSpec) -> ModelSpec:
    """With groups of 8 channels instead of depthwise convolutions."""
    return replace(spec, stages=tuple(tuple(f"{block}_gs8" for block in stage) for stage in spec.stages))


def _conditional(spec: ModelSpec, experts: int) -> ModelSpec:
    """With 4 experts, or twice as many, in the blocks of the last three stages."""
    last = tuple(tuple(f"{block}_cc4" for block in stage) for stage in spec.stages[-3:])
    return replace(spec, stages=(*spec.stages[:-3], *last), experts=experts // 4)


X_B3 = replace(
    B3,
    stages=(
        ("ds_r1_k3_s1_e1_c16_se0.25_d1",),
        ("er_r2_k3_s2_e6_c24_se0.25_nre",),
        ("er_r2_k5_s2_e6_c40_se0.25_nre",),
        ("ir_r3_k3_s2_e6_c80_se0.25",),
        ("ir_r3_k5_s1_e6_c112_se0.25",),
        ("ir_r4_k5_s2_e6_c192_se0.25",),
        ("ir_r1_k3_s1_e6_c320_se0.25",),
    ),
)
X_B5 = replace(X_B3, width=1.6, depth=2.2, drop_rate=0.4)
H_B5 = replace(
    X_B3,
    stages=(
        ("ds_r1_k3_s1_e1_c16_se0.25_d1",),
        ("er_r2_k3_s2_e4_c24_se0.25_nre",),
        ("er_r2_k5_s2_e4_c40_se0.25_nre",),
        ("ir_r3_k3_s2_e4_c80_se0.25",),
        ("ir_r3_k5_s1_e6_c112_se0.25",),
        ("ir_r4_k5_s2_e6_c192_se0.25",),
        ("ir_r1_k3_s1_e6_c320_se0.25",),
    ),
    width=1.92,
    depth=2.2,
    drop_rate=0.4,
)

MODELS = {
    "efficientnet_b0_gn": Architecture(B0_GN, Preprocessing(224, 0.875)),
    "efficientnet_b0_g8_gn": Architecture(_grouped(B0_GN), Preprocessing(224, 0.875)),
    "efficientnet_b3_gn": Architecture(B3_GN, Preprocessing(320, 1.0, train_size=288)),
    "efficientnet_b3_g8_gn": Architecture(_grouped(B3_GN), Preprocessing(320, 1.0, train_size=288)),
    "efficientnet_cc_b0_4e": Architecture(_conditional(B0, 4), Preprocessing(224, 0.875)),
    "efficientnet_cc_b0_8e": Architecture(_conditional(B0, 8), Preprocessing(224, 0.875)),
    "efficientnet_cc_b1_8e": Architecture(_conditional(B1, 8), Preprocessing(240, 0.882)),
    "tf_efficientnet_cc_b0_4e": Architecture(
        as_tensorflow(_conditional(B0, 4)), inception(224, 0.875), in1k=WeightSet(77.324, 93.334)
    ),
    "tf_efficientnet_cc_b0_8e": Architecture(
        as_tensorflow(_conditional(B0, 8)), inception(224, 0.875), in1k=WeightSet(77.956, 93.638)
    ),
    "tf_efficientnet_cc_b1_8e": Architecture(
        as_tensorflow(_conditional(B1, 8)), inception(240, 0.882), in1k=WeightSet(79.318, 94.384)
    ),
    "efficientnet_x_b3": Architecture(X_B3, Preprocessing(288, 0.95)),
    "efficientnet_x_b5": Architecture(
        X_B5, Preprocessing(576, 1.0, crop_mode="squash", train_size=448), sw_r448_e450_in1k=WeightSet(84.928, 97.312)
    ),
    "efficientnet_h_b5": Architecture(
        H_B5, Preprocessing(576, 1.0, crop_mode="squash", train_size=448), sw_r448_e450_in1k=WeightSet(84.942, 97.39)
    ),
}
