"""A step on eight devices does what it does on one, in float64, whatever is split and how norms are grouped."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("sharding_program.py")
# What measures memory comes before what leaves arrays behind.
QUICK = ("start", "groups-linen", "by-2", "collectives")
STARTS = ("start-8", "start-pretrained", "start-taught")
SLOW = (
    "everything",
    "estimate",
    "views",
    "global",
    "fsdp",
    "teacher",
    "lars",
    "groups-nnx",
    "groups-objax",
    "groups-functional",
    "by-1",
    "by-4",
)


def results_of(names):
    done = subprocess.run([sys.executable, PROGRAM, *names], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def quick():
    return results_of(QUICK)


@pytest.fixture(scope="module")
def slow():
    return results_of(STARTS + SLOW)


@pytest.mark.parametrize("name", [name for name in QUICK if name not in ("collectives", "start")])
def test_eight_devices_compute_what_one_does(quick, name):
    assert quick[name] < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_eight_devices_compute_what_one_does_in_every_case(slow, name):
    if name == "groups-objax":
        pytest.importorskip("objax")
    assert slow[name] < 1e-10


def test_devices_exchange_sums_and_mixed_pictures_but_no_maps(quick):
    """Pictures and their targets go round once, for mixing; the rest are sums of gradients and statistics."""
    kinds = quick["collectives"]
    assert kinds.count("collective-permute") == 1
    assert set(kinds) == {"collective-permute", "all-reduce"}


def test_a_run_starts_with_its_state_split(quick):
    """No device ever had more than its share of the state and one array; the values are those of one device."""
    assert quick["start"]["same"]
    assert 0.3 < quick["start"]["start"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", STARTS)
def test_a_run_starts_and_continues_with_its_state_split_in_every_case(slow, name):
    """On more devices, from pretrained weights, with a teacher."""
    assert slow[name]["same"]
    assert 0.3 < slow[name]["start"] <= 1 and 0.3 < slow[name]["restore"] <= 1, slow[name]
