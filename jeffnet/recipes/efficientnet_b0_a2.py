"""EfficientNet-B0 on ImageNet-1k with A2 of "ResNet strikes back": LAMB, BCE, mixup, CutMix, repeated augmentation.

jeffnet train --config efficientnet_b0_a2 --data.path IMAGENET --output RUN
Hardware: four GPUs with 32 GB (arXiv:2110.00476, for ResNet-50). One GPU: --accumulate 8.
Expect about 77 % top-1 after 300 epochs: OpenMixup (Westlake-AI, docs/en/model_zoos/Model_Zoo_sup.md) reports 77.3 %
for this model. The longer A1 differs by --epochs 600 --augment.mixup 0.2 --optimizer.weight_decay 0.01
--loss.label_smoothing 0.1 --loss.bce_threshold none.
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
    # The procedure, made for ResNet-50, has no dropout and one drop path rate for all models.
    model=ModelConfig(name="efficientnet_b0", drop_rate=0.0, drop_path_rate=0.05, dtype="bfloat16"),
    data=DataConfig(path="imagenet", crop_pct=0.95),
    augment=AugmentConfig(policy="rand-m7-mstd0.5-inc1", mixup=0.1, cutmix=1.0, repeats=3),
    # A mixed image contains both classes, whatever their shares: every share above the threshold counts as 1.
    loss=LossConfig(name="bce", bce_threshold=0.2),
    optimizer=OptimizerConfig(name="lamb", learning_rate=5e-3, weight_decay=0.02),
    schedule=ScheduleConfig(name="cosine", warmup=5.0),
    epochs=300,
    batch_size=2048,
)
