"""EfficientNet-EdgeTPU-Small on ImageNet-1k with the authors' settings for EfficientNet: RMSProp, exponential decay.

jeffnet train --config efficientnet_es --data.path IMAGENET --output RUN
Hardware: the authors used TPUs, 4096 images per step (tensorflow/tpu #546). One GPU: --accumulate 16.
Expect about 77.2 % top-1 of the moving average after 350 epochs, as the authors report for their weights
(tensorflow/tpu, models/official/efficientnet/edgetpu/README.md). They do not state the augmentation; this recipe uses
crops and flips.
"""

from dataclasses import replace

from jeffnet.recipes.efficientnet_b0_paper import config as b0
from jeffnet.train.config import AugmentConfig

config = replace(b0, model=replace(b0.model, name="tf_efficientnet_es"), augment=AugmentConfig())
