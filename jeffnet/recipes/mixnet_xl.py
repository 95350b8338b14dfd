"""MixNet-XL on ImageNet-1k with RandAugment and random erasing: timm's weights `mixnet_xl.ra_in1k`.

jeffnet train --config mixnet_xl --data.path IMAGENET --output RUN
Hardware: timm used two Titan RTX (24 GB), 128 images each. One GPU: --accumulate 2; BatchNorm also sees 128 then.
Expect 80.5 % top-1 of the moving average after 450 epochs (timm, docs/training_hparam_examples.md).
"""

from dataclasses import replace

from jeffnet.recipes.efficientnet_b0_ra import config as b0

config = replace(
    b0,
    model=replace(b0.model, name="mixnet_xl", drop_rate=0.3),
    augment=replace(b0.augment, erase_prob=0.3),
    optimizer=replace(b0.optimizer, learning_rate=0.016),
    schedule=replace(b0.schedule, decay_rate=0.969),
    batch_size=256,
)
