"""EfficientNet-EdgeTPU-Small on ImageNet-1k with RandAugment and random erasing: timm's `efficientnet_es.ra_in1k`.

jeffnet train --config configs/efficientnet_es_ra.py --data.path IMAGENET --output RUN
Hardware: timm used eight V100 with 128 images each. One GPU: --accumulate 8; BatchNorm also sees 128 images then.
Expect 78.1 % top-1 of the average of the 8 best models (averaged.safetensors) after 450 epochs (timm,
docs/training_hparam_examples.md; trained by Andrew Lavin).
"""

from jeffnet.train.config import (
    AugmentConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
)

config = Config(
    # timm's --amp uses float16; bfloat16 has the range of float32 and needs no loss scaling.
    model=ModelConfig(name="efficientnet_es", drop_rate=0.2, drop_path_rate=0.2, dtype="bfloat16"),
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
    schedule=ScheduleConfig(name="step", decay_rate=0.97, decay_every=2.4, decay_from_start=True, warmup=3.0),
    epochs=450,
    batch_size=1024,
    # Instead of a moving average.
    checkpoint=CheckpointConfig(keep_best=8, average_best=8),
)
