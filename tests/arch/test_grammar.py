"""Block strings: what they parse to, and that each fault is named."""

import pytest

from jeffnet.arch.grammar import BlockSpec, parse_block, parse_stages
from jeffnet.arch.zoo import MODELS
from jeffnet.errors import ArchitectureError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "ir_r2_k3_s2_e6_c24_se0.25",
            BlockSpec("ir", repeats=2, kernels=(3,), stride=2, channels=24, skip=True, expansion=6.0, se_ratio=0.25),
        ),
        ("ds_r1_k3_s1_c16", BlockSpec("ds", repeats=1, kernels=(3,), stride=1, channels=16, skip=True)),
        ("ds_r1_k3_s1_e1_c16_noskip", BlockSpec("ds", repeats=1, kernels=(3,), stride=1, channels=16, skip=False)),
        ("dsa_r3_k5_s1_c16", BlockSpec("dsa", repeats=3, kernels=(5,), stride=1, channels=16, skip=False)),
        ("dsa_r3_k5_s1_c16_skip", BlockSpec("dsa", repeats=3, kernels=(5,), stride=1, channels=16, skip=True)),
        (
            "er_r1_k3_s1_e4_c24_fc24_noskip",
            BlockSpec("er", repeats=1, kernels=(3,), stride=1, channels=24, skip=False, expansion=4.0, expand_from=24),
        ),
        (
            "cn_r1_k1_s1_c960_nhs",
            BlockSpec("cn", repeats=1, kernels=(1,), stride=1, channels=960, skip=False, act="hard_swish"),
        ),
        (
            "ir_r12_k3.5.7.11_a1.1_p1.1.1_s1_e2.3_c120_se1_nsw",
            BlockSpec(
                "ir",
                repeats=12,
                kernels=(3, 5, 7, 11),
                stride=1,
                channels=120,
                skip=True,
                expansion=2.3,
                se_ratio=1.0,
                act="silu",
                expand_kernels=(1, 1),
                project_kernels=(1, 1, 1),
            ),
        ),
    ],
)
def test_every_field_is_read(text, expected):
    assert parse_block(text) == expected


@pytest.mark.parametrize(("code", "act"), [("nre", "relu"), ("nr6", "relu6"), ("nhs", "hard_swish"), ("nsw", "silu")])
def test_activation_codes(code, act):
    """`nre` begins with the letters of field `n`, and `r6` looks like field `r`: neither is taken for another field."""
    assert parse_block(f"ds_r1_k3_s1_c16_{code}") == parse_block(f"ds_{code}_c16_s1_k3_r1")
    assert parse_block(f"ds_r1_k3_s1_c16_{code}").act == act


def test_fields_stand_in_any_order():
    assert parse_block("ir_se0.25_c24_e6_s2_k3_r2") == parse_block("ir_r2_k3_s2_e6_c24_se0.25")


def test_stages_keep_their_grouping():
    stages = parse_stages((("ds_r1_k3_s1_c16",), ("ir_r1_k3_s2_e4_c24", "ir_r1_k3_s1_e3_c24")))
    assert [[block.channels for block in stage] for stage in stages] == [[16], [24, 24]]
    assert [block.expansion for block in stages[1]] == [4.0, 3.0]


def test_every_model_of_the_zoo_parses():
    for model in MODELS.values():
        assert all(parse_stages(model.spec.stages))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("xx_r1_k3_s1_e6_c24", "unknown block kind 'xx'; known are ir, ds, dsa, er, cn"),
        ("", "unknown block kind ''"),
        ("ir_r1_k3_s1_e6_c24_z3", "unknown field 'z3'"),
        ("ir_r1_k3_s1_e6_c24_", "unknown field ''"),
        ("ir_r1_k3_s1_e6_c24_5", "unknown field '5'"),
        ("ir_r1_k3_s1_e6_c24_K3", "unknown field 'K3'"),
        ("ir_r1_k3_s1_e6_c24_zz24", "unknown field 'zz24'"),
        ("ir_r1_k3_s1_e6_c24_cc0", "'cc0' must be"),
        ("er_r1_k3_s1_e6_c24_cc4", "a 'er' block has no field cc"),
        ("ds_r1_k3_s1_c24_d2", "field 'd' of a 'ds' block can only be 1"),
        ("mqa_r1_k3_s2_c24_h4_d64", "attention has no stride"),
        ("mqa_r1_k3_s1_c24_d64", "a 'mqa' block needs field h"),
        ("mqa_r1_s1_c24_d64_h2_v2", "keys and values with a stride need field k"),
        ("mqa_r1_k0_s1_c24_d64_h2", "only a 'uir' block can do without a kernel"),
        ("mqa_r1_k3_s1_c24_h4_d64_v3", "'v3' must be v1 or v2"),
        ("uir_r1_k0_s2_e4_c24", "a stride needs a kernel"),
        ("uir_r1_k3.5_s1_e4_c24", "the kernels of a 'uir' block have one size each"),
        ("er_r1_k0_s1_e4_c24", "only a 'uir' block can do without a kernel"),
        ("ir_r1_k3_s1_e6_c24_k5", "field 'k' stands twice"),
        ("ir_r1_k3_s1_e6_c24_nre_nsw", "field 'n' stands twice"),
        ("ir_k3_s1_e6_c24", "a 'ir' block needs field r"),
        ("ir_r1_s1_e6_c24", "a 'ir' block needs field k"),
        ("ir_r1_k3_e6_c24", "a 'ir' block needs field s"),
        ("ir_r1_k3_s1_c24", "a 'ir' block needs field e"),
        ("ir_r1_k3_s1_e6", "a 'ir' block needs field c"),
        ("cn_r1_k3", "a 'cn' block needs field c, s"),
        ("ir_r1_k3_s1_e6_c24_fc24", "a 'ir' block has no field fc"),
        ("er_r1_k3_s1_e6_c24_a1.1", "a 'er' block has no field a"),
        ("ds_r1_k3_s1_c24_fc24", "a 'ds' block has no field fc"),
        ("cn_r1_k3_s1_c24_se0.25", "a 'cn' block has no field se"),
        ("cn_r1_k3_s1_c24_e6", "field 'e' of a 'cn' block can only be 1"),
        ("ds_r1_k3_s1_e6_c24", "field 'e' of a 'ds' block can only be 1"),
        ("dsa_r1_k3_s1_e2_c24", "field 'e' of a 'dsa' block can only be 1"),
        ("ir_rx_k3_s1_e6_c24", "unknown field 'rx'"),
        ("ir_r_k3_s1_e6_c24", "'r' must be"),
        ("ir_r0_k3_s1_e6_c24", "'r0' must be"),
        ("ir_r-1_k3_s1_e6_c24", "'r-1' must be"),
        ("ir_r1.5_k3_s1_e6_c24", "'r1.5' must be"),
        ("ir_r1_k4_s1_e6_c24", "'k4' must be 'k' and odd sizes"),
        ("ir_r1_k3.4_s1_e6_c24", "'k3.4' must be 'k' and odd sizes"),
        ("ir_r1_k3._s1_e6_c24", "'k3.' must be"),
        ("ir_r1_k0_s1_e6_c24", "only a 'uir' block can do without a kernel"),
        ("ir_r1_k3_s3_e6_c24", "'s3' must be s1 or s2"),
        ("ir_r1_k3_s0_e6_c24", "'s0' must be s1 or s2"),
        ("ir_r1_k3_s1_esix_c24", "unknown field 'esix'"),
        ("ir_r1_k3_s1_e0_c24", "'e0' must be"),
        ("ir_r1_k3_s1_e1e3_c24", "'e1e3' must be"),
        ("ir_r1_k3_s1_einf_c24", "unknown field 'einf'"),
        ("ir_r1_k3_s1_e6_c0", "'c0' must be"),
        ("ir_r1_k3_s1_e6_c24_se1.5", "'se1.5' must be 'se' and a number in (0, 1]"),
        ("ir_r1_k3_s1_e6_c24_se0", "'se0' must be"),
        ("ir_r1_k3_s1_e6_c24_se", "'se' must be"),
        ("ir_r1_k3_s1_e6_c24_nxx", "'nxx' must be one of nre, nr6, nhs, nsw"),
        ("ir_r1_k3_s1_e6_c24_a2", "'a2' must be 'a' and odd sizes"),
        ("ir_r1_k3_s1_e6_c24_p2", "'p2' must be 'p' and odd sizes"),
        ("er_r1_k3_s1_e6_c24_fc0", "'fc0' must be"),
    ],
)
def test_a_fault_is_named(text, fault):
    """The message has the whole string, so that it can be found, and the field that is at fault."""
    with pytest.raises(ArchitectureError) as raised:
        parse_block(text)
    assert repr(text) in str(raised.value) and fault in str(raised.value)
