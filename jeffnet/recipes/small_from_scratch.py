"""A small MobileNetV3 from scratch on a folder of images, without a GPU.

jeffnet train --config small_from_scratch --data.path PICTURES --output RUN
Hardware: 2 CPU cores, a quarter of an hour for 3,000 images. Expect about 60 % top-1 with 3,000 images of 10 Imagenette
classes (docs/measurements.md). The recipe fine_tune starts from published weights and needs fewer images.
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
    model=ModelConfig(name="mobilenetv3_small_100"),
    data=DataConfig(path="pictures", image_size=128, crop_pct=0.9),
    augment=AugmentConfig(scale=(0.35, 1.0)),
    loss=LossConfig(label_smoothing=0.1),
    optimizer=OptimizerConfig(name="adamw", learning_rate=2e-3, weight_decay=0.05),
    schedule=ScheduleConfig(name="cosine", warmup=2.0),
    epochs=20,
    batch_size=64,
)
