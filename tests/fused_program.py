"""A small model with each of the kernels of inference, in a process of its own: what it uses, and its logits.

Warnings are errors, and the log's go to standard error.
"""

import json
import logging
import warnings

import jax
import numpy as np

from jeffnet.arch.spec import ModelSpec
from jeffnet.functional import create_model, fuse
from jeffnet.ops import native

warnings.simplefilter("error")
logging.basicConfig(level=logging.WARNING)

STAGES = (("ds_r1_k3_s2_c8_se0.25",), ("ir_r1_k3_s1_e3_c16",), ("er_r1_k3_s2_e2_c16",))
SPEC = ModelSpec(stages=STAGES, stem=8, features=32)
model, variables = create_model(SPEC, rng=0)
images = np.asarray(jax.random.normal(jax.random.key(1), (2, 32, 32, 3)))
logits = np.asarray(fuse(model, variables, batch_size=2, image_size=(32, 32))(images))
print(json.dumps({"package": native.__file__, "kernels": native.load()._name, "logits": logits.tolist()}))
