"""A small MobileNetV3 from scratch on a folder of pictures, on a computer without a GPU.

jeffnet train --config configs/small_from_scratch.py --data.path PICTURES --output RUN
"""

from jeffnet.train.config import Config, DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig

config = Config(
    model=ModelConfig(name="pt_mobilenetv3_small_100"),
    data=DataConfig(path="pictures", image_size=128, crop_pct=0.9, scale=(0.35, 1.0)),
    optimizer=OptimizerConfig(name="adamw", learning_rate=2e-3, weight_decay=0.05),
    schedule=ScheduleConfig(name="cosine", warmup_epochs=2.0),
    epochs=20,
    batch_size=64,
    label_smoothing=0.1,
)
