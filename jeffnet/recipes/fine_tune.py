"""EfficientNet-B0 with published weights, fine-tuned on a folder of images.

jeffnet train --config fine_tune --data.path PICTURES --output RUN
Hardware: one GPU. On a CPU use a smaller model and smaller images: --model.pretrained mobilenetv3_large_100
--data.image_size 160. --model.pretrained takes any source of weights, which says what model is trained.
Expect a score that depends on the images. On ten classes of Imagenette at 96 px, EfficientNet-Lite0 reaches 65.4 %
top-1 from 30 images, 84.3 % from 300, and 90.9 % from 3,000 after five epochs; timm's best of three recipes 44.9, 69.8
and 85.9 %, means of five seeds (docs/measurements.md).
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
    model=ModelConfig(pretrained="efficientnet_b0.ra_in1k"),
    data=DataConfig(path="pictures"),
    # Crops as small as 8 % of an image, as for ImageNet, may miss the object in a small data set.
    augment=AugmentConfig(scale=(0.35, 1.0)),
    loss=LossConfig(label_smoothing=0.1),
    # The new classifier learns at the full rate, the first layers at a sixteenth of it.
    optimizer=OptimizerConfig(name="adamw", learning_rate=1e-3, weight_decay=0.05, layer_decay=0.85),
    schedule=ScheduleConfig(name="cosine", warmup=0.5),
    # The decay starts smaller, so that the average is useful in a run of a few hundred steps.
    ema=EmaConfig(decay=0.999),
    epochs=15,
    batch_size=32,
    # So that a few dozen pictures are seen often enough.
    min_epoch_steps=10,
)
