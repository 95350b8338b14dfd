"""EfficientNet-B0 on ImageNet-1k with progressive resizing and regularisation, from 128 to 224 pixels.

jeffnet train --config efficientnet_b0_progressive --data.path IMAGENET --output RUN
Hardware: as for efficientnet_b0_paper; the first three quarters of the run need less memory. One GPU:
--accumulate 16.
Expect no particular score: this recipe is ours, and none is published for it. The schedule is the paper's for
EfficientNetV2-S (arXiv:2104.00298, table 6), where it saved time without losing accuracy. Compare with 77.1 % of
efficientnet_b0_paper.
"""

from dataclasses import replace

from jeffnet.recipes.efficientnet_b0_paper import config as paper
from jeffnet.train.config import ProgressiveConfig

config = replace(
    paper,
    # `inc1`: severity increases with the magnitude for every operation; without it some would get weaker.
    augment=replace(paper.augment, policy="rand-m9-mstd0.5-inc1"),
    schedule=replace(paper.schedule, decay_from_start=False),
    # 128, 160, 192, 224 pixels; the last stage uses the ordinary values. B0 needs less regularisation than V2-S, whose
    # magnitudes go from 5 to 15.
    progressive=ProgressiveConfig(stages=4, image_size=128, drop_rate=0.1, magnitude=5.0),
)
