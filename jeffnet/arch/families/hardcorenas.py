"""HardCoRe-NAS A to F: networks searched under hard latency constraints, with the head of MobileNetV3.

Source: Nayman et al., "HardCoRe-NAS: Hard Constrained diffeRentiable Neural Architecture Search", arXiv:2102.11646.
"""

from dataclasses import replace

from jeffnet.arch.families.mobilenet import V3_LARGE
from jeffnet.arch.model import Architecture, WeightSet
from jeffnet.arch.preprocessing import Preprocessing

A = replace(
    V3_LARGE,
    stages=(
        ("ds_r1_k3_s1_e1_c16_nre",),
        ("ir_r1_k5_s2_e3_c24_nre", "ir_r1_k5_s1_e3_c24_nre_se0.25"),
        ("ir_r1_k5_s2_e3_c40_nre", "ir_r1_k5_s1_e6_c40_nre_se0.25"),
        ("ir_r1_k5_s2_e6_c80_se0.25", "ir_r1_k5_s1_e6_c80_se0.25"),
        ("ir_r1_k5_s1_e6_c112_se0.25", "ir_r1_k5_s1_e6_c112_se0.25"),
        ("ir_r1_k5_s2_e6_c192_se0.25", "ir_r1_k5_s1_e6_c192_se0.25"),
        ("cn_r1_k1_s1_c960",),
    ),
    stem=32,
)
B = replace(
    A,
    stages=(
        ("ds_r1_k3_s1_e1_c16_nre",),
        ("ir_r1_k5_s2_e3_c24_nre", "ir_r1_k5_s1_e3_c24_nre_se0.25", "ir_r1_k3_s1_e3_c24_nre"),
        ("ir_r1_k5_s2_e3_c40_nre", "ir_r1_k5_s1_e3_c40_nre", "ir_r1_k5_s1_e3_c40_nre"),
        ("ir_r1_k5_s2_e3_c80", "ir_r1_k5_s1_e3_c80", "ir_r1_k3_s1_e3_c80", "ir_r1_k3_s1_e3_c80"),
        ("ir_r1_k5_s1_e3_c112", "ir_r1_k3_s1_e3_c112", "ir_r1_k3_s1_e3_c112", "ir_r1_k3_s1_e3_c112"),
        ("ir_r1_k5_s2_e6_c192_se0.25", "ir_r1_k5_s1_e6_c192_se0.25", "ir_r1_k3_s1_e3_c192_se0.25"),
        ("cn_r1_k1_s1_c960",),
    ),
)
C = replace(
    A,
    stages=(
        ("ds_r1_k3_s1_e1_c16_nre",),
        ("ir_r1_k5_s2_e3_c24_nre", "ir_r1_k5_s1_e3_c24_nre_se0.25"),
        ("ir_r1_k5_s2_e3_c40_nre", "ir_r1_k5_s1_e3_c40_nre", "ir_r1_k5_s1_e3_c40_nre", "ir_r1_k5_s1_e3_c40_nre"),
        ("ir_r1_k5_s2_e4_c80", "ir_r1_k5_s1_e6_c80_se0.25", "ir_r1_k3_s1_e3_c80", "ir_r1_k3_s1_e3_c80"),
        ("ir_r1_k5_s1_e6_c112_se0.25", "ir_r1_k3_s1_e3_c112", "ir_r1_k3_s1_e3_c112", "ir_r1_k3_s1_e3_c112"),
        ("ir_r1_k5_s2_e6_c192_se0.25", "ir_r1_k5_s1_e6_c192_se0.25", "ir_r1_k3_s1_e3_c192_se0.25"),
        ("cn_r1_k1_s1_c960",),
    ),
)
D = replace(
    A,
    stages=(
        ("ds_r1_k3_s1_e1_c16_nre",),
        ("ir_r1_k5_s2_e3_c24_nre_se0.25", "ir_r1_k5_s1_e3_c24_nre_se0.25"),
        ("ir_r1_k5_s2_e3_c40_nre_se0.25", "ir_r1_k5_s1_e4_c40_nre_se0.25", "ir_r1_k3_s1_e3_c40_nre_se0.25"),
        (
            "ir_r1_k5_s2_e4_c80_se0.25",
            "ir_r1_k3_s1_e3_c80_se0.25",
            "ir_r1_k3_s1_e3_c80_se0.25",
            "ir_r1_k3_s1_e3_c80_se0.25",
        ),
        (
            "ir_r1_k3_s1_e4_c112_se0.25",
            "ir_r1_k5_s1_e4_c112_se0.25",
            "ir_r1_k3_s1_e3_c112_se0.25",
            "ir_r1_k5_s1_e3_c112_se0.25",
        ),
        (
            "ir_r1_k5_s2_e6_c192_se0.25",
            "ir_r1_k5_s1_e6_c192_se0.25",
            "ir_r1_k5_s1_e6_c192_se0.25",
            "ir_r1_k3_s1_e6_c192_se0.25",
        ),
        ("cn_r1_k1_s1_c960",),
    ),
)
E = replace(
    A,
    stages=(
        ("ds_r1_k3_s1_e1_c16_nre",),
        ("ir_r1_k5_s2_e3_c24_nre_se0.25", "ir_r1_k5_s1_e3_c24_nre_se0.25"),
        (
            "ir_r1_k5_s2_e6_c40_nre_se0.25",
            "ir_r1_k5_s1_e4_c40_nre_se0.25",
            "ir_r1_k5_s1_e4_c40_nre_se0.25",
            "ir_r1_k3_s1_e3_c40_nre_se0.25",
        ),
        ("ir_r1_k5_s2_e4_c80_se0.25", "ir_r1_k3_s1_e6_c80_se0.25"),
        (
            "ir_r1_k5_s1_e6_c112_se0.25",
            "ir_r1_k5_s1_e6_c112_se0.25",
            "ir_r1_k5_s1_e6_c112_se0.25",
            "ir_r1_k5_s1_e3_c112_se0.25",
        ),
        (
            "ir_r1_k5_s2_e6_c192_se0.25",
            "ir_r1_k5_s1_e6_c192_se0.25",
            "ir_r1_k5_s1_e6_c192_se0.25",
            "ir_r1_k3_s1_e6_c192_se0.25",
        ),
        ("cn_r1_k1_s1_c960",),
    ),
)
F = replace(
    A,
    stages=(
        ("ds_r1_k3_s1_e1_c16_nre",),
        ("ir_r1_k5_s2_e3_c24_nre_se0.25", "ir_r1_k5_s1_e3_c24_nre_se0.25"),
        ("ir_r1_k5_s2_e6_c40_nre_se0.25", "ir_r1_k5_s1_e6_c40_nre_se0.25"),
        (
            "ir_r1_k5_s2_e6_c80_se0.25",
            "ir_r1_k5_s1_e6_c80_se0.25",
            "ir_r1_k3_s1_e3_c80_se0.25",
            "ir_r1_k3_s1_e3_c80_se0.25",
        ),
        (
            "ir_r1_k3_s1_e6_c112_se0.25",
            "ir_r1_k5_s1_e6_c112_se0.25",
            "ir_r1_k5_s1_e6_c112_se0.25",
            "ir_r1_k3_s1_e3_c112_se0.25",
        ),
        (
            "ir_r1_k5_s2_e6_c192_se0.25",
            "ir_r1_k5_s1_e6_c192_se0.25",
            "ir_r1_k3_s1_e6_c192_se0.25",
            "ir_r1_k3_s1_e6_c192_se0.25",
        ),
        ("cn_r1_k1_s1_c960",),
    ),
)

MODELS = {
    "hardcorenas_a": Architecture(A, Preprocessing(224, 0.875, "bilinear"), miil_green_in1k=WeightSet(75.926, 92.486)),
    "hardcorenas_b": Architecture(B, Preprocessing(224, 0.875, "bilinear"), miil_green_in1k=WeightSet(76.55, 92.766)),
    "hardcorenas_c": Architecture(C, Preprocessing(224, 0.875, "bilinear"), miil_green_in1k=WeightSet(77.092, 93.192)),
    "hardcorenas_d": Architecture(D, Preprocessing(224, 0.875, "bilinear"), miil_green_in1k=WeightSet(77.45, 93.48)),
    "hardcorenas_e": Architecture(E, Preprocessing(224, 0.875, "bilinear"), miil_green_in1k=WeightSet(77.788, 93.692)),
    "hardcorenas_f": Architecture(F, Preprocessing(224, 0.875, "bilinear"), miil_green_in1k=WeightSet(78.1, 93.8)),
}
