"""MixNet S, M, L and XL: depthwise kernels of several sizes side by side.

Source: Tan and Le, "MixConv: Mixed Depthwise Convolutional Kernels", arXiv:1907.09595; XL is timm's scaling of M.
"""

from dataclasses import replace

from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.spec import ModelSpec, as_tensorflow

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
    drop_rate=0.2,
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

MODELS = {
    "pt_mixnet_s": S,
    "pt_mixnet_m": M,
    "pt_mixnet_l": L,
    "pt_mixnet_xl": XL,
    "tf_mixnet_s": as_tensorflow(S),
    "tf_mixnet_m": as_tensorflow(M),
    "tf_mixnet_l": as_tensorflow(L),
}

PREPROCESSING = {name: Preprocessing(224, 0.875) for name in MODELS}
