"""EfficientNet-B3 on ImageNet-1k as in the paper: RMSProp, exponential decay, AutoAugment, 300 pixels.

jeffnet train --config efficientnet_b3_paper --data.path IMAGENET --output RUN
Hardware: the authors used TPUs, 4096 images per step (tensorflow/tpu #546). One GPU: --accumulate 64.
Expect 81.6 % top-1 of the moving average after 350 epochs (arXiv:1905.11946v5, table 2, settings in section 5.2); timm
measures the same with the authors' weights. Without AutoAugment (--augment.policy none) they report 81.0 %
(tensorflow/tpu, models/official/efficientnet/README.md).
"""

from dataclasses import replace

from jeffnet.recipes.efficientnet_b0_paper import config as b0

config = replace(b0, model=replace(b0.model, name="tf_efficientnet_b3", drop_rate=0.3))
