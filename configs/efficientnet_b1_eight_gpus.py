"""EfficientNet-B1 on ImageNet-1k for eight GPUs: the paper's recipe at half its batch.

jeffnet train --config configs/efficientnet_b1_eight_gpus.py --data.path IMAGENET --output RUN
Hardware: 8 devices (GPUs with 24 GB or more), 256 images each. BatchNorm uses all 2048, or with --model.bn_devices 1
the 256 of each GPU. One GPU: --accumulate 8; BatchNorm sees 256 images then.
Expect about 79.1 % top-1 of the moving average: the paper reports it after 350 epochs with 4096 images per step
(arXiv:1905.11946v5, table 2, settings in section 5.2). We halved the batch and the learning rate.
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
    model=ModelConfig(name="tf_efficientnet_b1", drop_rate=0.2, drop_path_rate=0.2, bn_momentum=0.99, dtype="bfloat16"),
    data=DataConfig(path="imagenet"),
    augment=AugmentConfig(policy="v0"),
    loss=LossConfig(label_smoothing=0.1),
    optimizer=OptimizerConfig(
        name="rmsproptf",
        learning_rate=0.128,  # 0.016 per 256 images
        weight_decay=1e-5,
        momentum=0.9,
        decay=0.9,
        epsilon=1e-3,
    ),
    schedule=ScheduleConfig(
        name="exponential", staircase=True, decay_rate=0.97, decay_every=2.4, decay_from_start=True, warmup=5.0
    ),
    ema=EmaConfig(decay=0.9999),
    epochs=350,
    batch_size=2048,
)
