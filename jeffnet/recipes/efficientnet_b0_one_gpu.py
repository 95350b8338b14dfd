"""EfficientNet-B0 on ImageNet-1k for one GPU of 24 GB: timm's RandAugment recipe at half its batch.

jeffnet train --config efficientnet_b0_one_gpu --data.path IMAGENET --output RUN
Hardware: 1 device (a GPU with 24 GB), 384 images. With less memory: --accumulate 2.
Expect about 77.7 % top-1 of the moving average: timm reports it after 450 epochs on two such GPUs (timm,
docs/training_hparam_examples.md; trained by Michael Klachko). We halved the batch and the learning rate.
"""

from dataclasses import replace

from jeffnet.recipes.efficientnet_b0_ra import config as two_gpus

config = replace(two_gpus, optimizer=replace(two_gpus.optimizer, learning_rate=0.024), batch_size=384)
