"""EfficientNet-B1 on ImageNet-1k for eight GPUs: the paper's recipe at half its batch.

jeffnet train --config configs/efficientnet_b1_eight_gpus.py --data.path IMAGENET --output RUN
Hardware: 8 devices (GPUs of 24 GB or more) have 256 pictures each. One GPU: --accumulate 8, where BatchNorm also sees
256 at a time. BatchNorm sees all 2048 here; --model.bn_devices 1 lets each GPU see its own.
Expect about 79.1 % top-1 of the moving average: what the paper has after 350 epochs of 4096 pictures a step
(arXiv:1905.11946v5, table 2, settings in section 5.2). The batch of 2048, with the rate in proportion, is ours.
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
        learning_rate=0.128,  # 0.016 for each 256 pictures of a batch
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
