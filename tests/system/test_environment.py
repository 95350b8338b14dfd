"""`jeffnet info --env`: what it reports, and that its self test finds what is broken."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import jeffnet
from jeffnet.cli import info
from jeffnet.cli.main import main
from jeffnet.errors import ImageError
from jeffnet.ops.activations import ACTIVATIONS
from jeffnet.ops.conv import use_lowering
from jeffnet.system import device_check as self_test
from jeffnet.system import environment as health


@pytest.fixture
def passing(monkeypatch):
    """The command without the test of the devices, which other tests run."""
    monkeypatch.setattr(self_test, "self_test", lambda: 0.5)


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Writes the list of the control groups of this process; `put` writes their files, below `tmp_path`."""
    monkeypatch.setattr(health, "_OWN_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(health, "_CGROUPS", tmp_path)

    def write(own):
        (tmp_path / "cgroup").write_text(own)

    return write


def put(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def fails(capsys, *arguments, status=1):
    assert main([*arguments]) == status
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_the_command_tests_this_machine_and_says_what_is_here(capsys):
    """The one test that runs the whole, in this process and on the devices that it has."""
    assert main(["info", "--env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["self_test"]["passed"] is True and found["self_test"]["failure"] is None
    assert found["self_test"]["seconds"] > 0
    assert found["devices"] == [
        {"platform": "cpu", "kind": "cpu", "count": jax.local_device_count(), "memory": None, "in_use": None}
    ]
    assert found["versions"]["jeffnet"] == jeffnet.__version__
    assert found["versions"]["jax"] == jax.__version__ and found["versions"]["numpy"] == np.__version__
    assert {"python", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "pillow"} <= found["versions"].keys()
    assert {"tensorflow", "torch"} <= found["versions"].keys()
    assert 0 < found["cpus"] <= os.cpu_count()
    assert found["memory"] > 2**27
    assert found["native_kernels"]["built"] is (found["native_kernels"]["reason"] is None)


def test_the_text_has_what_the_object_has(capsys, passing, monkeypatch):
    versions = {"driver": "580.65.06", "driver_cuda": "13.0", "runtime": "13.0", "cudnn": None, "nccl": "2.27.7"}
    gpu = {"platform": "gpu", "kind": "NVIDIA H100", "count": 8, "memory": 80 * 2**30, "in_use": 2**30}
    found = health.report() | {"cuda": versions, "devices": [gpu]}
    monkeypatch.setattr(health, "report", lambda *asked: dict(found))
    assert main(["info", "--env"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line[0] != " ")
    assert lines["devices"] == "8 x NVIDIA H100 (gpu), 80.0 GiB each, 1.00 GiB in use"
    assert lines["jax"] == jax.__version__
    assert lines["self"] == "test         passed in 0.5 s"
    assert "C++" in lines


def test_a_plugin_without_a_gpu_is_pointed_out(capsys, passing, monkeypatch):
    found = health.report() | {"cuda": dict.fromkeys(("driver", "cudnn"))}
    monkeypatch.setattr(health, "report", lambda *asked: dict(found))
    assert main(["info", "--env"]) == 0
    out = capsys.readouterr().out
    assert "no GPU, although" in out and "CUDA driver       not found" in out


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_failure_has_one_line_and_status_1(capsys, monkeypatch, form):
    def broken():
        raise self_test.SelfTestError("self test: broken")

    monkeypatch.setattr(self_test, "self_test", broken)
    assert main(["info", "--env", *form]) == 1
    output = capsys.readouterr()
    assert output.err == "error: self test: broken\n"
    if form:
        assert json.loads(output.out)["self_test"] == {
            "passed": False,
            "seconds": None,
            "failure": "self test: broken",
        }
    else:
        assert output.out.endswith("failed\n")


def test_a_model_or_the_environment_but_one_of_them(capsys):
    assert "--env" in fails(capsys, "info", status=2)
    assert "mixnet_s" in fails(capsys, "info", "mixnet_s", "--env", status=2)
    assert "--device" in fails(capsys, "info", "mixnet_s", "--device", "cpu", status=2)


def test_expected_numbers_are_those_of_float64(x64):
    """In XLA's own convolutions, which none of our kernels is part of."""
    with use_lowering("xla"):
        found = jax.jit(self_test.measure)(self_test.network_arrays(), self_test.network_images())
    assert {value.dtype.name for value in found.values()} == {"float64"}
    assert found.keys() == self_test.EXPECTED.keys()
    for name, expected in self_test.EXPECTED.items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-12)


def test_every_array_of_the_network_counts(x64):
    """To each of them something that is measured is sensitive: a kernel that ignored one would be found."""
    arrays, images = self_test.network_arrays(), self_test.network_images()
    statistics = {name for name in arrays if name.endswith(("mean", "var"))}
    with use_lowering("xla"):
        jacobians = jax.jit(jax.jacrev(self_test.measure))(arrays, images)
    for name in arrays:
        reach = {measured: float(np.abs(jacobians[measured][name]).max()) for measured in self_test.EXPECTED}
        # Inference reads the running statistics, training does not.
        assert (reach["logits"] if name in statistics else max(reach.values())) > 0.01, name


@pytest.mark.parametrize("wrong", [np.nan, 1.0002])
@pytest.mark.parametrize("name", ["logits", "loss", "gradient"])
def test_one_wrong_device_is_named(monkeypatch, name, wrong):
    results = {each: np.full(3, value) for each, value in self_test.EXPECTED.items()}
    results[name][1] *= wrong
    devices = [SimpleNamespace(device_kind=f"kind {place}") for place in range(3)]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    monkeypatch.setattr(self_test, "_results", lambda devices: (results, np.full(3, 6.0)))
    with pytest.raises(self_test.SelfTestError, match=rf"kind 1.* the {name} of"):
        self_test.check_devices()


def test_a_layer_that_computes_something_else_is_found(monkeypatch):
    monkeypatch.setitem(ACTIVATIONS, "sigmoid", jax.nn.hard_sigmoid)
    with pytest.raises(self_test.SelfTestError, match="of a small network"):
        self_test.check_devices()


def test_a_wrong_sum_is_found(monkeypatch):
    results = {each: np.full(2, value) for each, value in self_test.EXPECTED.items()}
    monkeypatch.setattr(jax, "local_devices", lambda: [SimpleNamespace(device_kind="kind")] * 2)
    monkeypatch.setattr(self_test, "_results", lambda devices: (results, np.array([3.0, 2.0])))
    with pytest.raises(self_test.SelfTestError, match="sum over 2 devices is 2 on"):
        self_test.check_devices()


def test_a_device_that_fails_has_one_line(monkeypatch):
    def fail(devices):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory\nand a page of details")

    monkeypatch.setattr(self_test, "_results", fail)
    with pytest.raises(self_test.SelfTestError, match=r"RESOURCE_EXHAUSTED: out of memory$"):
        self_test.check_devices()


def test_a_decoder_that_fails_or_is_wrong_is_found(monkeypatch):
    self_test.check_picture()
    real = self_test.read_image
    monkeypatch.setattr(self_test, "read_image", lambda *args, **options: real(*args, **options).transpose(0))
    with pytest.raises(self_test.SelfTestError, match="differs by"):
        self_test.check_picture()

    def fail(*args, **options):
        raise ImageError("image 'x' is damaged")

    monkeypatch.setattr(self_test, "read_image", fail)
    with pytest.raises(self_test.SelfTestError, match="image 'x' is damaged"):
        self_test.check_picture()


def test_four_devices_are_tested_and_neighbours_are_not_imported():
    """In a process of its own, since the number of devices is settled when JAX starts."""
    script = """
import sys
from jeffnet.cli.main import main
from jeffnet.system import environment as health
from jeffnet.system import device_check as self_test
real = self_test._results
def results(devices):
    found = real(devices)
    assert len(devices) == 4 and {len(values) for values in found[0].values()} == {4}, found
    assert list(found[1]) == [10.0] * 4, found
    return found
self_test._results = results
status = main(["info", "--env"])
assert not {"torch", "tensorflow", "matplotlib"} & set(sys.modules)
sys.exit(status)
"""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "4 x cpu" in done.stdout


def test_the_memory_of_gpus_is_left_to_others(passing, monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    info._show_environment(SimpleNamespace(json=True, device=None, num_devices=None))
    assert os.environ.pop("XLA_PYTHON_CLIENT_PREALLOCATE") == "false"


def test_memory_is_the_least_and_use_is_the_most_of_devices_alike():
    devices = [
        SimpleNamespace(platform="gpu", device_kind=kind, memory_stats=lambda size=size, used=used: {**size, **used})
        for kind, size, used in [
            ("a", {"bytes_limit": 5}, {"bytes_in_use": 1}),
            ("a", {"bytes_limit": 4}, {"bytes_in_use": 2}),
            ("b", {}, {}),
        ]
    ]
    assert health._devices(devices) == [
        {"platform": "gpu", "kind": "a", "count": 2, "memory": 4, "in_use": 2},
        {"platform": "gpu", "kind": "b", "count": 1, "memory": None, "in_use": None},
    ]


def test_versions_of_cuda_are_read_as_its_libraries_count(monkeypatch, tmp_path):
    def missing():
        raise RuntimeError("libcudnn.so.9: cannot open shared object file")

    library = SimpleNamespace(
        cuda_driver_get_version=lambda: 13010, cuda_runtime_get_version=lambda: 13000, cudnn_get_version=lambda: 91206
    )
    monkeypatch.setitem(sys.modules, "jax_cuda13_plugin", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "jax_cuda13_plugin._versions", library)
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 07:11:08 UTC 2025\nGCC version: 13.2.0\n"
    )
    monkeypatch.setattr(health, "_DRIVER_FILE", tmp_path / "version")
    found = health.cuda_versions()
    assert found == {"driver": "580.65.06", "driver_cuda": "13.1", "runtime": "13.0", "cudnn": "9.12.6", "nccl": None}
    library.cuda_driver_get_version = lambda: 0
    library.cudnn_get_version = missing
    monkeypatch.setattr(health, "_DRIVER_FILE", tmp_path / "none")
    found = health.cuda_versions()
    assert (found["driver"], found["driver_cuda"], found["cudnn"]) == (None, None, None)


def test_without_the_plugin_there_is_no_cuda(monkeypatch):
    for name in health._CUDA_MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    assert health.cuda_versions() is None


@pytest.mark.parametrize(
    ("quota", "cpus"), [("150000 100000", 1.5), ("100000 100000", 1), ("max 100000", 8), ("", 8), ("9900000 100000", 8)]
)
def test_a_quota_limits_the_processors(groups, tmp_path, monkeypatch, quota, cpus):
    """Of this group or of one that it is in, as version 2 of control groups has it."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for folder in (tmp_path / "pod" / "container", tmp_path / "pod"):
        groups("0::/pod/container\n")
        put(folder, cpu__max=quota)
        assert health.usable_cpus() == cpus
        (folder / "cpu.max").unlink()


def test_quotas_and_limits_of_the_first_version_count(groups, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    groups("5:memory:/pod\n4:cpu,cpuacct:/pod\n0::/\n")
    # In a container the group itself is mounted as the root.
    put(tmp_path / "cpu,cpuacct", cpu__cfs_quota_us="250000", cpu__cfs_period_us="100000")
    put(tmp_path / "memory", memory__limit_in_bytes=str(2**27))
    assert (health.usable_cpus(), health.usable_memory()) == (2.5, 2**27)
    put(tmp_path / "cpu,cpuacct", cpu__cfs_quota_us="-1")
    put(tmp_path / "memory", memory__limit_in_bytes="9223372036854771712")
    assert health.usable_cpus() == 8
    assert health.usable_memory() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_the_least_limit_of_memory_counts(groups, tmp_path):
    groups("0::/pod/container\n")
    put(tmp_path / "pod" / "container", memory__max="max")
    put(tmp_path / "pod", memory__max=str(2**26))
    assert health.usable_memory() == 2**26
