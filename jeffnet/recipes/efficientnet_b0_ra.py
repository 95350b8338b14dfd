"""EfficientNet-B0 on ImageNet-1k with RandAugment and random erasing: timm's weights `efficientnet_b0.ra_in1k`.

jeffnet train --config efficientnet_b0_ra --data.path IMAGENET --output RUN
Hardware: timm used two GPUs with 384 images each. One GPU: --accumulate 2; BatchNorm also sees 384 images then.
Expect 77.7 % top-1 of the moving average after 450 epochs (timm, docs/training_hparam_examples.md; trained by Michael
Klachko).
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
    model=ModelConfig(name="efficientnet_b0", drop_rate=0.2, drop_path_rate=0.2, dtype="bfloat16"),
    data=DataConfig(path="imagenet"),
    augment=AugmentConfig(interpolation="random", policy="rand-m9-mstd0.5", erase_prob=0.2, erase_mode="pixel"),
    loss=LossConfig(label_smoothing=0.1),
    optimizer=OptimizerConfig(
        name="rmsproptf",
        learning_rate=0.048,  # 0.016 per 256 images
        weight_decay=1e-5,
        momentum=0.9,
        decay=0.9,
        epsilon=1e-3,
    ),
    # timm changes the learning rate once per epoch. Its warm-up was 3 epochs by default.
    schedule=ScheduleConfig(name="step", decay_rate=0.97, decay_every=2.4, decay_from_start=True, warmup=3.0),
    ema=EmaConfig(decay=0.9999, warmup=False),  # timm's has no warm-up
    epochs=450,
    batch_size=768,
)
