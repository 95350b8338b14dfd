"""Devices that are asked for are there, or the command stops and says why."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest

from jeffnet import functional
from jeffnet.checkpoints import save_checkpoint
from jeffnet.cli.main import main
from jeffnet.system.devices import DeviceError, start_devices

RECIPE = "demo_digits"
# Without the devices that JAX looks for, and with a plugin whose library is missing.
SCRIPT = """
import json, sys
import jax
from jax._src import hardware_utils
from jeffnet.system.devices import DeviceError, start_devices

hardware_utils._NVIDIA_GPU_DEVICES = []
said = {}
for variable in ("cuda", "tpu", "rocm,cpu", "nonsense", ""):  # as JAX_PLATFORMS sets it
    for platform in (None, "cuda", "rocm", "tpu"):
        jax.config.update("jax_platforms", variable)
        try:
            said[f"{variable} {platform}"] = start_devices(platform)
        except DeviceError as error:
            said[f"{variable} {platform}"] = str(error)
        assert jax.config.jax_platforms == variable
        jax.extend.backend.clear_backends()
for variable in ("cuda,cpu", ""):
    jax.config.update("jax_platforms", variable)
    for platform in (None, "gpu", "cpu"):
        try:
            said[f"{variable} {platform}"] = start_devices(platform, 1)
        except DeviceError as error:
            said[f"{variable} {platform}"] = str(error)
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """The error, or None, by what `JAX_PLATFORMS` is and which platform is asked for."""
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "jax_plugins" / "xla_broken").mkdir(parents=True)
    (folder / "jax_plugins" / "xla_broken" / "__init__.py").write_text(
        "def initialize():\n    raise OSError('libcudnn.so.9: cannot open\\nand more')\n"
    )
    path = os.pathsep.join([str(folder), *sys.path])
    env = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"} | {"PYTHONPATH": path}
    script = f"import jax.extend\n{SCRIPT}"
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("variable", ["cuda", "cuda,cpu"])
def test_a_gpu_that_the_variable_names_is_not_passed_over(said, variable):
    message = said[f"{variable} None"]
    assert message.startswith(f"no cuda device, which JAX_PLATFORMS={variable} asks for: JAX found none;")
    assert "nvidia-smi" in message and "jax[cuda13]" in message and "\n" not in message


def test_the_reasons_are_jaxs(said):
    assert "libtpu.so" in said["tpu None"] and "libtpu.so" in said[" tpu"]
    assert "not in the list of known backends" in said["nonsense None"]
    for name in ("rocm,cpu None", "cuda rocm", " rocm"):
        assert said[name].startswith("no rocm device, which ") and "known backends" in said[name]
    assert not [text for text in said.values() if text and ("\n" in text or "JAX_PLATFORMS=''" in text)]


def test_why_a_plugin_did_not_come_up_is_said(said):
    """Plugins are loaded once, before anything is looked for."""
    assert "xla_broken.initialize(): libcudnn.so.9: cannot open;" in said["cuda None"]


def test_the_option_wins_over_the_variable(said):
    assert said["cuda tpu"].startswith("no tpu device, which --device tpu asks for")
    assert said["cuda,cpu cpu"] is None and said[" cpu"] is None and said[" None"] is None
    assert said[" gpu"].startswith("no gpu device, which --device gpu asks for")


@pytest.fixture
def eight_gpus(monkeypatch):
    gpus = [SimpleNamespace(platform="gpu", id=number) for number in range(8)]

    def local_devices(backend=None):
        if backend in (None, "cuda", "gpu"):
            return gpus
        if backend == "cpu":
            return [SimpleNamespace(platform="cpu", id=0)]
        raise RuntimeError(f"Unknown backend {backend}. Available backends are ['cuda', 'cpu']")

    monkeypatch.setattr(jax, "local_devices", local_devices)


def test_all_of_them_or_none(eight_gpus):
    start_devices("cuda", 8)
    start_devices("gpu")
    for count in (7, 9):
        with pytest.raises(DeviceError, match=rf"--num-devices {count}: this process has 8 of platform gpu"):
            start_devices("cuda", count)


def test_a_process_that_computes_elsewhere_already_is_refused(eight_gpus):
    with pytest.raises(DeviceError, match="computes on platform gpu in this process already"):
        start_devices("cpu")


@pytest.mark.parametrize(
    "command",
    [
        ["info", "--env"],
        ["predict", "digits", "--weights", "WEIGHTS"],
        ["validate", "digits", "--weights", "WEIGHTS"],
        ["train", "--config", RECIPE, "--output", "nowhere/run"],
        ["train", "--config", RECIPE, "--plot-schedule", "rate.png"],
        ["convert", "mnasnet_small", "nowhere/a.safetensors"],
        ["bench", "mnasnet_small"],
        ["bench", "mnasnet_small", "--scaling"],
    ],
    ids=" ".join,
)
def test_every_command_that_computes_stops_without_its_device(capsys, monkeypatch, tmp_path, tmp_path_factory, command):
    """Before it writes anything. Weights are looked for before JAX, which takes long to import, looks for devices."""
    monkeypatch.chdir(tmp_path)
    weights = tmp_path_factory.mktemp("weights") / "a.safetensors"
    if "WEIGHTS" in command:
        save_checkpoint(weights, functional.create_model("lcnet_035", num_classes=10), "lcnet_035")
    assert main([str(weights) if word == "WEIGHTS" else word for word in [*command, "--device", "tpu"]]) == 1
    output = capsys.readouterr()
    assert not output.out
    assert output.err.startswith("error: no tpu device, which --device tpu asks for") and output.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_what_only_shows_a_recipe_needs_no_device(capsys):
    assert main(["train", "--config", RECIPE, "--print-config", "--device", "tpu"]) == 0


def test_the_number_of_devices_is_checked(capsys):
    count = jax.local_device_count() + 1
    assert main(["info", "--env", "--num-devices", str(count)]) == 1
    assert f"--num-devices {count}" in capsys.readouterr().err
