"""MobileNetV4: convolutional and hybrid, and anti-aliased as timm has it.

Source: Qin et al., "MobileNetV4: Universal Models for the Mobile Ecosystem", arXiv:2404.10518. Strided convolutions
followed by a pooling: Zhang, "Making Convolutional Networks Shift-Invariant Again", arXiv:1904.11486.
"""

from dataclasses import replace

from jeffnet.arch.model import Architecture, WeightSet
from jeffnet.arch.preprocessing import INCEPTION, Preprocessing, inception, sized
from jeffnet.arch.spec import ModelSpec

CONV_SMALL = ModelSpec(
    stages=(
        ("cn_r1_k3_s2_e1_c32", "cn_r1_k1_s1_e1_c32"),
        ("cn_r1_k3_s2_e1_c96", "cn_r1_k1_s1_e1_c64"),
        ("uir_r1_a5_k5_s2_e3_c96", "uir_r4_a0_k3_s1_e2_c96", "uir_r1_a3_k0_s1_e4_c96"),
        (
            "uir_r1_a3_k3_s2_e6_c128",
            "uir_r1_a5_k5_s1_e4_c128",
            "uir_r1_a0_k5_s1_e4_c128",
            "uir_r1_a0_k5_s1_e3_c128",
            "uir_r2_a0_k3_s1_e4_c128",
        ),
        ("cn_r1_k1_s1_c960",),
    ),
    act="relu",
    pool_first=True,
    head_norm=True,
    drop_rate=0.2,
)
CONV_MEDIUM = replace(
    CONV_SMALL,
    stages=(
        ("er_r1_k3_s2_e4_c48",),
        ("uir_r1_a3_k5_s2_e4_c80", "uir_r1_a3_k3_s1_e2_c80"),
        (
            "uir_r1_a3_k5_s2_e6_c160",
            "uir_r2_a3_k3_s1_e4_c160",
            "uir_r1_a3_k5_s1_e4_c160",
            "uir_r1_a3_k3_s1_e4_c160",
            "uir_r1_a3_k0_s1_e4_c160",
            "uir_r1_a0_k0_s1_e2_c160",
            "uir_r1_a3_k0_s1_e4_c160",
        ),
        (
            "uir_r1_a5_k5_s2_e6_c256",
            "uir_r1_a5_k5_s1_e4_c256",
            "uir_r2_a3_k5_s1_e4_c256",
            "uir_r1_a0_k0_s1_e4_c256",
            "uir_r1_a3_k0_s1_e4_c256",
            "uir_r1_a3_k5_s1_e2_c256",
            "uir_r1_a5_k5_s1_e4_c256",
            "uir_r2_a0_k0_s1_e4_c256",
            "uir_r1_a5_k0_s1_e2_c256",
        ),
        ("cn_r1_k1_s1_c960",),
    ),
)
CONV_LARGE = replace(
    CONV_SMALL,
    stages=(
        ("er_r1_k3_s2_e4_c48",),
        ("uir_r1_a3_k5_s2_e4_c96", "uir_r1_a3_k3_s1_e4_c96"),
        (
            "uir_r1_a3_k5_s2_e4_c192",
            "uir_r3_a3_k3_s1_e4_c192",
            "uir_r1_a3_k5_s1_e4_c192",
            "uir_r5_a5_k3_s1_e4_c192",
            "uir_r1_a3_k0_s1_e4_c192",
        ),
        (
            "uir_r4_a5_k5_s2_e4_c512",
            "uir_r1_a5_k0_s1_e4_c512",
            "uir_r1_a5_k3_s1_e4_c512",
            "uir_r2_a5_k0_s1_e4_c512",
            "uir_r1_a5_k3_s1_e4_c512",
            "uir_r1_a5_k5_s1_e4_c512",
            "uir_r3_a5_k0_s1_e4_c512",
        ),
        ("cn_r1_k1_s1_c960",),
    ),
    stem=24,
)


HYBRID_MEDIUM = replace(
    CONV_SMALL,
    stages=(
        ("er_r1_k3_s2_e4_c48",),
        ("uir_r1_a3_k5_s2_e4_c80", "uir_r1_a3_k3_s1_e2_c80"),
        (
            "uir_r1_a3_k5_s2_e6_c160",
            "uir_r1_a0_k0_s1_e2_c160",
            "uir_r1_a3_k3_s1_e4_c160",
            "uir_r1_a3_k5_s1_e4_c160",
            "mqa_r1_k3_h4_s1_v2_d64_c160",
            "uir_r1_a3_k3_s1_e4_c160",
            "mqa_r1_k3_h4_s1_v2_d64_c160",
            "uir_r1_a3_k0_s1_e4_c160",
            "mqa_r1_k3_h4_s1_v2_d64_c160",
            "uir_r1_a3_k3_s1_e4_c160",
            "mqa_r1_k3_h4_s1_v2_d64_c160",
            "uir_r1_a3_k0_s1_e4_c160",
        ),
        (
            "uir_r1_a5_k5_s2_e6_c256",
            "uir_r1_a5_k5_s1_e4_c256",
            "uir_r2_a3_k5_s1_e4_c256",
            "uir_r1_a0_k0_s1_e2_c256",
            "uir_r1_a3_k5_s1_e2_c256",
            "uir_r1_a0_k0_s1_e2_c256",
            "uir_r1_a0_k0_s1_e4_c256",
            "mqa_r1_k3_h4_s1_d64_c256",
            "uir_r1_a3_k0_s1_e4_c256",
            "mqa_r1_k3_h4_s1_d64_c256",
            "uir_r1_a5_k5_s1_e4_c256",
            "mqa_r1_k3_h4_s1_d64_c256",
            "uir_r1_a5_k0_s1_e4_c256",
            "mqa_r1_k3_h4_s1_d64_c256",
            "uir_r1_a5_k0_s1_e4_c256",
        ),
        ("cn_r1_k1_s1_c960",),
    ),
    layer_scale=1e-5,
)
HYBRID_LARGE = replace(
    HYBRID_MEDIUM,
    stages=(
        ("er_r1_k3_s2_e4_c48",),
        ("uir_r1_a3_k5_s2_e4_c96", "uir_r1_a3_k3_s1_e4_c96"),
        (
            "uir_r1_a3_k5_s2_e4_c192",
            "uir_r3_a3_k3_s1_e4_c192",
            "uir_r1_a3_k5_s1_e4_c192",
            "uir_r2_a5_k3_s1_e4_c192",
            "mqa_r1_k3_h8_s1_v2_d48_c192",
            "uir_r1_a5_k3_s1_e4_c192",
            "mqa_r1_k3_h8_s1_v2_d48_c192",
            "uir_r1_a5_k3_s1_e4_c192",
            "mqa_r1_k3_h8_s1_v2_d48_c192",
            "uir_r1_a5_k3_s1_e4_c192",
            "mqa_r1_k3_h8_s1_v2_d48_c192",
            "uir_r1_a3_k0_s1_e4_c192",
        ),
        (
            "uir_r4_a5_k5_s2_e4_c512",
            "uir_r1_a5_k0_s1_e4_c512",
            "uir_r1_a5_k3_s1_e4_c512",
            "uir_r2_a5_k0_s1_e4_c512",
            "uir_r1_a5_k3_s1_e4_c512",
            "uir_r1_a5_k5_s1_e4_c512",
            "mqa_r1_k3_h8_s1_d64_c512",
            "uir_r1_a5_k0_s1_e4_c512",
            "mqa_r1_k3_h8_s1_d64_c512",
            "uir_r1_a5_k0_s1_e4_c512",
            "mqa_r1_k3_h8_s1_d64_c512",
            "uir_r1_a5_k0_s1_e4_c512",
            "mqa_r1_k3_h8_s1_d64_c512",
            "uir_r1_a5_k0_s1_e4_c512",
        ),
        ("cn_r1_k1_s1_c960",),
    ),
    stem=24,
    act="gelu",
)


def _narrow(spec: ModelSpec, width: float) -> ModelSpec:
    return replace(spec, width=width, scale_stem=False)


MODELS = {
    "mobilenetv4_conv_small_035": Architecture(_narrow(CONV_SMALL, 0.35), inception(256, 0.95, train_size=224)),
    "mobilenetv4_conv_small_050": Architecture(
        _narrow(CONV_SMALL, 0.5), inception(256, 0.95, train_size=224), e3000_r224_in1k=WeightSet(65.826, 86.416)
    ),
    "mobilenetv4_conv_small": Architecture(
        CONV_SMALL,
        Preprocessing(256, 0.95, train_size=224),
        e2400_r224_in1k=WeightSet(74.644, 92.022),
        e1200_r224_in1k=WeightSet(74.282, 92.122),
        e3600_r256_in1k=WeightSet(75.616, 92.768, preprocessing=sized(320, 1.0, 256, **INCEPTION)),
    ),
    "mobilenetv4_conv_medium": Architecture(
        CONV_MEDIUM,
        Preprocessing(320, 1.0, train_size=256),
        e500_r256_in1k=WeightSet(80.89, 95.75),
        e500_r224_in1k=WeightSet(79.836, 95.192, preprocessing=sized(256, 1.0, 224)),
        e250_r384_in12k_ft_in1k=WeightSet(82.776, 96.448, preprocessing=sized(384, 0.95)),
        e180_r384_in12k=WeightSet(preprocessing=sized(384, 1.0), classes="imagenet12k"),
        e180_ad_r384_in12k=WeightSet(preprocessing=sized(384, 1.0), classes="imagenet12k"),
        e250_r384_in12k=WeightSet(preprocessing=sized(384, 1.0), classes="imagenet12k"),
    ),
    "mobilenetv4_conv_large": Architecture(
        CONV_LARGE,
        Preprocessing(448, 1.0, train_size=384),
        e600_r384_in1k=WeightSet(83.418, 96.612),
        e500_r256_in1k=WeightSet(82.672, 96.31, preprocessing=sized(320, 1.0, 256)),
    ),
    "mobilenetv4_conv_aa_medium": Architecture(replace(CONV_MEDIUM, downsample="average"), Preprocessing(256, 0.95)),
    "mobilenetv4_conv_blur_medium": Architecture(
        replace(CONV_MEDIUM, downsample="blur"),
        Preprocessing(256, 1.0, train_size=224),
        e500_r224_in1k=WeightSet(80.152, 95.298),
    ),
    "mobilenetv4_conv_aa_large": Architecture(
        replace(CONV_LARGE, downsample="average"),
        Preprocessing(544, 1.0, train_size=448),
        e230_r448_in12k_ft_in1k=WeightSet(84.99, 97.294),
        e230_r384_in12k_ft_in1k=WeightSet(84.772, 97.344, preprocessing=sized(480, 1.0, 384)),
        e600_r384_in1k=WeightSet(83.826, 96.72, preprocessing=sized(480, 1.0, 384)),
        e230_r384_in12k=WeightSet(preprocessing=sized(448, 1.0, 384), classes="imagenet12k"),
    ),
    "mobilenetv4_hybrid_medium_075": Architecture(_narrow(HYBRID_MEDIUM, 0.75), Preprocessing(224, 0.95)),
    "mobilenetv4_hybrid_medium": Architecture(
        HYBRID_MEDIUM,
        Preprocessing(320, 1.0, train_size=256),
        e200_r256_in12k_ft_in1k=WeightSet(82.998, 96.676),
        ix_e550_r256_in1k=WeightSet(82.5, 96.286),
        ix_e550_r384_in1k=WeightSet(83.39, 96.766, preprocessing=sized(448, 1.0, 384)),
        e500_r224_in1k=WeightSet(81.284, 95.746, preprocessing=sized(256, 1.0, 224)),
        e200_r256_in12k=WeightSet(classes="imagenet12k"),
    ),
    "mobilenetv4_hybrid_large_075": Architecture(_narrow(HYBRID_LARGE, 0.75), Preprocessing(256, 0.95)),
    "mobilenetv4_hybrid_large": Architecture(
        HYBRID_LARGE,
        Preprocessing(448, 1.0, train_size=384),
        ix_e600_r384_in1k=WeightSet(84.352, 96.888),
        e600_r384_in1k=WeightSet(84.264, 96.956),
    ),
}
