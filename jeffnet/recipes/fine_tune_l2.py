"""EfficientNet-L2 (480 million parameters), fine-tuned on your images, with its state sharded over eight devices.

jeffnet train --config fine_tune_l2 --data.path PICTURES --output RUN
Hardware: 8 devices of one host (GPUs, or a TPU v5e-8), with 4 images each and an eighth of the parameters, moving
average and optimizer state. With less memory: --data.image_size 380, or --accumulate 2.
Expect a score that depends on the images: nothing was measured. The weights have 88.2 % top-1 on ImageNet-1k.
"""

from dataclasses import replace

from jeffnet.recipes.fine_tune import config as b0
from jeffnet.train.config import CheckpointConfig, ModelConfig

config = replace(
    b0,
    model=ModelConfig(
        name="tf_efficientnet_l2.ns_jft_in1k_475",
        pretrained="tf_efficientnet_l2.ns_jft_in1k_475",
        bn_momentum=0.9,
        dtype="bfloat16",
        remat=True,
    ),
    # The new classifier learns at the full rate, the first of 90 layers at a hundredth of it.
    optimizer=replace(b0.optimizer, learning_rate=3e-4, layer_decay=0.95),
    checkpoint=CheckpointConfig(every_minutes=20.0),
    epochs=10,
    mesh="data=1,fsdp=8",
)
