"""MobileNet-EdgeTPU, versions 1 and 2, padded as in PyTorch.

Source: tensorflow/models, official/projects/edgetpu/vision; of version 2 also arXiv:2204.14007.
"""

from dataclasses import replace

from jeffnet.arch.model import Architecture, WeightSet
from jeffnet.arch.preprocessing import Preprocessing, inception
from jeffnet.arch.spec import ModelSpec

V1 = ModelSpec(
    stages=(
        ("cn_r1_k1_s1_c16",),
        ("er_r1_k3_s2_e8_c32", "er_r3_k3_s1_e4_c32"),
        ("er_r1_k3_s2_e8_c48", "er_r3_k3_s1_e4_c48"),
        ("ir_r1_k3_s2_e8_c96", "ir_r3_k3_s1_e4_c96"),
        ("ir_r1_k3_s1_e8_c96_noskip", "ir_r3_k3_s1_e4_c96"),
        ("ir_r1_k5_s2_e8_c160", "ir_r3_k5_s1_e4_c160"),
        ("ir_r1_k3_s1_e8_c192",),
    ),
    act="relu",
    drop_rate=0.2,
)


def _v2(
    channels: tuple[int, ...], group: int = 64, stem: int = 64, stem_kernel: int = 5, features: int = 1280
) -> ModelSpec:
    """The channels of the seven stages; of the second and third, some edge residuals expand in groups."""
    c = channels
    grouped = f"er_r1_k3_s1_e4_gs{group}"
    return replace(
        V1,
        stages=(
            (f"cn_r1_k1_s1_c{c[0]}",),
            (f"er_r1_k3_s2_e8_c{c[1]}", f"{grouped}_c{c[1]}"),
            (f"er_r1_k3_s2_e8_c{c[2]}", f"{grouped}_c{c[2]}", f"er_r1_k3_s1_e4_c{c[2]}", f"{grouped}_c{c[2]}"),
            (f"er_r1_k3_s2_e8_c{c[3]}", f"ir_r3_k3_s1_e4_c{c[3]}"),
            (f"ir_r1_k3_s1_e8_c{c[4]}", f"ir_r3_k3_s1_e4_c{c[4]}"),
            (f"ir_r1_k3_s2_e8_c{c[5]}", f"ir_r3_k3_s1_e4_c{c[5]}"),
            (f"ir_r1_k3_s1_e8_c{c[6]}",),
        ),
        stem=stem,
        stem_kernel=stem_kernel,
        features=features,
    )


V2_XS = _v2((16, 32, 48, 96, 144, 160, 192), stem=32, stem_kernel=3)
V2_S = _v2((24, 48, 64, 128, 160, 192, 256))
V2_M = _v2((32, 64, 80, 160, 192, 240, 320), features=1344)
V2_L = _v2((32, 64, 96, 192, 240, 256, 384), group=128, stem_kernel=7, features=1408)

MODELS = {
    "mobilenet_edgetpu_100": Architecture(V1, Preprocessing(224, 0.9)),
    "mobilenet_edgetpu_v2_xs": Architecture(V2_XS, Preprocessing(224, 0.9)),
    "mobilenet_edgetpu_v2_s": Architecture(V2_S, Preprocessing(224, 0.9)),
    "mobilenet_edgetpu_v2_m": Architecture(
        V2_M, inception(256, 0.95, train_size=224), ra4_e3600_r224_in1k=WeightSet(80.684, 95.442)
    ),
    "mobilenet_edgetpu_v2_l": Architecture(V2_L, Preprocessing(224, 0.9)),
}
