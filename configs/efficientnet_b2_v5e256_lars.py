"""EfficientNet-B2 on ImageNet-1k for a TPU v5e-256, in large batches with LARS, after arXiv:2011.00071.

jeffnet train --config configs/efficientnet_b2_v5e256_lars.py --data.path IMAGENET --output RUN
Hardware: 256 devices (64 machines of a TPU v5e-256), 64 images each. BatchNorm uses the 256 images of a machine. All
machines validate. With fewer devices keep the batch, and 256 images per BatchNorm group: on 64 devices
--model.bn_devices 1.
Expect less than the 80.1 % top-1 of the ordinary recipe (arXiv:1905.11946v5, table 2): nothing was measured. Only the
abstract of arXiv:2011.00071 (LARS, distributed BatchNorm and evaluation, up to 65536 images per step) was available:
batch, learning rate, warm-up, power and decay are ours, after its description.
"""

from jeffnet.train.config import (
    AugmentConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    EmaConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
)

config = Config(
    model=ModelConfig(
        name="tf_efficientnet_b2", drop_rate=0.3, drop_path_rate=0.2, bn_momentum=0.99, bn_devices=4, dtype="bfloat16"
    ),
    data=DataConfig(path="imagenet"),
    augment=AugmentConfig(policy="v0"),
    loss=LossConfig(label_smoothing=0.1),
    # LARS scales the rate by each layer's norm, so it is not comparable with RMSProp's.
    optimizer=OptimizerConfig(name="lars", learning_rate=15.0, momentum=0.9, weight_decay=1e-5),
    schedule=ScheduleConfig(name="polynomial", power=2.0, warmup=50.0),
    # An epoch has 78 steps: an average over ten thousand would still contain the warm-up.
    ema=EmaConfig(decay=0.999),
    checkpoint=CheckpointConfig(every_minutes=10.0),  # preemptible machines
    epochs=350,
    batch_size=16384,
)
