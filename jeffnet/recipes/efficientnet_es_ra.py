"""EfficientNet-EdgeTPU-Small on ImageNet-1k with RandAugment and random erasing: timm's `efficientnet_es.ra_in1k`.

jeffnet train --config efficientnet_es_ra --data.path IMAGENET --output RUN
Hardware: timm used eight V100 with 128 images each. One GPU: --accumulate 8; BatchNorm also sees 128 images then.
Expect 78.1 % top-1 of the average of the 8 best models (averaged.safetensors) after 450 epochs (timm,
docs/training_hparam_examples.md; trained by Andrew Lavin).
"""

from dataclasses import replace

from jeffnet.recipes.efficientnet_b0_ra import config as b0
from jeffnet.train.config import CheckpointConfig, EmaConfig

config = replace(
    b0,
    model=replace(b0.model, name="efficientnet_es"),
    optimizer=replace(b0.optimizer, learning_rate=0.064),
    # Instead of a moving average.
    ema=EmaConfig(),
    checkpoint=CheckpointConfig(keep_best=8, average_best=8),
    batch_size=1024,
)
