"""EfficientNet: plain, AdvProp (`_ap`) and NoisyStudent (`_ns`) B0-B8 and L2, EdgeTPU, Lite.

Sources: Tan and Le, arXiv:1905.11946; AdvProp, arXiv:1911.09665; NoisyStudent, arXiv:1911.04252; EdgeTPU and Lite as in
tensorflow/tpu, models/official/efficientnet. Input sizes and crops are those of the published scores.
"""

from dataclasses import replace

from jeffnet.arch.preprocessing import INCEPTION_MEAN, INCEPTION_STD, Preprocessing
from jeffnet.arch.spec import ModelSpec, as_tensorflow

B0 = ModelSpec(
    stages=(
        ("ds_r1_k3_s1_e1_c16_se0.25",),
        ("ir_r2_k3_s2_e6_c24_se0.25",),
        ("ir_r2_k5_s2_e6_c40_se0.25",),
        ("ir_r3_k3_s2_e6_c80_se0.25",),
        ("ir_r3_k5_s1_e6_c112_se0.25",),
        ("ir_r4_k5_s2_e6_c192_se0.25",),
        ("ir_r1_k3_s1_e6_c320_se0.25",),
    ),
    act="silu",
    scale_features=True,
    drop_rate=0.2,
    drop_path_rate=0.2,
)
B1 = replace(B0, depth=1.1)
B2 = replace(B0, width=1.1, depth=1.2, drop_rate=0.3)
B3 = replace(B0, width=1.2, depth=1.4, drop_rate=0.3)
B4 = replace(B0, width=1.4, depth=1.8, drop_rate=0.4)
B5 = replace(B0, width=1.6, depth=2.2, drop_rate=0.4)
B6 = replace(B0, width=1.8, depth=2.6, drop_rate=0.5)
B7 = replace(B0, width=2.0, depth=3.1, drop_rate=0.5)
B8 = replace(B0, width=2.2, depth=3.6, drop_rate=0.5)
L2 = replace(B0, width=4.3, depth=5.3, drop_rate=0.5)

ES = ModelSpec(
    stages=(
        # The authors' first block expands 24 channels although the stem has 32: `fc24` says so.
        ("er_r1_k3_s1_e4_c24_fc24_noskip",),
        ("er_r2_k3_s2_e8_c32",),
        ("er_r4_k3_s2_e8_c48",),
        ("ir_r5_k5_s2_e8_c96",),
        ("ir_r4_k5_s1_e8_c144",),
        ("ir_r2_k5_s2_e8_c192",),
    ),
    act="relu",
    scale_features=True,
    drop_rate=0.2,
    drop_path_rate=0.2,
)
EM = replace(ES, depth=1.1)
EL = replace(ES, width=1.2, depth=1.4, drop_rate=0.3)

LITE0 = ModelSpec(
    stages=(
        ("ds_r1_k3_s1_e1_c16",),
        ("ir_r2_k3_s2_e6_c24",),
        ("ir_r2_k5_s2_e6_c40",),
        ("ir_r3_k3_s2_e6_c80",),
        ("ir_r3_k5_s1_e6_c112",),
        ("ir_r4_k5_s2_e6_c192",),
        ("ir_r1_k3_s1_e6_c320",),
    ),
    act="relu6",
    scale_stem=False,
    scale_ends=False,
    drop_rate=0.2,
    drop_path_rate=0.2,
)
LITE1 = replace(LITE0, depth=1.1)
LITE2 = replace(LITE0, width=1.1, depth=1.2, drop_rate=0.3)
LITE3 = replace(LITE0, width=1.2, depth=1.4, drop_rate=0.3)
LITE4 = replace(LITE0, width=1.4, depth=1.8, drop_rate=0.3)

MODELS = {
    "pt_efficientnet_b0": B0,
    "pt_efficientnet_b1": B1,
    "pt_efficientnet_b2": B2,
    "pt_efficientnet_b3": B3,
    "pt_efficientnet_b4": B4,
    "pt_efficientnet_b5": B5,
    "pt_efficientnet_b6": B6,
    "pt_efficientnet_b7": B7,
    "pt_efficientnet_b8": B8,
    "pt_efficientnet_l2": L2,
    "pt_efficientnet_es": ES,
    "pt_efficientnet_em": EM,
    "pt_efficientnet_el": EL,
    "pt_efficientnet_lite0": LITE0,
    "pt_efficientnet_lite1": LITE1,
    "pt_efficientnet_lite2": LITE2,
    "pt_efficientnet_lite3": LITE3,
    "pt_efficientnet_lite4": LITE4,
    "tf_efficientnet_b0": as_tensorflow(B0),
    "tf_efficientnet_b1": as_tensorflow(B1),
    "tf_efficientnet_b2": as_tensorflow(B2),
    "tf_efficientnet_b3": as_tensorflow(B3),
    "tf_efficientnet_b4": as_tensorflow(B4),
    "tf_efficientnet_b5": as_tensorflow(B5),
    "tf_efficientnet_b6": as_tensorflow(B6),
    "tf_efficientnet_b7": as_tensorflow(B7),
    "tf_efficientnet_b8": as_tensorflow(B8),
    "tf_efficientnet_b0_ap": as_tensorflow(B0),
    "tf_efficientnet_b1_ap": as_tensorflow(B1),
    "tf_efficientnet_b2_ap": as_tensorflow(B2),
    "tf_efficientnet_b3_ap": as_tensorflow(B3),
    "tf_efficientnet_b4_ap": as_tensorflow(B4),
    "tf_efficientnet_b5_ap": as_tensorflow(B5),
    "tf_efficientnet_b6_ap": as_tensorflow(B6),
    "tf_efficientnet_b7_ap": as_tensorflow(B7),
    "tf_efficientnet_b8_ap": as_tensorflow(B8),
    "tf_efficientnet_b0_ns": as_tensorflow(B0),
    "tf_efficientnet_b1_ns": as_tensorflow(B1),
    "tf_efficientnet_b2_ns": as_tensorflow(B2),
    "tf_efficientnet_b3_ns": as_tensorflow(B3),
    "tf_efficientnet_b4_ns": as_tensorflow(B4),
    "tf_efficientnet_b5_ns": as_tensorflow(B5),
    "tf_efficientnet_b6_ns": as_tensorflow(B6),
    "tf_efficientnet_b7_ns": as_tensorflow(B7),
    "tf_efficientnet_l2_ns": as_tensorflow(L2),
    "tf_efficientnet_l2_ns_475": as_tensorflow(L2),
    "tf_efficientnet_es": as_tensorflow(ES),
    "tf_efficientnet_em": as_tensorflow(EM),
    "tf_efficientnet_el": as_tensorflow(EL),
    "tf_efficientnet_lite0": as_tensorflow(LITE0),
    "tf_efficientnet_lite1": as_tensorflow(LITE1),
    "tf_efficientnet_lite2": as_tensorflow(LITE2),
    "tf_efficientnet_lite3": as_tensorflow(LITE3),
    "tf_efficientnet_lite4": as_tensorflow(LITE4),
}


def _inception(image_size: int, crop_pct: float, interpolation: str = "bicubic") -> Preprocessing:
    return Preprocessing(image_size, crop_pct, interpolation, INCEPTION_MEAN, INCEPTION_STD)


PREPROCESSING = {
    "pt_efficientnet_b0": Preprocessing(224, 0.875),
    "pt_efficientnet_b1": Preprocessing(240, 0.875),
    "pt_efficientnet_b2": Preprocessing(260, 0.875),
    "pt_efficientnet_b3": Preprocessing(300, 0.904),
    "pt_efficientnet_b4": Preprocessing(380, 0.922),
    "pt_efficientnet_b5": Preprocessing(456, 0.934),
    "pt_efficientnet_b6": Preprocessing(528, 0.942),
    "pt_efficientnet_b7": Preprocessing(600, 0.949),
    "pt_efficientnet_b8": Preprocessing(672, 0.954),
    "pt_efficientnet_l2": Preprocessing(800, 0.961),
    "pt_efficientnet_es": Preprocessing(224, 0.875),
    "pt_efficientnet_em": Preprocessing(240, 0.882),
    "pt_efficientnet_el": Preprocessing(300, 0.904),
    "pt_efficientnet_lite0": Preprocessing(224, 0.875),
    "pt_efficientnet_lite1": Preprocessing(240, 0.882),
    "pt_efficientnet_lite2": Preprocessing(260, 0.89),
    "pt_efficientnet_lite3": Preprocessing(300, 0.904),
    "pt_efficientnet_lite4": Preprocessing(380, 0.922),
    "tf_efficientnet_b0": Preprocessing(224, 0.875),
    "tf_efficientnet_b1": Preprocessing(240, 0.882),
    "tf_efficientnet_b2": Preprocessing(260, 0.89),
    "tf_efficientnet_b3": Preprocessing(300, 0.904),
    "tf_efficientnet_b4": Preprocessing(380, 0.922),
    "tf_efficientnet_b5": Preprocessing(456, 0.934),
    "tf_efficientnet_b6": Preprocessing(528, 0.942),
    "tf_efficientnet_b7": Preprocessing(600, 0.949),
    "tf_efficientnet_b8": Preprocessing(672, 0.954),
    "tf_efficientnet_b0_ap": _inception(224, 0.875),
    "tf_efficientnet_b1_ap": _inception(240, 0.882),
    "tf_efficientnet_b2_ap": _inception(260, 0.89),
    "tf_efficientnet_b3_ap": _inception(300, 0.904),
    "tf_efficientnet_b4_ap": _inception(380, 0.922),
    "tf_efficientnet_b5_ap": _inception(456, 0.934),
    "tf_efficientnet_b6_ap": _inception(528, 0.942),
    "tf_efficientnet_b7_ap": _inception(600, 0.949),
    "tf_efficientnet_b8_ap": _inception(672, 0.954),
    "tf_efficientnet_b0_ns": Preprocessing(224, 0.875),
    "tf_efficientnet_b1_ns": Preprocessing(240, 0.882),
    "tf_efficientnet_b2_ns": Preprocessing(260, 0.89),
    "tf_efficientnet_b3_ns": Preprocessing(300, 0.904),
    "tf_efficientnet_b4_ns": Preprocessing(380, 0.922),
    "tf_efficientnet_b5_ns": Preprocessing(456, 0.934),
    "tf_efficientnet_b6_ns": Preprocessing(528, 0.942),
    "tf_efficientnet_b7_ns": Preprocessing(600, 0.949),
    "tf_efficientnet_l2_ns": Preprocessing(800, 0.96),
    "tf_efficientnet_l2_ns_475": Preprocessing(475, 0.936),
    "tf_efficientnet_es": _inception(224, 0.875),
    "tf_efficientnet_em": _inception(240, 0.882),
    "tf_efficientnet_el": _inception(300, 0.904),
    "tf_efficientnet_lite0": _inception(224, 0.875),
    "tf_efficientnet_lite1": _inception(240, 0.882),
    "tf_efficientnet_lite2": _inception(260, 0.89),
    "tf_efficientnet_lite3": _inception(300, 0.904, "bilinear"),
    "tf_efficientnet_lite4": _inception(380, 0.92, "bilinear"),
}
