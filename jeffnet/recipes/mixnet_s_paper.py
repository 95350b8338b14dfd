"""MixNet-S on ImageNet-1k with the authors' settings, which are MnasNet's: RMSProp, exponential decay, crops and flips.

jeffnet train --config mixnet_s_paper --data.path IMAGENET --output RUN
Hardware: the authors used a TPU, 1024 images per step. One GPU: --accumulate 4.
Expect about 75.7 % top-1 of the moving average after 350 epochs: as timm measures with the authors' weights
(results-imagenet.csv). Architecture: arXiv:1907.09595; settings: tensorflow/tpu, models/official/mnasnet, which its
mixnet/README.md refers to.
"""

from dataclasses import replace

from jeffnet.recipes.efficientnet_b0_paper import config as b0
from jeffnet.train.config import AugmentConfig

config = replace(
    b0,
    model=replace(b0.model, name="tf_mixnet_s", drop_path_rate=0.0, dtype="float32"),
    augment=AugmentConfig(),
    optimizer=replace(b0.optimizer, learning_rate=0.064),
    batch_size=1024,
)
