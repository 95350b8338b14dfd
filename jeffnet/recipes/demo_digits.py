"""EfficientNet-Lite0 with its ImageNet weights, fine-tuned on the 1,797 handwritten digits of scikit-learn: the demo.

jeffnet train --config demo_digits --output demo_run/digits
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
    model=ModelConfig(
        name="tf_efficientnet_lite0",
        pretrained="tf_efficientnet_lite0",
        # Edges and strokes are those of photographs: half the time is saved by not training their layers.
        freeze=("conv_stem*", "bn1*", "blocks.[0-2]*"),
        # The paper's 0.99 would still hold photographs' statistics after so few steps.
        bn_momentum=0.9,
    ),
    data=DataConfig(path="digits", image_size=64, crop_pct=1.0),
    # No flips: a mirrored digit is another digit, or none.
    augment=AugmentConfig(scale=(0.8, 1.0), ratio=(0.8, 1.25), hflip=0.0),
    loss=LossConfig(label_smoothing=0.1),
    optimizer=OptimizerConfig(name="adamw", learning_rate=2e-3, weight_decay=0.02),
    schedule=ScheduleConfig(name="cosine", warmup=1.0),
    epochs=5,
    batch_size=64,
)
