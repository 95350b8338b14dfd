"""MobileNetV1, V2 and V3.

Sources: Howard et al., "MobileNets", arXiv:1704.04861; Sandler et al., "MobileNetV2", arXiv:1801.04381; Howard et al.,
"Searching for MobileNetV3", arXiv:1905.02244; the minimal variants of V3 as in tensorflow/models,
research/slim/nets/mobilenet; the deeper V2 (`d`) are timm's; the widths of V2 are those of keras.applications.
"""

import re
from dataclasses import replace

from jeffnet.arch.blocks import round_channels
from jeffnet.arch.model import Architecture, Model, WeightSet
from jeffnet.arch.preprocessing import INCEPTION, Preprocessing, inception, sized
from jeffnet.arch.spec import ModelSpec, SqueezeRule, as_tensorflow, with_blocks

V1 = ModelSpec(
    stages=(
        ("dsa_r1_k3_s1_c64",),
        ("dsa_r2_k3_s2_c128",),
        ("dsa_r2_k3_s2_c256",),
        ("dsa_r6_k3_s2_c512",),
        ("dsa_r2_k3_s2_c1024",),
    ),
    features=0,
    act="relu6",
    drop_rate=0.2,
)

V2 = ModelSpec(
    stages=(
        ("ds_r1_k3_s1_c16",),
        ("ir_r2_k3_s2_e6_c24",),
        ("ir_r3_k3_s2_e6_c32",),
        ("ir_r4_k3_s2_e6_c64",),
        ("ir_r3_k3_s1_e6_c96",),
        ("ir_r3_k3_s2_e6_c160",),
        ("ir_r1_k3_s1_e6_c320",),
    ),
    act="relu6",
)


def _scaled_v2(width: float) -> ModelSpec:
    """The last convolution is never narrower than the paper's."""
    return replace(V2, width=width, scale_features=width > 1)


V2_DEEPER = replace(V2, scale_stem=False, scale_ends=False)

V3_LARGE = ModelSpec(
    stages=(
        ("ds_r1_k3_s1_e1_c16_nre",),
        ("ir_r1_k3_s2_e4_c24_nre", "ir_r1_k3_s1_e3_c24_nre"),
        ("ir_r3_k5_s2_e3_c40_se0.25_nre",),
        ("ir_r1_k3_s2_e6_c80", "ir_r1_k3_s1_e2.5_c80", "ir_r2_k3_s1_e2.3_c80"),
        ("ir_r2_k3_s1_e6_c112_se0.25",),
        ("ir_r3_k5_s2_e6_c160_se0.25",),
        ("cn_r1_k1_s1_c960",),
    ),
    stem=16,
    act="hard_swish",
    se=SqueezeRule(from_expanded=True, divisor=8, act="relu", gate="hard_sigmoid"),
    pool_first=True,
)
V3_SMALL = replace(
    V3_LARGE,
    stages=(
        ("ds_r1_k3_s2_e1_c16_se0.25_nre",),
        ("ir_r1_k3_s2_e4.5_c24_nre", "ir_r1_k3_s1_e3.67_c24_nre"),
        ("ir_r1_k5_s2_e4_c40_se0.25", "ir_r2_k5_s1_e6_c40_se0.25"),
        ("ir_r2_k5_s1_e3_c48_se0.25",),
        ("ir_r3_k5_s2_e6_c96_se0.25",),
        ("cn_r1_k1_s1_c576",),
    ),
    features=1024,
)


def _minimal(spec: ModelSpec) -> ModelSpec:
    """Without squeeze-and-excitation, 5x5 kernels and hard swish."""
    return replace(with_blocks(with_blocks(spec, "_se0.25|_nre", ""), "_k5", "_k3"), act="relu")


# As timm first had V3, before its code was published.
V3_RW = replace(
    V3_LARGE,
    stages=(("ds_r1_k3_s1_e1_c16_nre_noskip",), *V3_LARGE.stages[1:]),
    se=SqueezeRule(from_expanded=True, gate="hard_sigmoid"),
    bn_epsilon=1e-3,
    head_bias=False,
)

_TENSORFLOW = inception(224, 0.875, "bilinear")
# Pixels from 0 to 1.
_UNIT = {"interpolation": "bilinear", "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}

MODELS = {
    "mobilenetv1_100": Architecture(V1, inception(256, 0.95, train_size=224),
        ra4_e3600_r224_in1k=WeightSet(76.088, 93.006)),
    "mobilenetv1_100h": Architecture(replace(V1, features=1024), inception(256, 0.95, train_size=224),
        ra4_e3600_r224_in1k=WeightSet(76.598, 93.272)),
    "mobilenetv1_125": Architecture(replace(V1, width=1.25), inception(256, 1.0, train_size=224),
        ra4_e3600_r224_in1k=WeightSet(77.612, 93.754)),
    "mobilenetv2_035": Architecture(_scaled_v2(0.35)),
    "mobilenetv2_050": Architecture(_scaled_v2(0.5), lamb_in1k=WeightSet(65.928, 86.114)),
    "mobilenetv2_075": Architecture(_scaled_v2(0.75)),
    "mobilenetv2_100": Architecture(V2, ra_in1k=WeightSet(72.91, 91.0, "39fce4c0")),
    "mobilenetv2_110d": Architecture(replace(V2_DEEPER, width=1.1, depth=1.2),
        ra_in1k=WeightSet(75.056, 92.186, "fbaf9685")),
    "mobilenetv2_120d": Architecture(replace(V2_DEEPER, width=1.2, depth=1.4),
        ra_in1k=WeightSet(77.3, 93.516, "eaa01988")),
    "mobilenetv2_140": Architecture(_scaled_v2(1.4), ra_in1k=WeightSet(76.528, 93.008, "9b7c5e30")),
    "mobilenetv3_large_075": Architecture(replace(V3_LARGE, width=0.75), Preprocessing(interpolation="bilinear")),
    "mobilenetv3_large_100": Architecture(V3_LARGE, ra_in1k=WeightSet(75.784, 92.528, "0e2a5d09"),
        ra4_e3600_r224_in1k=WeightSet(
            77.182, 93.328, preprocessing=sized(256, 1.0, 224, **INCEPTION)),
        miil_in21k_ft_in1k=WeightSet(77.92, 92.894, preprocessing=_UNIT),
        miil_in21k=WeightSet(preprocessing=_UNIT, classes="imagenet21k_miil")),
    "mobilenetv3_small_075": Architecture(replace(V3_SMALL, width=0.75), lamb_in1k=WeightSet(65.284, 85.462)),
    "mobilenetv3_small_100": Architecture(V3_SMALL, lamb_in1k=WeightSet(67.636, 87.638)),
    "mobilenetv3_large_150d": Architecture(replace(V3_LARGE, width=1.5, depth=1.2),
        inception(320, 1.0, "bilinear", train_size=256),
        ra4_e3600_r256_in1k=WeightSet(81.832, 95.878)),
    "mobilenetv3_rw": Architecture(V3_RW, rmsp_in1k=WeightSet(75.616, 92.696)),
    "mobilenetv3_small_050": Architecture(replace(V3_SMALL, width=0.5, scale_stem=False),
        lamb_in1k=WeightSet(57.918, 80.144)),
    "tf_mobilenetv2_035": Architecture(_scaled_v2(0.35), _TENSORFLOW),
    "tf_mobilenetv2_050": Architecture(_scaled_v2(0.5), _TENSORFLOW),
    "tf_mobilenetv2_075": Architecture(_scaled_v2(0.75), _TENSORFLOW),
    "tf_mobilenetv2_100": Architecture(V2, _TENSORFLOW),
    "tf_mobilenetv2_130": Architecture(_scaled_v2(1.3), _TENSORFLOW),
    "tf_mobilenetv2_140": Architecture(_scaled_v2(1.4), _TENSORFLOW),
    "tf_mobilenetv3_large_075": Architecture(replace(V3_LARGE, width=0.75), _TENSORFLOW,
        in1k=WeightSet(73.442, 91.332, "86b186f9")),
    "tf_mobilenetv3_large_100": Architecture(V3_LARGE, _TENSORFLOW, in1k=WeightSet(75.51, 92.6, "4db08e68")),
    "tf_mobilenetv3_large_minimal_100": Architecture(_minimal(V3_LARGE), _TENSORFLOW,
        in1k=WeightSet(72.27, 90.664, "bb99a4f0")),
    "tf_mobilenetv3_small_075": Architecture(replace(V3_SMALL, width=0.75), _TENSORFLOW,
        in1k=WeightSet(65.706, 86.13, "bb7ad439")),
    "tf_mobilenetv3_small_100": Architecture(V3_SMALL, _TENSORFLOW, in1k=WeightSet(67.922, 87.686, "18a48cb4")),
    "tf_mobilenetv3_small_minimal_100": Architecture(_minimal(V3_SMALL), _TENSORFLOW,
        in1k=WeightSet(62.892, 84.27, "666b8e3b")),
}  # fmt: skip

_SCALED = re.compile(r"(pt_|tf_)?mobilenetv2_(?!000)(\d{3})")


def scaled(name: str) -> Model | None:
    """MobileNetV2 with the width in its name (0.6 in `mobilenetv2_060`); None for all other names."""
    match = _SCALED.fullmatch(name)
    if match is None:
        return None
    width = int(match[2]) / 100
    if match[1] == "tf_":
        return Model(as_tensorflow(_scaled_as_keras(width)), _TENSORFLOW)
    return Model(_scaled_v2(width), Preprocessing())


def _scaled_as_keras(width: float) -> ModelSpec:
    """As in Keras, which rounds channels down before it rounds to multiples of 8: another result at a few widths."""

    def channels(field: re.Match) -> str:
        return f"_c{max(1, int(int(field[1]) * width))}"

    stem, features = round_channels(V2.stem, width), round_channels(V2.features, max(1, width))
    return replace(with_blocks(V2, r"_c(\d+)", channels), stem=stem, features=features)
