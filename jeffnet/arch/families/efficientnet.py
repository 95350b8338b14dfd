"""EfficientNet: plain, AdvProp (`_ap`) and NoisyStudent (`_ns`) B0-B8 and L2, EdgeTPU, Lite.

Sources: Tan and Le, arXiv:1905.11946; AdvProp, arXiv:1911.09665; NoisyStudent, arXiv:1911.04252; EdgeTPU and Lite as in
tensorflow/tpu, models/official/efficientnet. Input sizes and crops are those of the published scores.
"""

from dataclasses import replace

from jeffnet.arch.model import Architecture, WeightSet
from jeffnet.arch.preprocessing import INCEPTION, Preprocessing, inception, sized
from jeffnet.arch.spec import ModelSpec, with_blocks

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
        # The authors' first block computes its expansion from 24 channels, although the stem has 32: hence `fc24`.
        ("er_r1_k3_s1_e4_c24_fc24_noskip",),
        ("er_r2_k3_s2_e8_c32",),
        ("er_r4_k3_s2_e8_c48",),
        ("ir_r5_k5_s2_e8_c96",),
        ("ir_r4_k5_s1_e8_c144",),
        ("ir_r2_k5_s2_e8_c192",),
    ),
    act="relu",
    stride_expansion=False,
    scale_features=True,
    drop_path_rate=0.2,
)
EM = replace(ES, depth=1.1)
EL = replace(ES, width=1.2, depth=1.4, drop_rate=0.3)

LITE0 = replace(with_blocks(B0, "_se0.25", ""), act="relu6", scale_stem=False, scale_features=False, scale_ends=False)
LITE1 = replace(LITE0, depth=1.1)
LITE2 = replace(LITE0, width=1.1, depth=1.2, drop_rate=0.3)
LITE3 = replace(LITE0, width=1.2, depth=1.4, drop_rate=0.3)
LITE4 = replace(LITE0, width=1.4, depth=1.8, drop_rate=0.3)

MODELS = {
    "efficientnet_b0": Architecture(B0, ra_in1k=WeightSet(77.698, 93.538, "d480c9de"),
        ra4_e3600_r224_in1k=WeightSet(79.364, 94.754, preprocessing=sized(256, 1.0, 224, **INCEPTION))),
    "efficientnet_b1": Architecture(B1, Preprocessing(256, 1.0, train_size=224),
        ft_in1k=WeightSet(78.806, 94.346, "44dd2799"),
        ra4_e3600_r240_in1k=WeightSet(81.444, 95.698, preprocessing=sized(288, 1.0, 240, **INCEPTION))),
    "efficientnet_b2": Architecture(B2, Preprocessing(288, 1.0, train_size=256),
        ra_in1k=WeightSet(80.612, 95.32, "3ab3711f")),
    "efficientnet_b3": Architecture(B3, Preprocessing(320, 1.0, train_size=288),
        ra2_in1k=WeightSet(82.296, 96.124, "2c86e358")),
    "efficientnet_b4": Architecture(B4, Preprocessing(384, 1.0, train_size=320),
        ra2_in1k=WeightSet(83.468, 96.574)),
    "efficientnet_b5": Architecture(B5, Preprocessing(448, 1.0, crop_mode="squash"),
        sw_in12k_ft_in1k=WeightSet(85.894, 97.742),
        sw_in12k=WeightSet(
            preprocessing=sized(416, 0.95, crop_mode="center"), classes="imagenet12k")),
    "efficientnet_b6": Architecture(B6, Preprocessing(528, 0.942)),
    "efficientnet_b7": Architecture(B7, Preprocessing(600, 0.949)),
    "efficientnet_b8": Architecture(B8, Preprocessing(672, 0.954)),
    "efficientnet_l2": Architecture(L2, Preprocessing(800, 0.961)),
    "efficientnet_es": Architecture(ES, ra_in1k=WeightSet(78.1, 93.928, "d7c5fd59")),
    "efficientnet_em": Architecture(EM, Preprocessing(240, 0.882), ra2_in1k=WeightSet(79.256, 94.794, "e36de59a")),
    "efficientnet_el": Architecture(EL, Preprocessing(300, 0.904), ra_in1k=WeightSet(81.308, 95.538)),
    "efficientnet_es_pruned": Architecture(ES, in1k=WeightSet(75.01, 92.438)),
    "efficientnet_el_pruned": Architecture(EL, Preprocessing(300, 0.904), in1k=WeightSet(80.284, 95.218)),
    "efficientnet_blur_b0": Architecture(replace(B0, downsample="blur")),
    "efficientnet_lite0": Architecture(LITE0, ra_in1k=WeightSet(75.488, 92.508, "6115ce63")),
    "efficientnet_lite1": Architecture(LITE1, Preprocessing(240, 0.882)),
    "efficientnet_lite2": Architecture(LITE2, Preprocessing(260, 0.89)),
    "efficientnet_lite3": Architecture(LITE3, Preprocessing(300, 0.904)),
    "efficientnet_lite4": Architecture(LITE4, Preprocessing(380, 0.922)),
    "tf_efficientnet_b0": Architecture(B0,
        aa_in1k=WeightSet(76.882, 93.27, "71d7115d"),
        ap_in1k=WeightSet(77.1, 93.258, "d860b743", INCEPTION),
        ns_jft_in1k=WeightSet(78.68, 94.372, "6f64c20c"),
        in1k=WeightSet(76.542, 93.008)),
    "tf_efficientnet_b1": Architecture(B1, Preprocessing(240, 0.882),
        aa_in1k=WeightSet(78.84, 94.202, "83ec238a"),
        ap_in1k=WeightSet(79.288, 94.316, "95cb042f", INCEPTION),
        ns_jft_in1k=WeightSet(81.388, 95.756, "9f8b5df2"),
        in1k=WeightSet(78.546, 94.096)),
    "tf_efficientnet_b2": Architecture(B2, Preprocessing(260, 0.89),
        aa_in1k=WeightSet(80.074, 94.906, "1d1f6c3a"),
        ap_in1k=WeightSet(80.3, 95.032, "c2e62974", INCEPTION),
        ns_jft_in1k=WeightSet(82.412, 96.238, "6729f09d"),
        in1k=WeightSet(79.612, 94.714)),
    "tf_efficientnet_b3": Architecture(B3, Preprocessing(300, 0.904),
        aa_in1k=WeightSet(81.648, 95.724, "2ac427e3"),
        ap_in1k=WeightSet(81.842, 95.614, "e62198e7", INCEPTION),
        ns_jft_in1k=WeightSet(84.054, 96.926, "b43b9f62"),
        in1k=WeightSet(80.878, 95.308)),
    "tf_efficientnet_b4": Architecture(B4, Preprocessing(380, 0.922),
        aa_in1k=WeightSet(83.04, 96.298, "716d81f1"),
        ap_in1k=WeightSet(83.246, 96.392, "e65a2ef8", INCEPTION),
        ns_jft_in1k=WeightSet(85.156, 97.482, "bfc84391"),
        in1k=WeightSet(82.598, 96.132)),
    "tf_efficientnet_b5": Architecture(B5, Preprocessing(456, 0.934),
        ra_in1k=WeightSet(83.834, 96.764, "6092c165"),
        ap_in1k=WeightSet(84.258, 96.984, "1924f949", INCEPTION),
        ns_jft_in1k=WeightSet(86.096, 97.744, "0dc1453c"),
        aa_in1k=WeightSet(83.696, 96.712),
        in1k=WeightSet(83.17, 96.534)),
    "tf_efficientnet_b6": Architecture(B6, Preprocessing(528, 0.942),
        aa_in1k=WeightSet(84.124, 96.89, "27e6732d"),
        ap_in1k=WeightSet(84.794, 97.138, "28daec82", INCEPTION),
        ns_jft_in1k=WeightSet(86.476, 97.864, "2f311b5f")),
    "tf_efficientnet_b7": Architecture(B7, Preprocessing(600, 0.949),
        ra_in1k=WeightSet(84.926, 97.22, "7bbc9e2b"),
        ap_in1k=WeightSet(85.132, 97.256, "c7218e34", INCEPTION),
        ns_jft_in1k=WeightSet(86.85, 98.08, "feca4a8a"),
        aa_in1k=WeightSet(84.424, 96.908)),
    "tf_efficientnet_b8": Architecture(B8, Preprocessing(672, 0.954),
        ra_in1k=WeightSet(85.344, 97.392, "67bfcabf"),
        ap_in1k=WeightSet(85.358, 97.298, "afc6b624", INCEPTION)),
    "tf_efficientnet_l2": Architecture(L2, Preprocessing(800, 0.96),
        ns_jft_in1k=WeightSet(88.36, 98.656, "7a2c14f2"),
        ns_jft_in1k_475=WeightSet(88.246, 98.554, "72254c39", {"image_size": 475, "crop_pct": 0.936})),
    "tf_efficientnet_es": Architecture(ES, inception(224, 0.875), in1k=WeightSet(77.258, 93.594, "6e146728")),
    "tf_efficientnet_em": Architecture(EM, inception(240, 0.882), in1k=WeightSet(78.708, 94.314, "21a4e831")),
    "tf_efficientnet_el": Architecture(EL, inception(300, 0.904), in1k=WeightSet(80.44, 95.164, "02387067")),
    "tf_efficientnet_lite0": Architecture(LITE0, inception(224, 0.875), in1k=WeightSet(74.846, 92.18, "49febd06")),
    "tf_efficientnet_lite1": Architecture(LITE1, inception(240, 0.882), in1k=WeightSet(76.674, 93.232, "529d9b59")),
    "tf_efficientnet_lite2": Architecture(LITE2, inception(260, 0.89), in1k=WeightSet(77.47, 93.756, "a185f6b2")),
    "tf_efficientnet_lite3": Architecture(LITE3, inception(300, 0.904, "bilinear"),
        in1k=WeightSet(79.808, 94.908, "df8fe453")),
    "tf_efficientnet_lite4": Architecture(LITE4, inception(380, 0.92, "bilinear"),
        in1k=WeightSet(81.54, 95.668, "615dfa42")),
}  # fmt: skip
