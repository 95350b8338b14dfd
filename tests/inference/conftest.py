"""Models for each kind of operation, of a few small blocks."""

from collections.abc import Iterator

import pytest

from jeffnet.arch import zoo
from jeffnet.arch.model import Model
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.spec import ModelSpec, SqueezeRule

SPECS = {
    # Depthwise convolutions at the start, in the middle and at the end, with and without a stride, all factors folded.
    "uir": ModelSpec(
        stages=(
            ("uir_r1_a3_k5_s2_e2_c16", "uir_r1_a0_k3_s1_e3_c16_se0.25"),
            ("uir_r1_a3_k0_s1_e2_c16_p3", "uir_r1_a0_k0_s2_e2_c24_p3", "uir_r1_a0_k0_s1_e2_c24"),
        ),
        stem=16,
        features=32,
        pool_first=True,
        head_norm=True,
        layer_scale=0.5,
    ),
    # Heads that share keys and values, of all positions and of every second; an activation without a kernel.
    "attention": ModelSpec(
        stages=(("uir_r1_a0_k3_s2_e2_c16", "mqa_r1_k3_s1_h2_v2_d8_c16", "mqa_r1_k3_s1_h3_d8_c16"),),
        stem=16,
        features=32,
        act="gelu",
        layer_scale=0.5,
    ),
    # The same with norms that cannot be folded.
    "group_norm": ModelSpec(
        stages=(("ir_r2_k3_s2_e2_c16_se0.25", "mqa_r1_k3_s1_h2_v2_d8_c16", "uir_r1_a3_k3_s1_e2_c16"),),
        stem=16,
        features=32,
        act="silu",
        norm="group",
        norm_group=4,
        layer_scale=0.5,
    ),
    "experts": ModelSpec(
        stages=(("ir_r2_k3_s2_e2_c16_se0.25_cc2",),), stem=16, features=32, act="silu", padding="same"
    ),
    "context": ModelSpec(
        stages=(("ir_r2_k3_s2_e2_c16_se0.25",), ("er_r1_k3_s2_e2_c16_se0.25",)),
        stem=16,
        features=32,
        act="silu",
        se=SqueezeRule(kind="context"),
    ),
    "packed": ModelSpec(
        stages=(("ds_r2_k3_s1_c8_se0.25_d1",), ("ir_r1_k3_s2_e2_c16",)), stem=16, features=32, padding="same"
    ),
    "blur": ModelSpec(
        stages=(("ir_r1_k3_s2_e2_c16_se0.25",), ("uir_r1_a0_k0_s2_e2_c16_p3",), ("er_r1_k3_s2_e2_c16",)),
        stem=16,
        features=32,
        downsample="blur",
        layer_scale=0.5,
    ),
    "average": ModelSpec(stages=(("uir_r1_a3_k3_s2_e2_c16",),), stem=16, features=32, downsample="average"),
    "no_head": ModelSpec(stages=(("dsa_r1_k3_s2_c16", "dsa_r2_k3_s1_c16"),), stem=16, features=0, act="relu6"),
    "v2_same": ModelSpec(
        stages=(("cn_r1_k3_s1_e1_c8_skip",), ("er_r2_k3_s2_e4_c16",), ("ir_r1_k3_s2_e4_c16_se0.25",)),
        stem=16,
        features=32,
        act="silu",
        padding="same",
    ),
}


@pytest.fixture(scope="module")
def every_operation() -> Iterator[None]:
    """The zoo with a model for each of `SPECS`, named `tiny_of_<key>`."""
    with pytest.MonkeyPatch.context() as patch:
        for name, spec in SPECS.items():
            patch.setitem(zoo.MODELS, f"tiny_of_{name}", Model(spec, Preprocessing(32, 1.0)))
        yield


@pytest.fixture(params=SPECS)
def one_operation(request: pytest.FixtureRequest, every_operation: None) -> str:
    """The name of each model of `every_operation` in turn."""
    return f"tiny_of_{request.param}"
