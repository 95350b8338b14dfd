"""A trained model made ready for 8-bit integers by a few epochs that round as its exported file does.

jeffnet train --config fine_tune_int8 --model.pretrained FILE --data.path DATA --output RUN
Hardware: one GPU, or a CPU for small models and pictures. --model.pretrained takes any source of weights, first of all
model.safetensors of a run on the same pictures: where its classes are others the classifier starts anew.
Expect a score that depends on the images. The export of RUN/model.safetensors to 8-bit integers then needs no pictures
to calibrate with: see docs/export.md, also for export without this training, which suffices for many models.
"""

from dataclasses import replace

from jeffnet.recipes.fine_tune import config as floats
from jeffnet.train.config import EmaConfig, LossConfig, ModelConfig, OptimizerConfig, QuantizeConfig

config = replace(
    floats,
    model=ModelConfig(pretrained="tf_efficientnet_lite0"),
    loss=LossConfig(),
    # Norms are folded: the rate is that of the end of a training, and no weight decays towards 0.
    optimizer=OptimizerConfig(name="adamw", learning_rate=1e-4, weight_decay=0.0),
    schedule=replace(floats.schedule, warmup=0.2),
    ema=EmaConfig(),
    quantize=QuantizeConfig(to="int8", images=200),
    epochs=5,
)
