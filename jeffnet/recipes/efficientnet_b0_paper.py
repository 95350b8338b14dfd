"""EfficientNet-B0 on ImageNet-1k as in the paper: RMSProp, exponential decay, AutoAugment.

jeffnet train --config efficientnet_b0_paper --data.path IMAGENET --output RUN
Hardware: the authors used TPUs, 4096 images per step (tensorflow/tpu #546). One GPU: --accumulate 16.
Expect 77.1 % top-1 of the moving average after 350 epochs (arXiv:1905.11946v5, table 2, settings in section 5.2); timm
measures 76.9 % with the authors' weights. Without AutoAugment (--augment.policy none) they report 76.8 %
(tensorflow/tpu, models/official/efficientnet/README.md).
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
    model=ModelConfig(name="tf_efficientnet_b0", drop_rate=0.2, drop_path_rate=0.2, bn_momentum=0.99, dtype="bfloat16"),
    data=DataConfig(path="imagenet"),
    augment=AugmentConfig(policy="v0"),
    loss=LossConfig(label_smoothing=0.1),
    optimizer=OptimizerConfig(
        name="rmsproptf",
        learning_rate=0.256,  # 0.016 per 256 images
        weight_decay=1e-5,
        momentum=0.9,
        decay=0.9,
        epsilon=1e-3,
    ),
    # A staircase, counted from the start of the run, as in the authors' code: the rate is 0.241 after the warm-up.
    schedule=ScheduleConfig(
        name="exponential", staircase=True, decay_rate=0.97, decay_every=2.4, decay_from_start=True, warmup=5.0
    ),
    ema=EmaConfig(decay=0.9999),
    epochs=350,
    batch_size=4096,
)
