"""EfficientNet-B3 on ImageNet-1k in bfloat16: the recipe of rwightman/efficientnet-jax for a TPU v3-8.

jeffnet train --config configs/efficientnet_b3_tpu.py --data.path IMAGENET --output RUN
Hardware: 8 devices (the cores of a TPU v3-8), 256 images each. One GPU: --accumulate 8 or more; BatchNorm also sees 256
images with 8.
Expect about 81 % top-1 of the moving average: rwightman/efficientnet-jax reports no score, but the authors report
81.0 % with nearly the same settings, 4096 images per step and 350 epochs (tensorflow/tpu,
models/official/efficientnet/README.md). Settings: train_configs/pt_efficientnet_b3-tpu_x8.py and default.py there.
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
    model=ModelConfig(name="efficientnet_b3", drop_rate=0.3, drop_path_rate=0.2, dtype="bfloat16"),
    data=DataConfig(path="imagenet", image_size=300, crop_pct=0.904),
    loss=LossConfig(label_smoothing=0.1),
    optimizer=OptimizerConfig(
        name="rmsproptf",
        learning_rate=0.128,  # 0.016 per 256 images
        weight_decay=1e-5,
        momentum=0.9,
        decay=0.9,
        epsilon=1e-3,
    ),
    schedule=ScheduleConfig(name="step", decay_rate=0.97, decay_every=2.4, decay_from_start=True, warmup=5.0),
    ema=EmaConfig(decay=0.9999, warmup=False),
    epochs=550,
    batch_size=2048,
)
