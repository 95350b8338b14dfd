"""`jeffnet bench --scaling`: every number of devices in a process of its own, and what is told of it."""

import json
from dataclasses import replace

import pytest

from jeffnet.bench import measure, scaling
from jeffnet.bench.scaling import ScalingJob, ScalingResult, default_counts, measure_scaling
from jeffnet.bench.settings import Settings
from jeffnet.cli.main import main
from jeffnet.errors import ConfigError

pytestmark = pytest.mark.runs

JOB = ScalingJob(
    model="mnasnet_small",
    devices=1,
    batch_size=2,
    image_size=32,
    dtype="float32",
    backend="functional",
    bn_devices=None,
    fsdp=1,
    seconds=1e-6,
)


@pytest.mark.parametrize(
    ("platform", "devices", "expected"),
    [
        ("cpu", 1, (1, 2, 4, 8)),
        ("cpu", 2, (1, 2)),
        ("gpu", 1, (1,)),
        ("gpu", 6, (1, 2, 4, 6)),
        ("gpu", 8, (1, 2, 4, 8)),
    ],
)
def test_numbers_of_devices(platform, devices, expected):
    assert default_counts(platform, devices) == expected


@pytest.fixture
def jobs(monkeypatch):
    """The jobs that would be measured: none is."""
    done = []

    def measured(job, settings, virtual):
        done.append(job)
        return ScalingResult(job, 10.0 * job.devices, {"all-reduce": (3, 2.0**20)}, virtual)

    monkeypatch.setattr(scaling, "_measured", measured)
    monkeypatch.setattr(measure, "count_devices", lambda settings: ("cpu", 1))
    return done


def test_weak_scaling_grows_the_batch_and_strong_scaling_keeps_it(jobs):
    found = list(measure_scaling(replace(JOB, bn_devices=2), (1, 2, 4), Settings(), ("cpu", 1)))
    assert [(kind, each.job.devices, each.job.batch_size) for kind, each in found] == [
        ("weak", 1, 2), ("weak", 2, 4), ("weak", 4, 8), ("strong", 1, 8), ("strong", 2, 8), ("strong", 4, 8),
    ]  # fmt: skip
    assert [job.bn_devices for job in jobs] == [1, 2, 2, 1, 2], "4 devices and a batch of 8 are measured once"
    assert all(each.virtual for _, each in found)


@pytest.mark.parametrize(
    ("counts", "found", "changes", "message"),
    [((1, 4), ("gpu", 2), {}, "there are 2"), ((6,), ("gpu", 8), {"bn_devices": 4}, "4 does not divide 6"),
     ((3,), ("cpu", 1), {"fsdp": 2}, "2 does not divide 3")],
)  # fmt: skip
def test_devices_that_do_not_fit(jobs, counts, found, changes, message):
    with pytest.raises(ConfigError, match=message):
        list(measure_scaling(replace(JOB, **changes), counts, Settings(), found))
    assert not jobs


def test_a_table_and_a_document(jobs, capsys):
    command = ["bench", "mnasnet_small", "--scaling", "--batch-size", "4", "--devices", "2", "1"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "speeds are meaningless" in out and "3 all-reduce" in out and "100 %" in out and "v5e-256" in out
    assert main([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [(each["kind"], each["devices"], each["batch_size"]) for each in document["scaling"]] == [
        ("weak", 1, 4), ("weak", 2, 8), ("strong", 1, 8), ("strong", 2, 8),
    ]  # fmt: skip
    assert document["scaling"][1]["sent"] == {"all-reduce": {"messages": 3, "bytes": 2**20}}
    assert len(document["model"]) == 3 and all(each["limit"] for each in document["model"])


@pytest.mark.parametrize(
    "wrong",
    [
        ["tf_efficientnet_b[01]"],
        ["mnasnet_small", "--dtype", "float32", "bfloat16"],
        ["mnasnet_small", "--csv", "rows.csv"],
        ["mnasnet_small", "--price-per-hour", "3"],
    ],
)
def test_what_it_does_not_take(jobs, capsys, wrong):
    assert main(["bench", *wrong, "--scaling"]) == 2
    assert "--scaling takes" in capsys.readouterr().err


def test_groups_that_no_machine_has_are_refused_before_anything_is_measured(jobs, capsys):
    command = ["bench", "mnasnet_small", "--scaling", "--bn-devices"]
    assert main([*command, "3", "--devices", "3"]) == 1
    assert "bn_devices 3 does not divide 8 devices" in capsys.readouterr().err
    assert not jobs
    assert main([*command, "16", "--devices", "2"]) == 0, "a group larger than a machine is all of it"


@pytest.mark.slow
def test_a_real_step_on_two_virtual_devices(monkeypatch):
    """Gradients of all parameters are summed: what is sent is at least as large."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    results = [each for _, each in measure_scaling(replace(JOB, bn_devices=1), (2,), Settings(), ("cpu", 1))]
    assert len(results) == 2 and results[0] is results[1]
    from jeffnet.arch.summary import count_parameters
    from jeffnet.arch.zoo import model_plan

    count, sent = results[0].sent["all-reduce"]
    least = 4 * count_parameters(model_plan("mnasnet_small"))
    assert least < sent < 1.1 * least and count < 10
    assert results[0].images_per_second > 0
