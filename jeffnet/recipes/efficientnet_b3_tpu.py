"""EfficientNet-B3 on ImageNet-1k in bfloat16: the recipe of rwightman/efficientnet-jax for a TPU v3-8.

jeffnet train --config efficientnet_b3_tpu --data.path IMAGENET --output RUN
Hardware: 8 devices (the cores of a TPU v3-8), 256 images each. One GPU: --accumulate 8 or more; BatchNorm also sees 256
images with 8.
Expect about 81 % top-1 of the moving average: rwightman/efficientnet-jax reports no score, but the authors report
81.0 % with nearly the same settings, 4096 images per step and 350 epochs (tensorflow/tpu,
models/official/efficientnet/README.md). Settings: train_configs/pt_efficientnet_b3-tpu_x8.py and default.py there.
"""

from dataclasses import replace

from jeffnet.recipes.efficientnet_b0_two_gpus import config as b0

config = replace(
    b0,
    model=replace(b0.model, name="efficientnet_b3", drop_rate=0.3, dtype="bfloat16"),
    data=replace(b0.data, image_size=300, crop_pct=0.904),
    optimizer=replace(b0.optimizer, learning_rate=0.128),
    ema=replace(b0.ema, decay=0.9999),
    epochs=550,
    batch_size=2048,
)
