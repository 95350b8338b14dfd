"""MobileNetV3-Large on ImageNet-1k with RandAugment and random erasing: timm's `mobilenetv3_large_100.ra_in1k`.

jeffnet train --config mobilenetv3_large_100 --data.path IMAGENET --output RUN
Hardware: timm used two GPUs with 512 images each. One GPU: --accumulate 2; BatchNorm also sees 512 images then.
Expect about 75.8 % top-1 of the moving average after 600 epochs (timm, docs/training_hparam_examples.md: 75.77 %, with
noise on the learning rate between 42 % and 90 % of the run; this recipe has none).
"""

from dataclasses import replace

from jeffnet.recipes.efficientnet_b0_ra import config as b0

config = replace(
    b0,
    model=replace(b0.model, name="mobilenetv3_large_100"),
    optimizer=replace(b0.optimizer, learning_rate=0.064),
    schedule=replace(b0.schedule, decay_rate=0.973),
    epochs=600,
    batch_size=1024,
)
