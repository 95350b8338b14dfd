"""Networks found by architecture search: MNASNet A1, B1 and small, Single-Path NAS, FBNet-C.

Sources: Tan et al., "MnasNet", arXiv:1807.11626; Stamoulis et al., "Single-Path NAS", arXiv:1904.02877; Wu et al.,
"FBNet", arXiv:1812.03443.
"""

import re
from dataclasses import replace

from jeffnet.arch.model import Architecture, Model, WeightSet
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.spec import ModelSpec

MNASNET_A1 = ModelSpec(
    stages=(
        ("ds_r1_k3_s1_e1_c16_noskip",),
        ("ir_r2_k3_s2_e6_c24",),
        ("ir_r3_k5_s2_e3_c40_se0.25",),
        ("ir_r4_k3_s2_e6_c80",),
        ("ir_r2_k3_s1_e6_c112_se0.25",),
        ("ir_r3_k5_s2_e6_c160_se0.25",),
        ("ir_r1_k3_s1_e6_c320",),
    ),
)
MNASNET_B1 = ModelSpec(
    stages=(
        ("ds_r1_k3_s1_c16_noskip",),
        ("ir_r3_k3_s2_e3_c24",),
        ("ir_r3_k5_s2_e3_c40",),
        ("ir_r3_k5_s2_e6_c80",),
        ("ir_r2_k3_s1_e6_c96",),
        ("ir_r4_k5_s2_e6_c192",),
        ("ir_r1_k3_s1_e6_c320_noskip",),
    ),
)
MNASNET_SMALL = ModelSpec(
    stages=(
        ("ds_r1_k3_s1_c8",),
        ("ir_r1_k3_s2_e3_c16",),
        ("ir_r2_k3_s2_e6_c16",),
        ("ir_r4_k5_s2_e6_c32_se0.25",),
        ("ir_r3_k3_s1_e6_c32_se0.25",),
        ("ir_r3_k5_s2_e6_c88_se0.25",),
        ("ir_r1_k3_s1_e6_c144",),
    ),
    stem=8,
)
SPNASNET = ModelSpec(
    stages=(
        ("ds_r1_k3_s1_c16_noskip",),
        ("ir_r3_k3_s2_e3_c24",),
        ("ir_r1_k5_s2_e6_c40", "ir_r3_k3_s1_e3_c40"),
        ("ir_r1_k5_s2_e6_c80", "ir_r3_k3_s1_e3_c80"),
        ("ir_r1_k5_s1_e6_c96", "ir_r3_k5_s1_e3_c96"),
        ("ir_r4_k5_s2_e6_c192",),
        ("ir_r1_k3_s1_e6_c320_noskip",),
    ),
)
FBNET_C = ModelSpec(
    stages=(
        ("ir_r1_k3_s1_e1_c16",),
        ("ir_r1_k3_s2_e6_c24", "ir_r2_k3_s1_e1_c24"),
        ("ir_r1_k5_s2_e6_c32", "ir_r1_k5_s1_e3_c32", "ir_r1_k5_s1_e6_c32", "ir_r1_k3_s1_e6_c32"),
        ("ir_r1_k5_s2_e6_c64", "ir_r1_k5_s1_e3_c64", "ir_r2_k5_s1_e6_c64"),
        ("ir_r3_k5_s1_e6_c112", "ir_r1_k5_s1_e3_c112"),
        ("ir_r4_k5_s2_e6_c184",),
        ("ir_r1_k3_s1_e6_c352",),
    ),
    stem=16,
    features=1984,
)

_BILINEAR = Preprocessing(interpolation="bilinear")

MODELS = {
    "fbnetc_100": Architecture(FBNET_C, _BILINEAR, rmsp_in1k=WeightSet(75.12, 92.384, "21618080")),
    "mnasnet_100": Architecture(MNASNET_B1, rmsp_in1k=WeightSet(74.672, 92.108, "3580d9fc")),
    "mnasnet_050": Architecture(replace(MNASNET_B1, width=0.5)),
    "mnasnet_075": Architecture(replace(MNASNET_B1, width=0.75)),
    "mnasnet_140": Architecture(replace(MNASNET_B1, width=1.4)),
    "mnasnet_small": Architecture(MNASNET_SMALL, lamb_in1k=WeightSet(66.204, 86.47)),
    "semnasnet_100": Architecture(MNASNET_A1, rmsp_in1k=WeightSet(75.452, 92.608, "e8c37d5d")),
    "semnasnet_050": Architecture(replace(MNASNET_A1, width=0.5)),
    "semnasnet_075": Architecture(replace(MNASNET_A1, width=0.75), rmsp_in1k=WeightSet(73.0, 91.124)),
    "semnasnet_140": Architecture(replace(MNASNET_A1, width=1.4)),
    "spnasnet_100": Architecture(SPNASNET, _BILINEAR, rmsp_in1k=WeightSet(74.086, 91.826, "886fba67")),
    "tf_mnasnet_100": Architecture(MNASNET_B1),
    "tf_semnasnet_100": Architecture(MNASNET_A1),
}

# Their width in per cent.
_SCALED = re.compile(r"mnasnet_(?!000)(\d{3})")


def scaled(name: str) -> Model | None:
    """MNASNet B1 with the width in its name, such as torchvision's 1.3 (`mnasnet_130`); None for all other names."""
    match = _SCALED.fullmatch(name)
    return Model(replace(MNASNET_B1, width=int(match[1]) / 100), Preprocessing()) if match else None
