"""Published weights of EfficientNet-B0, fine-tuned on a folder of pictures with classes of its own.

jeffnet train --config configs/fine_tune.py --data.path PICTURES --output RUN
Hardware: one GPU. On a CPU take a smaller model and smaller pictures: --model.name pt_mobilenetv3_large_100
--model.pretrained mobilenetv3_large_100.ra_in1k --data.image_size 160. --model.pretrained takes any source of weights.
Expect what the pictures allow: no figure was measured.
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
    model=ModelConfig(name="pt_efficientnet_b0", pretrained="efficientnet_b0.ra_in1k"),
    data=DataConfig(path="pictures"),
    # Crops of 8 % of a picture, as for ImageNet, may miss what a small set of pictures is about.
    augment=AugmentConfig(scale=(0.35, 1.0)),
    loss=LossConfig(label_smoothing=0.1),
    # The classifier starts anew and learns at the full rate, the first layers at a sixteenth of it.
    optimizer=OptimizerConfig(name="adamw", learning_rate=1e-3, weight_decay=0.05, layer_decay=0.85),
    schedule=ScheduleConfig(name="cosine", warmup=1.0),
    # It begins with a smaller decay, so that it is of use in a run of a few hundred steps too.
    ema=EmaConfig(decay=0.999),
    epochs=15,
    batch_size=32,
)
