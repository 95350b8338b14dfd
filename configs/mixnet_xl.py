"""MixNet-XL on ImageNet-1k with RandAugment and random erasing: timm's weights `mixnet_xl.ra_in1k`.

jeffnet train --config configs/mixnet_xl.py --data.path IMAGENET --output RUN
Hardware: timm used two Titan RTX (24 GB), 128 images each. One GPU: --accumulate 2; BatchNorm also sees 128 then.
Expect 80.5 % top-1 of the moving average after 450 epochs (timm, docs/training_hparam_examples.md).
"""

from jeffnet.train.config import (
    AugmentConfig,
    Config,
    DataConfig,
    EmaConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
)

config = Config(
    # timm's --amp uses float16; bfloat16 has the range of float32 and needs no loss scaling.
    model=ModelConfig(name="mixnet_xl", drop_rate=0.3, drop_path_rate=0.2, dtype="bfloat16"),
    data=DataConfig(path="imagenet"),
    augment=AugmentConfig(interpolation="random", policy="rand-m9-mstd0.5", erase_prob=0.3, erase_mode="pixel"),
    loss=LossConfig(label_smoothing=0.1),
    optimizer=OptimizerConfig(
        name="rmsproptf",
        learning_rate=0.016,
        weight_decay=1e-5,
        momentum=0.9,
        decay=0.9,
        epsilon=1e-3,
    ),
    # timm changes the learning rate once per epoch. Its warm-up was 3 epochs by default.
    schedule=ScheduleConfig(name="step", decay_rate=0.969, decay_every=2.4, decay_from_start=True, warmup=3.0),
    ema=EmaConfig(decay=0.9999, warmup=False),  # timm's has no warm-up
    epochs=450,
    batch_size=256,
)
