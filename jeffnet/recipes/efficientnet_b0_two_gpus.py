"""EfficientNet-B0 on ImageNet-1k in float16: the recipe of rwightman/efficientnet-jax for two GPUs with 24 GB.

jeffnet train --config efficientnet_b0_two_gpus --data.path IMAGENET --output RUN
Hardware: 2 devices (GPUs with 24 GB), 250 images each. One GPU: --accumulate 2; BatchNorm also sees 250 images then.
Expect about 76.8 % top-1 of the moving average: rwightman/efficientnet-jax reports no score, but the authors report
this with nearly the same settings, 4096 images per step and 350 epochs (tensorflow/tpu,
models/official/efficientnet/README.md). Settings: train_configs/tf_efficientnet_b0-gpu_24gb_x2.py and default.py there.
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
    model=ModelConfig(name="tf_efficientnet_b0", drop_rate=0.2, drop_path_rate=0.2, dtype="float16"),
    data=DataConfig(path="imagenet"),
    loss=LossConfig(label_smoothing=0.1),
    optimizer=OptimizerConfig(
        name="rmsproptf",
        learning_rate=0.03125,  # 0.016 per 256 images
        weight_decay=1e-5,
        momentum=0.9,
        decay=0.9,
        epsilon=1e-3,
    ),
    schedule=ScheduleConfig(name="step", decay_rate=0.97, decay_every=2.4, decay_from_start=True, warmup=5.0),
    ema=EmaConfig(decay=0.99997, warmup=False),
    epochs=450,
    batch_size=500,
)
