"""A small MobileNetV3 on the 1,797 handwritten digits of scikit-learn: the demo, on any computer.

jeffnet train --config demo_digits --output demo_run
Hardware: 2 CPU cores, a minute or two. Expect at least 97 % top-1 on the 355 held-out digits.
"""

from jeffnet.train.config import (
    AugmentConfig,
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
)

config = Config(
    model=ModelConfig(name="mobilenetv3_small_075", in_chans=1, output_stride=8),
    data=DataConfig(path="digits", image_size=32, crop_pct=1.0),
    # No flips: a mirrored digit is another digit, or none.
    augment=AugmentConfig(scale=(0.8, 1.0), ratio=(0.8, 1.25), hflip=0.0),
    loss=LossConfig(label_smoothing=0.1),
    optimizer=OptimizerConfig(name="adamw", learning_rate=4e-3, weight_decay=0.02),
    schedule=ScheduleConfig(name="cosine", warmup=1.0),
    epochs=12,
    batch_size=64,
)
