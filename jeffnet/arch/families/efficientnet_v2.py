"""EfficientNetV2: the authors' B0-B3, S, M, L and XL (`tf_`), the same padded as in PyTorch, and timm's own S, M and T.

Source: Tan and Le, "EfficientNetV2: Smaller Models and Faster Training", arXiv:2104.00298, and google/automl,
efficientnetv2. `rw_s` and `rw_m` are timm's, after the paper's figures and before its code was published.
"""

from dataclasses import replace

from jeffnet.arch.model import Architecture, WeightSet
from jeffnet.arch.preprocessing import IMAGENET, Preprocessing, inception, sized
from jeffnet.arch.spec import ModelSpec, SqueezeRule, as_tensorflow

S = ModelSpec(
    stages=(
        ("cn_r2_k3_s1_e1_c24_skip",),
        ("er_r4_k3_s2_e4_c48",),
        ("er_r4_k3_s2_e4_c64",),
        ("ir_r6_k3_s2_e4_c128_se0.25",),
        ("ir_r9_k3_s1_e6_c160_se0.25",),
        ("ir_r15_k3_s2_e6_c256_se0.25",),
    ),
    stem=24,
    act="silu",
    drop_rate=0.2,
    drop_path_rate=0.2,
)
M = replace(
    S,
    stages=(
        ("cn_r3_k3_s1_e1_c24_skip",),
        ("er_r5_k3_s2_e4_c48",),
        ("er_r5_k3_s2_e4_c80",),
        ("ir_r7_k3_s2_e4_c160_se0.25",),
        ("ir_r14_k3_s1_e6_c176_se0.25",),
        ("ir_r18_k3_s2_e6_c304_se0.25",),
        ("ir_r5_k3_s1_e6_c512_se0.25",),
    ),
    drop_rate=0.3,
)
L = replace(
    S,
    stages=(
        ("cn_r4_k3_s1_e1_c32_skip",),
        ("er_r7_k3_s2_e4_c64",),
        ("er_r7_k3_s2_e4_c96",),
        ("ir_r10_k3_s2_e4_c192_se0.25",),
        ("ir_r19_k3_s1_e6_c224_se0.25",),
        ("ir_r25_k3_s2_e6_c384_se0.25",),
        ("ir_r7_k3_s1_e6_c640_se0.25",),
    ),
    stem=32,
    drop_rate=0.4,
)
XL = replace(
    L,
    stages=(
        ("cn_r4_k3_s1_e1_c32_skip",),
        ("er_r8_k3_s2_e4_c64",),
        ("er_r8_k3_s2_e4_c96",),
        ("ir_r16_k3_s2_e4_c192_se0.25",),
        ("ir_r24_k3_s1_e6_c256_se0.25",),
        ("ir_r32_k3_s2_e6_c512_se0.25",),
        ("ir_r8_k3_s1_e6_c640_se0.25",),
    ),
)
B0 = replace(
    S,
    stages=(
        ("cn_r1_k3_s1_e1_c16_skip",),
        ("er_r2_k3_s2_e4_c32",),
        ("er_r2_k3_s2_e4_c48",),
        ("ir_r3_k3_s2_e4_c96_se0.25",),
        ("ir_r5_k3_s1_e6_c112_se0.25",),
        ("ir_r8_k3_s2_e6_c192_se0.25",),
    ),
    stem=32,
    scale_features=True,
    # The authors round to the nearest multiple of 8, however much that takes.
    round_limit=0.0,
)
B1 = replace(B0, depth=1.1)
B2 = replace(B0, width=1.1, depth=1.2, drop_rate=0.3)
B3 = replace(B0, width=1.2, depth=1.4, drop_rate=0.3)

RW_T = replace(S, width=0.8, depth=0.9, features=1024, scale_features=False)
RW_S = replace(
    S,
    stages=(("er_r2_k3_s1_e1_c24",), *S.stages[1:5], ("ir_r15_k3_s2_e6_c272_se0.25",)),
    features=1792,
)
RW_M = replace(RW_S, width=1.2, depth=(1.2, 1.2, 1.2, 1.2, 1.6, 1.6), scale_features=True)


def _authors(spec: ModelSpec) -> ModelSpec:
    """With the authors' padding and BatchNorm constants; their momentum is 0.9, unlike V1's."""
    return replace(as_tensorflow(spec), bn_momentum=0.9)


MODELS = {
    "efficientnetv2_s": Architecture(S, Preprocessing(384, 1.0, train_size=288)),
    "efficientnetv2_m": Architecture(M, Preprocessing(416, 1.0, train_size=320)),
    "efficientnetv2_l": Architecture(L, Preprocessing(480, 1.0, train_size=384)),
    "efficientnetv2_xl": Architecture(XL, Preprocessing(512, 1.0, train_size=384)),
    "efficientnetv2_rw_t": Architecture(
        RW_T, Preprocessing(288, 1.0, train_size=224), ra2_in1k=WeightSet(82.354, 96.178)
    ),
    "efficientnetv2_rw_s": Architecture(
        RW_S, Preprocessing(384, 1.0, train_size=288), ra2_in1k=WeightSet(83.83, 96.712)
    ),
    "efficientnetv2_rw_m": Architecture(
        RW_M, Preprocessing(416, 1.0, train_size=320), agc_in1k=WeightSet(84.83, 97.148)
    ),
    "tf_efficientnetv2_b0": Architecture(
        _authors(B0), Preprocessing(224, 0.875, train_size=192), in1k=WeightSet(78.386, 94.034)
    ),
    "tf_efficientnetv2_b1": Architecture(
        _authors(B1), Preprocessing(240, 0.882, train_size=192), in1k=WeightSet(79.518, 94.71)
    ),
    "tf_efficientnetv2_b2": Architecture(
        _authors(B2), Preprocessing(260, 0.89, train_size=208), in1k=WeightSet(80.226, 95.01)
    ),
    "tf_efficientnetv2_b3": Architecture(
        _authors(B3),
        inception(300, 0.9, crop_mode="squash", train_size=240),
        in21k_ft_in1k=WeightSet(82.634, 96.628),
        in1k=WeightSet(81.96, 95.78, preprocessing=sized(300, 0.904, 240, crop_mode="center", **IMAGENET)),
        in21k=WeightSet(preprocessing=sized(300, 0.904, 240, crop_mode="center"), classes="imagenet21k"),
    ),
    "tf_efficientnetv2_s": Architecture(
        _authors(S),
        inception(384, 1.0, train_size=300),
        in21k_ft_in1k=WeightSet(84.332, 97.274),
        in1k=WeightSet(83.9, 96.702),
        in21k=WeightSet(classes="imagenet21k"),
    ),
    "tf_efficientnetv2_m": Architecture(
        _authors(M),
        inception(480, 1.0, crop_mode="squash", train_size=384),
        in21k_ft_in1k=WeightSet(86.014, 97.956),
        in1k=WeightSet(85.208, 97.358),
        in21k=WeightSet(classes="imagenet21k"),
    ),
    "tf_efficientnetv2_l": Architecture(
        _authors(L),
        inception(480, 1.0, crop_mode="squash", train_size=384),
        in21k_ft_in1k=WeightSet(86.802, 98.124),
        in1k=WeightSet(85.66, 97.472),
        in21k=WeightSet(classes="imagenet21k"),
    ),
    "tf_efficientnetv2_xl": Architecture(
        _authors(XL),
        inception(512, 1.0, crop_mode="squash", train_size=384),
        in21k_ft_in1k=WeightSet(86.754, 98.014),
        in21k=WeightSet(classes="imagenet21k"),
    ),
    "gc_efficientnetv2_rw_t": Architecture(
        replace(RW_T, se=SqueezeRule(kind="context")),
        Preprocessing(288, 1.0, train_size=224),
        agc_in1k=WeightSet(82.486, 96.302),
    ),
}
