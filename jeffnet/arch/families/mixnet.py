"""MixNet S, M, L, XL and XXL: depthwise kernels of several sizes side by side.

Source: Tan and Le, "MixConv: Mixed Depthwise Convolutional Kernels", arXiv:1907.09595; XL and XXL are timm's
scalings of M.
"""

from dataclasses import replace

from jeffnet.arch.model import Architecture, WeightSet
from jeffnet.arch.spec import ModelSpec

S = ModelSpec(
    stages=(
        ("ds_r1_k3_s1_e1_c16",),
        ("ir_r1_k3_a1.1_p1.1_s2_e6_c24", "ir_r1_k3_a1.1_p1.1_s1_e3_c24"),
        ("ir_r1_k3.5.7_s2_e6_c40_se0.5_nsw", "ir_r3_k3.5_a1.1_p1.1_s1_e6_c40_se0.5_nsw"),
        ("ir_r1_k3.5.7_p1.1_s2_e6_c80_se0.25_nsw", "ir_r2_k3.5_p1.1_s1_e6_c80_se0.25_nsw"),
        ("ir_r1_k3.5.7_a1.1_p1.1_s1_e6_c120_se0.5_nsw", "ir_r2_k3.5.7.9_a1.1_p1.1_s1_e3_c120_se0.5_nsw"),
        ("ir_r1_k3.5.7.9.11_s2_e6_c200_se0.5_nsw", "ir_r2_k3.5.7.9_p1.1_s1_e6_c200_se0.5_nsw"),
    ),
    stem=16,
    features=1536,
)
M = ModelSpec(
    stages=(
        ("ds_r1_k3_s1_e1_c24",),
        ("ir_r1_k3.5.7_a1.1_p1.1_s2_e6_c32", "ir_r1_k3_a1.1_p1.1_s1_e3_c32"),
        ("ir_r1_k3.5.7.9_s2_e6_c40_se0.5_nsw", "ir_r3_k3.5_a1.1_p1.1_s1_e6_c40_se0.5_nsw"),
        ("ir_r1_k3.5.7_s2_e6_c80_se0.25_nsw", "ir_r3_k3.5.7.9_a1.1_p1.1_s1_e6_c80_se0.25_nsw"),
        ("ir_r1_k3_s1_e6_c120_se0.5_nsw", "ir_r3_k3.5.7.9_a1.1_p1.1_s1_e3_c120_se0.5_nsw"),
        ("ir_r1_k3.5.7.9_s2_e6_c200_se0.5_nsw", "ir_r3_k3.5.7.9_p1.1_s1_e6_c200_se0.5_nsw"),
    ),
    stem=24,
    features=1536,
    depth_rounding="round",
    drop_rate=0.25,
)
L = replace(M, width=1.3)
XL = replace(M, width=1.6, depth=1.2)
XXL = replace(M, width=2.4, depth=1.3)

MODELS = {
    "mixnet_s": Architecture(S, ft_in1k=WeightSet(76.0, 92.796, "1cf350a7")),
    "mixnet_m": Architecture(M, ft_in1k=WeightSet(77.268, 93.418, "fbbd9e8a")),
    "mixnet_l": Architecture(L, ft_in1k=WeightSet(78.97, 94.18, "27554ae7")),
    "mixnet_xl": Architecture(XL, ra_in1k=WeightSet(80.494, 94.938, "13d7aeef")),
    "mixnet_xxl": Architecture(XXL),
    "tf_mixnet_s": Architecture(S, in1k=WeightSet(75.656, 92.632, "60afe3e1")),
    "tf_mixnet_m": Architecture(M, in1k=WeightSet(76.952, 93.164, "3c049458")),
    "tf_mixnet_l": Architecture(L, in1k=WeightSet(78.774, 94.0, "49daedd5")),
}
