"""What follows from made-up seconds."""

import dataclasses

import pytest

from jeffnet.bench.results import cost_per_million, energy_per_million

pytestmark = pytest.mark.runs


def test_a_case_adds_up(result):
    """Medians of the rounds' medians 0.2, 0.4, 0.2 and 0.1, 0.1, 0.05."""
    linen, timm = result.measured
    assert linen.call_seconds == pytest.approx(0.2)
    assert result.images_per_second(linen) == pytest.approx(20)
    assert result.images_per_second(timm) == pytest.approx(40)
    assert result.macs_per_second(timm) == pytest.approx(40e6)
    assert linen.latency(0.5) == pytest.approx(0.3)  # of 0.1, 0.2, 0.2, 0.3, 0.4, 0.4
    assert linen.latency(0.95) == pytest.approx(0.4)


def test_ratios_pair_each_round(result):
    """2, 4 and 4 times as fast: not 2, as the ratio of the medians is."""
    linen, timm = result.measured
    speed = result.speed(timm)
    assert (speed.median, speed.lowest, speed.highest) == pytest.approx((4, 2, 4))
    assert result.speed(linen).median == 1
    assert dataclasses.replace(result, baseline=None).speed(linen) is None


def test_the_share_of_the_peak_pairs_each_round_too(result):
    """4 million multiply-accumulates in 0.2, 0.4, 0.2 seconds, of 40, 20 and 80 million a second."""
    assert result.share_of_peak(result.measured[0]) == pytest.approx(0.5)
    assert dataclasses.replace(result, peak_macs=()).share_of_peak(result.measured[0]) is None


def test_a_price_and_a_power_give_what_a_million_images_cost():
    """At 1,000 a second they take 1,000 seconds."""
    assert cost_per_million(1000, 3.6) == pytest.approx(1)
    assert energy_per_million(1000, 360) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("task", "dtype", "platform", "difference", "agrees"),
    [
        ("inference", "float32", "cpu", 9e-4, True),
        ("inference", "float32", "cpu", 2e-3, False),
        ("inference", "float32", "gpu", 2e-3, True),
        ("inference", "bfloat16", "cpu", 0.1, True),
        ("inference", "bfloat16", "cpu", 0.5, False),
        ("inference", "float16", "gpu", 0.5, False),
        ("training", "float32", "cpu", 2e-3, True),
        ("training", "bfloat16", "cpu", 0.1, False),
        ("inference", "bfloat16", "cpu", float("nan"), False),
        ("inference", "bfloat16", "cpu", float("inf"), False),
    ],
)
def test_agreement_depends_on_what_rounds(result, task, dtype, platform, difference, agrees):
    result = dataclasses.replace(result, case=dataclasses.replace(result.case, task=task, dtype=dtype))
    measured = dataclasses.replace(result.measured[0], platform=platform, difference=difference)
    assert result.agrees(measured) is agrees
