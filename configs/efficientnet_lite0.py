"""EfficientNet-Lite0 on ImageNet-1k with the authors' settings for EfficientNet: RMSProp, exponential decay.

jeffnet train --config configs/efficientnet_lite0.py --data.path IMAGENET --output RUN
Hardware: the authors used TPUs, 4096 images per step (tensorflow/tpu #546). One GPU: --accumulate 16.
Expect about 75.1 % top-1 of the moving average after 350 epochs, as the authors report for their weights
(tensorflow/tpu, models/official/efficientnet/lite/README.md; timm measures 74.8 %). They do not state the augmentation;
this recipe uses crops and flips.
"""

from jeffnet.train.config import (
    Config,
    DataConfig,
    EmaConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
)

config = Config(
    model=ModelConfig(
        name="tf_efficientnet_lite0", drop_rate=0.2, drop_path_rate=0.2, bn_momentum=0.99, dtype="bfloat16"
    ),
    data=DataConfig(path="imagenet"),
    loss=LossConfig(label_smoothing=0.1),
    optimizer=OptimizerConfig(
        name="rmsproptf",
        learning_rate=0.256,  # 0.016 per 256 images
        weight_decay=1e-5,
        momentum=0.9,
        decay=0.9,
        epsilon=1e-3,
    ),
    # A staircase, counted from the start of the run, as in the authors' code.
    schedule=ScheduleConfig(
        name="exponential", staircase=True, decay_rate=0.97, decay_every=2.4, decay_from_start=True, warmup=5.0
    ),
    ema=EmaConfig(decay=0.9999),
    epochs=350,
    batch_size=4096,
)
