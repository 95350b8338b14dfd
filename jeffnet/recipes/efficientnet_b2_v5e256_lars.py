"""EfficientNet-B2 on ImageNet-1k for a TPU v5e-256, in large batches with LARS, after arXiv:2011.00071.

jeffnet train --config efficientnet_b2_v5e256_lars --data.path IMAGENET --output RUN
Hardware: 256 devices (64 machines of a TPU v5e-256), 64 images each. BatchNorm uses the 256 images of a machine. All
machines validate. With fewer devices keep the batch, and 256 images per BatchNorm group: on 64 devices
--model.bn_devices 1.
Expect less than the 80.1 % top-1 of the ordinary recipe (arXiv:1905.11946v5, table 2): nothing was measured. Only the
abstract of arXiv:2011.00071 (LARS, distributed BatchNorm and evaluation, up to 65536 images per step) was available:
batch, learning rate, warm-up, power and decay are ours, after its description.
"""

from dataclasses import replace

from jeffnet.recipes.efficientnet_b0_paper import config as b0
from jeffnet.train.config import CheckpointConfig, EmaConfig, OptimizerConfig, ScheduleConfig

config = replace(
    b0,
    model=replace(b0.model, name="tf_efficientnet_b2", drop_rate=0.3, bn_devices=4),
    # LARS scales the rate by each layer's norm, so it is not comparable with RMSProp's.
    optimizer=OptimizerConfig(name="lars", learning_rate=15.0, momentum=0.9, weight_decay=1e-5),
    schedule=ScheduleConfig(name="polynomial", power=2.0, warmup=50.0),
    # An epoch has 78 steps: an average over ten thousand would still contain the warm-up.
    ema=EmaConfig(decay=0.999),
    checkpoint=CheckpointConfig(every_minutes=10.0),  # preemptible machines
    batch_size=16384,
)
