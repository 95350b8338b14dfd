"""TinyNet A to E: EfficientNet-B0 made smaller by other trade-offs of resolution, depth and width.

Source: Han et al., "Model Rubik's Cube: Twisting Resolution, Depth and Width for TinyNets", arXiv:2010.14819.
"""

from dataclasses import replace

from jeffnet.arch.families.efficientnet import B0
from jeffnet.arch.model import Architecture, WeightSet
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.spec import ModelSpec


def _tiny(width: float, depth: float) -> ModelSpec:
    return replace(B0, width=width, depth=depth, depth_rounding="round", scale_stem=False, scale_features=False)


MODELS = {
    "tinynet_a": Architecture(_tiny(1.0, 1.2), Preprocessing(192, 0.875), in1k=WeightSet(77.666, 93.532)),
    "tinynet_b": Architecture(_tiny(0.75, 1.1), Preprocessing(188, 0.875), in1k=WeightSet(74.946, 92.194)),
    "tinynet_c": Architecture(_tiny(0.54, 0.85), Preprocessing(184, 0.875), in1k=WeightSet(71.214, 89.746)),
    "tinynet_d": Architecture(_tiny(0.54, 0.695), Preprocessing(152, 0.875), in1k=WeightSet(66.936, 87.078)),
    "tinynet_e": Architecture(_tiny(0.51, 0.6), Preprocessing(106, 0.875), in1k=WeightSet(59.874, 81.774)),
}
