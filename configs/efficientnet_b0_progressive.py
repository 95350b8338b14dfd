"""EfficientNet-B0 on ImageNet-1k with progressive resizing and regularisation, from 128 to 224 pixels.

jeffnet train --config configs/efficientnet_b0_progressive.py --data.path IMAGENET --output RUN
Hardware: as for configs/efficientnet_b0_paper.py; the first three quarters of the run need less memory. One GPU:
--accumulate 16.
Expect no particular score: this recipe is ours, and none is published for it. The schedule is the paper's for
EfficientNetV2-S (arXiv:2104.00298, table 6), where it saved time without losing accuracy. Compare with 77.1 % of
configs/efficientnet_b0_paper.py.
"""

from jeffnet.train.config import (
    AugmentConfig,
    Config,
    DataConfig,
    EmaConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ProgressiveConfig,
    ScheduleConfig,
)

config = Config(
    model=ModelConfig(name="tf_efficientnet_b0", drop_rate=0.2, drop_path_rate=0.2, bn_momentum=0.99, dtype="bfloat16"),
    data=DataConfig(path="imagenet"),
    # `inc1`: severity increases with the magnitude for every operation; without it some would get weaker.
    augment=AugmentConfig(policy="rand-m9-mstd0.5-inc1"),
    loss=LossConfig(label_smoothing=0.1),
    optimizer=OptimizerConfig(
        name="rmsproptf",
        learning_rate=0.256,  # 0.016 per 256 images
        weight_decay=1e-5,
        momentum=0.9,
        decay=0.9,
        epsilon=1e-3,
    ),
    schedule=ScheduleConfig(name="exponential", staircase=True, decay_rate=0.97, decay_every=2.4, warmup=5.0),
    ema=EmaConfig(decay=0.9999),
    # 128, 160, 192, 224 pixels; the last stage uses the values above. B0 needs less regularisation than V2-S, whose
    # magnitudes go from 5 to 15.
    progressive=ProgressiveConfig(stages=4, image_size=128, drop_rate=0.1, magnitude=5.0),
    epochs=350,
    batch_size=4096,
)
