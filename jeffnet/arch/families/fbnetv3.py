"""FBNetV3 B, D and G.

Source: Dai et al., "FBNetV3: Joint Architecture-Recipe Search using Predictor Pretraining", arXiv:2006.02049.
"""

from dataclasses import replace

from jeffnet.arch.model import Architecture, WeightSet
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.spec import ModelSpec, SqueezeRule

B = ModelSpec(
    stages=(
        ("ds_r2_k3_s1_e1_c16",),
        ("ir_r1_k5_s2_e4_c24", "ir_r3_k5_s1_e2_c24"),
        ("ir_r1_k5_s2_e5_c40_se0.25", "ir_r4_k5_s1_e3_c40_se0.25"),
        ("ir_r1_k5_s2_e5_c72", "ir_r4_k3_s1_e3_c72"),
        ("ir_r1_k3_s1_e5_c120_se0.25", "ir_r5_k5_s1_e3_c120_se0.25"),
        ("ir_r1_k3_s2_e6_c184_se0.25", "ir_r5_k5_s1_e4_c184_se0.25", "ir_r1_k5_s1_e6_c224_se0.25"),
        ("cn_r1_k1_s1_c1344",),
    ),
    stem=16,
    features=1984,
    act="hard_swish",
    round_limit=0.95,
    se=SqueezeRule(divisor=8, gate="hard_sigmoid"),
    pool_first=True,
    head_bias=False,
    drop_rate=0.2,
)
D = replace(
    B,
    stages=(
        ("ds_r2_k3_s1_e1_c16",),
        ("ir_r1_k3_s2_e5_c24", "ir_r5_k3_s1_e2_c24"),
        ("ir_r1_k5_s2_e4_c40_se0.25", "ir_r4_k3_s1_e3_c40_se0.25"),
        ("ir_r1_k3_s2_e5_c72", "ir_r4_k3_s1_e3_c72"),
        ("ir_r1_k3_s1_e5_c128_se0.25", "ir_r6_k5_s1_e3_c128_se0.25"),
        ("ir_r1_k3_s2_e6_c208_se0.25", "ir_r5_k5_s1_e5_c208_se0.25", "ir_r1_k5_s1_e6_c240_se0.25"),
        ("cn_r1_k1_s1_c1440",),
    ),
    stem=24,
)
G = replace(
    B,
    stages=(
        ("ds_r3_k3_s1_e1_c24",),
        ("ir_r1_k5_s2_e4_c40", "ir_r4_k5_s1_e2_c40"),
        ("ir_r1_k5_s2_e4_c56_se0.25", "ir_r4_k5_s1_e3_c56_se0.25"),
        ("ir_r1_k5_s2_e5_c104", "ir_r4_k3_s1_e3_c104"),
        ("ir_r1_k3_s1_e5_c160_se0.25", "ir_r8_k5_s1_e3_c160_se0.25"),
        ("ir_r1_k3_s2_e6_c264_se0.25", "ir_r6_k5_s1_e5_c264_se0.25", "ir_r2_k5_s1_e6_c288_se0.25"),
        ("cn_r1_k1_s1_c1728",),
    ),
    stem=32,
)

MODELS = {
    "fbnetv3_b": Architecture(
        B, Preprocessing(256, 0.95, "bilinear", train_size=224), ra2_in1k=WeightSet(79.154, 94.732)
    ),
    "fbnetv3_d": Architecture(
        D, Preprocessing(256, 0.95, "bilinear", train_size=224), ra2_in1k=WeightSet(79.682, 94.952)
    ),
    "fbnetv3_g": Architecture(
        G, Preprocessing(288, 0.95, "bilinear", train_size=240), ra2_in1k=WeightSet(82.034, 96.064)
    ),
}
