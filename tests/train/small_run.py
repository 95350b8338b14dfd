"""The command line in a process of its own, with the small model of the tests in the zoo.

python small_run.py train --config config.json --output run
"""

import sys

from jeffnet.arch import zoo
from jeffnet.arch.model import Model
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.spec import ModelSpec
from jeffnet.cli.main import main

NAME = "small_of_the_tests"

if __name__ == "__main__":
    stages = (("ds_r1_k3_s1_c8_se0.25",), ("ir_r1_k3_s2_e3_c16",))
    spec = ModelSpec(stages=stages, stem=8, features=32, drop_path_rate=0.1)
    zoo.MODELS[NAME] = Model(spec, Preprocessing(224, 0.875))
    sys.exit(main())
