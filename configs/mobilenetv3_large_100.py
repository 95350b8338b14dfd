"""MobileNetV3-Large on ImageNet-1k with RandAugment and random erasing: timm's `mobilenetv3_large_100.ra_in1k`.

jeffnet train --config configs/mobilenetv3_large_100.py --data.path IMAGENET --output RUN
Hardware: timm used two GPUs with 512 images each. One GPU: --accumulate 2; BatchNorm also sees 512 images then.
Expect about 75.8 % top-1 of the moving average after 600 epochs (timm, docs/training_hparam_examples.md: 75.77 %, with
noise on the learning rate between 42 % and 90 % of the run; this recipe has none).
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
    model=ModelConfig(name="mobilenetv3_large_100", drop_rate=0.2, drop_path_rate=0.2, dtype="bfloat16"),
    data=DataConfig(path="imagenet"),
    augment=AugmentConfig(interpolation="random", policy="rand-m9-mstd0.5", erase_prob=0.2, erase_mode="pixel"),
    loss=LossConfig(label_smoothing=0.1),
    optimizer=OptimizerConfig(
        name="rmsproptf",
        learning_rate=0.064,
        weight_decay=1e-5,
        momentum=0.9,
        decay=0.9,
        epsilon=1e-3,
    ),
    # timm changes the learning rate once per epoch. Its warm-up was 3 epochs by default.
    schedule=ScheduleConfig(name="step", decay_rate=0.973, decay_every=2.4, decay_from_start=True, warmup=3.0),
    ema=EmaConfig(decay=0.9999, warmup=False),  # timm's has no warm-up
    epochs=600,
    batch_size=1024,
)
