"""MixNet-S on ImageNet-1k with the authors' settings, which are MnasNet's: RMSProp, exponential decay, crops and flips.

jeffnet train --config configs/mixnet_s_paper.py --data.path IMAGENET --output RUN
Hardware: the authors used a TPU, 1024 images per step. One GPU: --accumulate 4.
Expect about 75.7 % top-1 of the moving average after 350 epochs: as timm measures with the authors' weights
(results-imagenet.csv). Architecture: arXiv:1907.09595; settings: tensorflow/tpu, models/official/mnasnet, which its
mixnet/README.md refers to.
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
    model=ModelConfig(name="tf_mixnet_s", drop_rate=0.2, drop_path_rate=0.0, bn_momentum=0.99),
    data=DataConfig(path="imagenet"),
    loss=LossConfig(label_smoothing=0.1),
    optimizer=OptimizerConfig(
        name="rmsproptf",
        learning_rate=0.064,  # 0.016 per 256 images
        weight_decay=1e-5,
        momentum=0.9,
        decay=0.9,
        epsilon=1e-3,
    ),
    # A staircase, counted from the start of the run, as in the authors' code.
    schedule=ScheduleConfig(
        name="exponential", staircase=True, decay_rate=0.97, decay_every=2.4, decay_from_start=True, warmup=5.0
    ),
    ema=EmaConfig(decay=0.9999),
    epochs=350,
    batch_size=1024,
)
