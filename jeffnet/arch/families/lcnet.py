"""PP-LCNet.

Source: Cui et al., "PP-LCNet: A Lightweight CPU Convolutional Neural Network", arXiv:2109.15099.
"""

from dataclasses import replace

from jeffnet.arch.model import Architecture, WeightSet
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.spec import ModelSpec, SqueezeRule

LCNET = ModelSpec(
    stages=(
        ("dsa_r1_k3_s1_c32",),
        ("dsa_r2_k3_s2_c64",),
        ("dsa_r2_k3_s2_c128",),
        ("dsa_r1_k3_s2_c256", "dsa_r1_k5_s1_c256"),
        ("dsa_r4_k5_s1_c256",),
        ("dsa_r2_k5_s2_c512_se0.25",),
    ),
    stem=16,
    act="hard_swish",
    se=SqueezeRule(from_expanded=True, act="relu", gate="hard_sigmoid"),
    pool_first=True,
    drop_rate=0.2,
)

MODELS = {
    "lcnet_035": Architecture(replace(LCNET, width=0.35), Preprocessing(224, 0.875, "bilinear")),
    "lcnet_050": Architecture(replace(LCNET, width=0.5), Preprocessing(224, 0.875), ra2_in1k=WeightSet(63.138, 84.402)),
    "lcnet_075": Architecture(
        replace(LCNET, width=0.75), Preprocessing(224, 0.875), ra2_in1k=WeightSet(68.786, 88.384)
    ),
    "lcnet_100": Architecture(LCNET, Preprocessing(224, 0.875), ra2_in1k=WeightSet(72.13, 90.376)),
    "lcnet_150": Architecture(replace(LCNET, width=1.5), Preprocessing(224, 0.875, "bilinear")),
}
