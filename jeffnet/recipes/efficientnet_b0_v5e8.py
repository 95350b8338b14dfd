"""EfficientNet-B0 on ImageNet-1k for a TPU v5e-8: the paper's recipe at half its batch.

jeffnet train --config efficientnet_b0_v5e8 --data.path IMAGENET --output RUN
Hardware: 8 devices (one host with a TPU v5e-8), 256 images each. BatchNorm uses all 2048.
Expect about 77.1 % top-1 of the moving average: the paper reports it after 350 epochs with 4096 images per step
(arXiv:1905.11946v5, table 2, settings in section 5.2). We halved the batch and the learning rate.
"""

from dataclasses import replace

from jeffnet.recipes.efficientnet_b0_paper import config as paper
from jeffnet.train.config import CheckpointConfig

config = replace(
    paper,
    optimizer=replace(paper.optimizer, learning_rate=0.128),
    checkpoint=CheckpointConfig(every_minutes=20.0),  # preemptible machines
    batch_size=2048,
)
