"""EfficientNet B1, B2 and B3 with pruned widths: every block's are data.

Source: Aflalo et al., "Knapsack Pruning with Inner Distillation", arXiv:2002.08258; the widths are those of the
published weights.
"""

from dataclasses import replace

from jeffnet.arch.families.efficientnet import B1, B2, B3
from jeffnet.arch.model import Architecture, WeightSet
from jeffnet.arch.preprocessing import inception
from jeffnet.arch.spec import ModelSpec, as_tensorflow


def _pruned(spec: ModelSpec, stem: int, features: int, *stages: tuple[str, ...]) -> ModelSpec:
    """With exact widths instead of scaled ones."""
    exact = replace(spec, stages=stages, stem=stem, features=features, width=1.0, depth=1.0, divisor=1)
    return as_tensorflow(exact)


B1_PRUNED = _pruned(
    B1,
    32,
    1280,
    ("ds_r1_k3_s1_e1_c16_se0.25_q8", "ds_r1_k3_s1_e1_c16_se0.25_q4"),
    ("ir_r1_k3_s2_e6_x48_c12_se0.25_q4", "ir_r1_k3_s1_e6_x62_c12_se0.25_q6", "ir_r1_k3_s1_e6_x48_c12_se0.25_q6"),
    ("ir_r1_k5_s2_e6_x70_c35_se0.25_q6", "ir_r1_k5_s1_e6_x61_c35_se0.25_q10", "ir_r1_k5_s1_e6_x51_c35_se0.25_q10"),
    (
        "ir_r1_k3_s2_e6_x175_c74_se0.25_q10",
        "ir_r1_k3_s1_e6_x188_c74_se0.25_q20",
        "ir_r1_k3_s1_e6_x137_c74_se0.25_q20",
        "ir_r1_k3_s1_e6_x164_c74_se0.25_q20",
    ),
    (
        "ir_r1_k5_s1_e6_x399_c67_se0.25_q20",
        "ir_r1_k5_s1_e6_x201_c67_se0.25_q28",
        "ir_r1_k5_s1_e6_x160_c67_se0.25_q28",
        "ir_r1_k5_s1_e6_x213_c67_se0.25_q28",
    ),
    (
        "ir_r1_k5_s2_e6_x637_c192_se0.25_q27",
        "ir_r1_k5_s1_e6_x806_c192_se0.25_q48",
        "ir_r1_k5_s1_e6_x798_c192_se0.25_q48",
        "ir_r1_k5_s1_e6_x891_c192_se0.25_q48",
        "ir_r1_k5_s1_e6_x990_c192_se0.25_q48",
    ),
    ("ir_r1_k3_s1_e6_x1152_c320_se0.25_q48", "ir_r1_k3_s1_e6_x1912_c320_se0.25_q80"),
)
B2_PRUNED = _pruned(
    B2,
    32,
    1408,
    ("ds_r1_k3_s1_e1_c16_se0.25_q8", "ds_r1_k3_s1_e1_c16_se0.25_q4"),
    ("ir_r1_k3_s2_e6_x54_c17_se0.25_q4", "ir_r1_k3_s1_e6_x69_c17_se0.25_q6", "ir_r1_k3_s1_e6_x61_c17_se0.25_q6"),
    ("ir_r1_k5_s2_e6_x86_c42_se0.25_q6", "ir_r1_k5_s1_e6_x72_c42_se0.25_q12", "ir_r1_k5_s1_e6_x98_c42_se0.25_q12"),
    (
        "ir_r1_k3_s2_e6_x245_c85_se0.25_q12",
        "ir_r1_k3_s1_e6_x274_c85_se0.25_q22",
        "ir_r1_k3_s1_e6_x254_c85_se0.25_q22",
        "ir_r1_k3_s1_e6_x292_c85_se0.25_q22",
    ),
    (
        "ir_r1_k5_s1_e6_x502_c116_se0.25_q22",
        "ir_r1_k5_s1_e6_x315_c116_se0.25_q30",
        "ir_r1_k5_s1_e6_x354_c116_se0.25_q30",
        "ir_r1_k5_s1_e6_x443_c116_se0.25_q30",
    ),
    (
        "ir_r1_k5_s2_e6_x719_c208_se0.25_q30",
        "ir_r1_k5_s1_e6_x1148_c208_se0.25_q52",
        "ir_r1_k5_s1_e6_x1160_c208_se0.25_q52",
        "ir_r1_k5_s1_e6_x1182_c208_se0.25_q52",
        "ir_r1_k5_s1_e6_x1228_c208_se0.25_q52",
    ),
    ("ir_r1_k3_s1_e6_x1248_c352_se0.25_q52", "ir_r1_k3_s1_e6_x2112_c352_se0.25_q88"),
)
B3_PRUNED = _pruned(
    B3,
    40,
    1536,
    ("ds_r1_k3_s1_e1_c24_se0.25_q10", "ds_r1_k3_s1_e1_c24_se0.25_q6"),
    ("ir_r1_k3_s2_e6_x27_c12_se0.25_q6", "ir_r1_k3_s1_e6_x49_c12_se0.25_q8", "ir_r1_k3_s1_e6_x48_c12_se0.25_q8"),
    ("ir_r1_k5_s2_e6_x83_c40_se0.25_q8", "ir_r1_k5_s1_e6_x90_c40_se0.25_q12", "ir_r1_k5_s1_e6_x85_c40_se0.25_q12"),
    (
        "ir_r1_k3_s2_e6_x215_c93_se0.25_q12",
        "ir_r1_k3_s1_e6_x261_c93_se0.25_q24",
        "ir_r1_k3_s1_e6_x219_c93_se0.25_q24",
        "ir_r1_k3_s1_e6_x254_c93_se0.25_q24",
        "ir_r1_k3_s1_e6_x236_c93_se0.25_q24",
    ),
    (
        "ir_r1_k5_s1_e6_x480_c120_se0.25_q24",
        "ir_r1_k5_s1_e6_x235_c120_se0.25_q34",
        "ir_r1_k5_s1_e6_x217_c120_se0.25_q34",
        "ir_r1_k5_s1_e6_x226_c120_se0.25_q33",
        "ir_r1_k5_s1_e6_x340_c120_se0.25_q34",
    ),
    (
        "ir_r1_k5_s2_e6_x802_c232_se0.25_q34",
        "ir_r1_k5_s1_e6_x1030_c232_se0.25_q58",
        "ir_r1_k5_s1_e6_x924_c232_se0.25_q58",
        "ir_r1_k5_s1_e6_x1016_c232_se0.25_q58",
        "ir_r1_k5_s1_e6_x1130_c232_se0.25_q58",
        "ir_r1_k5_s1_e6_x1266_c232_se0.25_q58",
    ),
    ("ir_r1_k3_s1_e6_x1392_c384_se0.25_q58", "ir_r1_k3_s1_e6_x2301_c384_se0.25_q96"),
)

MODELS = {
    "efficientnet_b1_pruned": Architecture(B1_PRUNED, inception(240, 0.882), in1k=WeightSet(78.252, 93.82)),
    "efficientnet_b2_pruned": Architecture(B2_PRUNED, inception(260, 0.89), in1k=WeightSet(79.904, 94.838)),
    "efficientnet_b3_pruned": Architecture(B3_PRUNED, inception(300, 0.904), in1k=WeightSet(80.864, 95.266)),
}
