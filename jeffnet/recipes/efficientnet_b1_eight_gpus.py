"""EfficientNet-B1 on ImageNet-1k for eight GPUs: the paper's recipe at half its batch.

jeffnet train --config efficientnet_b1_eight_gpus --data.path IMAGENET --output RUN
Hardware: 8 devices (GPUs with 24 GB or more), 256 images each. BatchNorm uses all 2048, or with --model.bn_devices 1
the 256 of each GPU. One GPU: --accumulate 8; BatchNorm sees 256 images then.
Expect about 79.1 % top-1 of the moving average: the paper reports it after 350 epochs with 4096 images per step
(arXiv:1905.11946v5, table 2, settings in section 5.2). We halved the batch and the learning rate.
"""

from dataclasses import replace

from jeffnet.recipes.efficientnet_b0_paper import config as b0

config = replace(
    b0,
    model=replace(b0.model, name="tf_efficientnet_b1"),
    optimizer=replace(b0.optimizer, learning_rate=0.128),
    batch_size=2048,
)
