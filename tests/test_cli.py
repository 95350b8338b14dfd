"""The command line: what it prints, and one clear line for every kind of bad input."""

import contextlib
import csv
import io
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.zoo import list_models, model_plan
from jeffnet.backends import BACKENDS
from jeffnet.cli.main import _parse, main
from jeffnet.errors import JeffnetError
from jeffnet.inference.predict import Prediction
from jeffnet.ops.init import initial_arrays
from jeffnet.weights.card import ModelCard
from jeffnet.weights.formats import FORMS
from jeffnet.weights.formats.safetensors import save_model
from jeffnet.weights.naming import to_source_names
from jeffnet.weights.timm import TIMM

pytestmark = pytest.mark.users

CLASSES = ("bird", "cat", "dog")


@pytest.fixture(scope="module")
def weights(tmp_path_factory, small_model):
    """A model of three classes, saved as a training run saves it."""
    card = ModelCard(small_model, 3, 3, Preprocessing(32, 1.0), CLASSES)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_model(path, initial_arrays(card.plan(), 0), card)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """An image folder of three classes, with 2 pictures in each of val and train."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split in ("train", "val"):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for index in range(2):
                pixels = rng.integers(0, 256, (40, 50, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.jpg")
    return root


def run(capsys, *arguments):
    """Exit status, standard output and standard error of a command."""
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse's way out
        status = stop.code
    output = capsys.readouterr()
    return status, output.out, output.err


def fails(capsys, *arguments, status=1):
    """The message of a command that fails as it should: status 1, no traceback, nothing on standard output."""
    found, out, err = run(capsys, *arguments)
    assert found == status
    assert not out
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith(("error: ", "  ")), err
    return err


def test_list_shows_all_models_and_wildcards_choose(capsys):
    status, out, _ = run(capsys, "list")
    assert status == 0
    assert all(name in out for name in list_models())
    assert f"{len(list_models())} models" in out
    _, out, _ = run(capsys, "list", "tf_*_b[0-1].ns_*")
    assert "tf_efficientnet_b1.ns_jft_in1k" in out and "b2" not in out


def test_list_as_json_has_what_a_program_needs(capsys):
    _, out, _ = run(capsys, "list", "--json")
    models = {model["name"]: model for model in json.loads(out)}
    assert [*models] == list_models()
    assert [name for name in models if models[name]["pretrained"]] == list_models(pretrained=True)
    b1 = models["efficientnet_b1"]
    assert (b1["tag"], b1["train_size"], b1["image_size"], b1["crop_pct"]) == ("ft_in1k", 224, 256, 1.0)
    assert models["efficientnet_b8"]["top1"] is models["efficientnet_b8"]["hub"] is None
    _, out, _ = run(capsys, "list", "--tags", "--json")
    sets = {entry["name"]: entry for entry in json.loads(out)}
    assert [*sets] == list_models(tags=True) and all(entry["pretrained"] for entry in sets.values())
    b0 = sets["tf_efficientnet_b0.ap_in1k"]
    assert b0["parameters"] == 5288548
    assert b0["macs"] == pytest.approx(385.8e6, rel=0.005)
    assert (b0["image_size"], b0["train_size"], b0["crop_pct"], b0["interpolation"]) == (224, 224, 0.875, "bicubic")
    assert b0["mean"] == b0["std"] == [0.5, 0.5, 0.5]
    assert (b0["hub"], b0["license"], b0["num_classes"]) == ("timm/tf_efficientnet_b0.ap_in1k", "Apache-2.0", 1000)
    whole = sets["tf_efficientnetv2_xl.in21k"]
    assert (whole["crop_mode"], whole["num_classes"], whole["classes"]) == ("squash", 21843, "imagenet21k")
    assert whole["top1"] is None
    assert whole["parameters"] - sets["tf_efficientnetv2_xl.in21k_ft_in1k"]["parameters"] == 20843 * 1281


def test_list_shows_weights_with_their_sizes_and_classes(capsys):
    _, out, _ = run(capsys, "list", "*.sw_in12k*")
    head, _, *rows, summary = out.splitlines()
    assert head.startswith("weights") and "pixels (training, tests)" in head
    assert [row.split()[0] for row in rows] == ["efficientnet_b5.sw_in12k", "efficientnet_b5.sw_in12k_ft_in1k"]
    assert "11,821" in rows[0] and "squash" in rows[1] and "85.89" in rows[1]
    assert summary.startswith("2 sets of weights, of https://huggingface.co/timm, under Apache-2.0")
    assert run(capsys, "list", "efficientnet_b5", "--tags")[1] == out


def test_info_adds_up_its_own_layers(capsys):
    _, out, _ = run(capsys, "info", "mixnet_s", "--json")
    model = json.loads(out)
    assert sum(layer["parameters"] for layer in model["layers"]) == model["parameters"] == 4134606
    assert sum(layer["macs"] for layer in model["layers"]) == model["macs"]
    _, out, _ = run(capsys, "info", "mixnet_s")
    assert "depthwise 3x3+5x5+7x7 /2" in out and "4,134,606" in out and "timm/mixnet_s.ft_in1k" in out


def test_info_shows_all_weights_of_an_architecture(capsys):
    model = json.loads(run(capsys, "info", "efficientnet_b5.sw_in12k", "--json")[1])
    assert [entry["name"] for entry in model["weights"]] == list_models("efficientnet_b5", tags=True)
    assert model["num_classes"] == model["layers"][-1]["out_channels"] == 11821
    assert model["pretrained"]["release"] is model["pretrained"]["top1"] is None
    older = json.loads(run(capsys, "info", "tf_efficientnet_b0_ns", "--json")[1])
    assert older["name"] == "tf_efficientnet_b0.ns_jft_in1k" and older["pretrained"]["top1"] == 78.68
    assert older["pretrained"]["release"].endswith("/tf_efficientnet_b0_ns-6f64c20c.npz")
    _, out, _ = run(capsys, "info", "efficientnet_b1")
    marked = [line for line in out.splitlines() if " * " in line]
    assert [line.split()[0] for line in marked] == ["efficientnet_b1.ft_in1k"] and "224, 256" in marked[0]
    assert "efficientnet_b1.ra4_e3600_r240_in1k" in out
    assert "256 px (224 in training), crop 1.0, bicubic" in out and "at 256 px; Apache-2.0" in out
    assert "crop 1.0 squash" in run(capsys, "info", "tf_efficientnetv2_m")[1]
    assert run(capsys, "info", "efficientnet_b8")[1].splitlines()[-1] == "weights       none published"


def test_info_verifies_a_weights_file(capsys, weights, tmp_path, small_model):
    status, out, _ = run(capsys, "info", weights)
    assert status == 0 and small_model in out and "of every array: verified" in out
    found = json.loads(run(capsys, "info", weights, "--json")[1])
    assert found["num_classes"] == 3 and found["checksums"] == "of every array" and found["arrays"] > 5
    content = bytearray(weights.read_bytes())
    content[-3] ^= 4
    (tmp_path / "damaged.safetensors").write_bytes(content)
    assert "are damaged" in fails(capsys, "info", tmp_path / "damaged.safetensors")
    assert "does not exist" in fails(capsys, "info", tmp_path / "nothing.safetensors")


@pytest.mark.parametrize(
    ("form", "ending", "title"),
    [
        ("jeffnet", ".safetensors", "jeffnet"),
        ("linen", ".msgpack", "MessagePack of Flax"),
        ("nnx", "", "checkpoint of Orbax"),
        ("objax", ".npz", "npz file of Objax"),
        ("npz", ".npz", "npz file of efficientnet-jax"),
    ],
)
def test_info_names_the_form_of_a_file(form, ending, title, capsys, weights, tmp_path):
    path = tmp_path / f"a{ending}"
    assert run(capsys, "convert", weights, path, "--to", form)[0] == 0
    assert run(capsys, "info", path)[1].splitlines()[0].endswith(f"({title})")


def test_info_says_that_a_file_of_others_is_not_verified(capsys, tmp_path):
    save_file({"conv_stem.weight": np.zeros((3, 3), np.float32)}, tmp_path / "a.safetensors")
    status, out, _ = run(capsys, "info", tmp_path / "a.safetensors")
    assert status == 0 and "not verified" in out and "timm" in out


@pytest.mark.parametrize("command", ["list", "info", "predict", "validate", "embed", "train", "convert", "bench"])
def test_every_command_has_help(capsys, command):
    status, out, _ = run(capsys, command, "--help")
    assert status == 0
    assert f"usage: jeffnet {command}" in out and "--debug" in out


@pytest.mark.parametrize("command", ["predict", "validate", "embed", "train", "export", "bench"])
def test_the_help_of_long_commands_is_in_groups(capsys, command):
    """Of which no one hides the others."""
    _, out, _ = run(capsys, command, "--help")
    groups = re.split(r"^\S.*:$", out, flags=re.MULTILINE)[1:]
    counts = [len(re.findall(r"^  -", group, re.MULTILINE)) for group in groups]
    assert len(groups) >= 4 and max(counts) <= 11 and sum(counts) > 15


@pytest.fixture
def environment(monkeypatch):
    """The environment that a command made for itself, which is otherwise the caller's again after it."""
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE"):
        monkeypatch.setenv(name, "")  # so that what was set before comes back
        monkeypatch.delenv(name)
    monkeypatch.setattr("jeffnet.cli.main._restored", contextlib.nullcontext)


def test_a_program_that_calls_main_has_its_settings_back(capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(
        "jeffnet.cli.info._show_environment", lambda _: os.environ.update(XLA_PYTHON_CLIENT_PREALLOCATE="x")
    )
    monkeypatch.setattr("jeffnet.cli.train._run", lambda _: None)
    loggers = [logging.getLogger(name) for name in ("", "jeffnet", "huggingface_hub", "absl", "asyncio", "jax")]

    def settings():
        states = [(logger.level, logger.propagate, logger.handlers[:], logger.disabled) for logger in loggers]
        return dict(os.environ), warnings.filters[:], sys.unraisablehook, states, jax.config.values.copy()

    before = settings()
    for command in (["list", "b0"], ["info", "--env"], ["train", "--num-processes", "1"], ["list", "nothing"]):
        run(capsys, *command)
        for one, other in zip(before, settings(), strict=True):
            assert one == other, command


@pytest.mark.parametrize("own", [None, "", "/elsewhere"])
def test_what_is_compiled_is_kept_where_the_user_says(environment, own, monkeypatch, tmp_path):
    monkeypatch.setenv("JEFFNET_CACHE", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    if own is not None:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", own)
    main(["list", "tf_mixnet_s"])
    folder = os.environ["JAX_COMPILATION_CACHE_DIR"]
    assert folder == own if own is not None else Path(folder).parent == tmp_path and "xla-" in folder


def test_compiled_programs_are_not_kept_where_others_may_write(environment, monkeypatch, capsys, caplog, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    monkeypatch.setenv("JEFFNET_CACHE", str(shared / "cache"))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    status, out, _ = run(capsys, "list", "tf_mixnet_s")
    assert status == 0 and "tf_mixnet_s" in out and list(shared.iterdir()) == []
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
    assert [f"'{shared}' may be written by others (mode 777)" in line for line in caplog.messages] == [True]
    caplog.clear()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(shared))
    run(capsys, "list", "tf_mixnet_s")
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == ""
    (line,) = caplog.messages
    assert all(part in line for part in (f"JAX_COMPILATION_CACHE_DIR={shared}", "is not used", "(mode 777)"))


@pytest.mark.parametrize("named", ["gs://bucket/folder", ""])
def test_a_folder_for_compiled_programs_that_is_no_folder_here_is_left_alone(
    environment, named, monkeypatch, capsys, caplog
):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", named)
    run(capsys, "list", "tf_mixnet_s")
    assert not caplog.messages
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == named


def test_users_who_share_a_cache_keep_compiled_programs_each(environment, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("JEFFNET_CACHE", str(tmp_path))
    folders: list[Path] = []
    for _ in range(2):
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
        run(capsys, "list", "tf_mixnet_s")
        folders.append(Path(os.environ["JAX_COMPILATION_CACHE_DIR"]))
        assert folders[-1].stat().st_mode & 0o777 == 0o700
        folders[0].chmod(0o777)  # as another user's is no folder for this one's programs
    assert folders[1] == folders[0].with_name(f"{folders[0].name}-{os.geteuid()}")


def test_a_user_without_a_home_keeps_nothing(environment, monkeypatch, capsys):
    for name in ("JEFFNET_CACHE", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)

    def homeless(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    assert run(capsys, "list", "tf_mixnet_s")[0] == 0
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


USAGE = {
    "": "arguments are required",
    "lst": "invalid choice: 'lst'",
    "--colour list": "unknown option --colour",
    "list --colour": "unknown option --colour",
    "list a b": "unexpected argument 'b'",
    "info": "give the name of a model",
    "info b0 --env": "remove one of them",
    "info b0 --device cpu": "--device and --num-devices belong to --env",
    "info b0 --image-size 0": "not a positive whole number",
    "info b0 --num-classes -1": "--num-classes",
    "info b0 --output-stride 5": "invalid choice: 5",
    "info --env --device cuda:0": "invalid choice: 'cuda:0'",
    "info --env --num-devices 0": "not a positive whole number",
    "predict": "arguments are required",
    "predict x.png": "give --model NAME",
    "predict x.png --weights w --batch-size 0": "not a positive whole number",
    "predict x.png --weights w --output o.gif": "ends in .png, .jpg,",
    "predict x.png --weights w --output o": "ends in .png, .jpg,",
    "predict x.png --weights w --output https://a/o.png": "is an address",
    "validate digits --model mnasnet_small --report https://a/b": "is an address",
    "validate digits --model mnasnet_small --results o.txt": "ends in .csv or .json",
    "validate digits --model mnasnet_small --save-predictions o.txt": "ends in .csv or .parquet",
    "train --config https://a/b.py --output run": "is an address",
    "train --config RECIPE --plot-schedule o.gif": "ends in .png, .jpg,",
    "train --config RECIPE --plot-augment o.svg": "ends in .png, .jpg,",
    "bench mnasnet_small --plot o.bmp": "ends in .png, .jpg,",
    "bench mnasnet_small --csv o.txt": "ends in .csv",
    "predict x.png --weights w --top 0": "not a positive whole number",
    "predict x.png --weights w --limit none": "not a positive whole number",
    "predict x.png --weights w --crop-pct 2": "not a share",
    "predict x.png --weights w --interpolation cubic": "invalid choice: 'cubic'",
    "predict x.png --weights w --weigths v": "the nearest is --weights",
    "predict x.png --model b0 --lr 3": "unknown option --lr;",
    "predict x.png --model b0 --bs 3": "the nearest is --batch-size",
    "predict x.png --model b0 --num_workers 3": "unknown option --num_workers;",
    "validate digits": "give --model NAME",
    "validate digits --model mnasnet_small --num_workers 3": "the nearest is --workers",
    "validate digits --model mnasnet_small,mnasnet_100 --weights w": "put {model}",
    "validate digits --model mnasnet_small --workers -1": "--workers",
    "validate digits --model mnasnet_small --mesh what": "mesh 'what' is not understood",
    "validate digits --model mnasnet_small --test-pool": "give their size too",
    "validate digits --model b0 --coordinator here:1": "--num-processes, --process-id missing",
    "validate digits --model b0 --coordinator here --num-processes 2 --process-id 0": "HOST:PORT",
    "validate digits --model b0 --coordinator here:1 --num-processes 2 --process-id 2": "--process-id 2",
    "train": "give --config RECIPE",
    "train --config RECIPE": "give --output RUN",
    "train --config RECIPE --output run epochs 3": "'epochs' is not an option",
    "train --config RECIPE --output run --epochs": "option --epochs needs a value",
    "train --config RECIPE --output run --epochs --seed 3": "option --epochs needs a value",
    "train --config RECIPE --output run --epochs many": "not a value of type int",
    "train --config RECIPE --output run --epochs 0": "epochs 0 must be at least 1",
    "train --config RECIPE --output run --lr 0.1": "unknown option --lr; the nearest is --optimizer.learning_rate",
    "train --config RECIPE --output run --optimizer.learningrate 1": "nearest is --optimizer.learning_rate",
    "train --config RECIPE --outptu run": "unknown option --outptu; the nearest is --output",
    "train --config RECIPE --output run --seeds 1,two": "whole numbers",
    "train --config RECIPE --dry-run --lr-find a.png": "--lr-find and --dry-run: give one of them",
    "train --config RECIPE --dry-run --plot-augment a.png": "--plot-augment and --dry-run: give one of them",
    "train --config RECIPE --output run --max-restarts -1": "--max-restarts",
    "train --resume run --output other": "remove --output",
    "convert a.safetensors": "arguments are required: DESTINATION",
    "convert --output b": "arguments are required: SOURCE",
    "convert a.safetensors b --output c": "DESTINATION 'b' and --output 'c': give one of them",
    "convert a.safetensors b --to onnx": "invalid choice: 'onnx'",
    "convert a.safetensors b --num-classes few": "not a whole number",
    "bench": "give the name of a model",
    "bench mnasnet_small --seconds 0": "not a positive number",
    "bench mnasnet_small --compare tensorrt": "compare 'tensorrt'",
    "bench mnasnet_small --baseline plain": "baseline 'plain' is not measured",
    "bench mnasnet_small --scaling --compare timm": "--scaling takes no --compare",
    "bench mnasnet_small mnasnet_100 --scaling": "the name of one model",
}


@pytest.mark.parametrize("command", USAGE)
def test_wrong_usage_has_status_2(capsys, recipe, monkeypatch, tmp_path, command):
    """What is wrong whatever the files, weights and data are; nothing is computed or written."""
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    status, out, err = run(capsys, *[recipe if word == "RECIPE" else word for word in command.split()])
    assert status == 2 and not out
    assert USAGE[command] in err and "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("command", "same"),
    [
        ("predict x --weights w --batch_size 4 --img_size=32 --crop_pct 1", "--batch-size 4 --image-size 32"),
        ("validate x --weights w --num_examples=4 --image_size 32 --on_bad_image skip", "--num-examples 4"),
        ("info b0 --num_classes 3 --img-size 32", "--num-classes 3 --image-size 32"),
        ("convert a b --num_classes 3", "--num-classes 3"),
        ("bench b0 --batch_size 4 --img_size 32 --price_per_hour 2", "--batch-size 4 --image-size 32"),
        ("train --config c --plot_schedule a_b.png --max_restarts 2 --continue", "--plot-schedule a_b.png"),
        ("list --pretrained", "--pretrained"),
    ],
)
def test_options_have_dashes_or_underscores(command, same):
    words = command.split()
    dashed = [word if word[0] != "-" else word.replace("_", "-") for word in words]
    one, other = vars(_parse(words)), vars(_parse(dashed))
    assert one.pop("arguments") == words and other.pop("arguments") == dashed
    assert one == other


@pytest.mark.parametrize("word", ["batch_size", "batch-size"])
def test_entries_of_a_recipe_have_dashes_or_underscores(capsys, recipe, word):
    given = (f"--{word}", 2, f"--optimizer.{word.replace('batch', 'learning').replace('size', 'rate')}=0.5")
    _, out, _ = run(capsys, "train", "--config", recipe, "--print-config", *given, "--img-size", 48)
    config = json.loads(out)
    assert (config["batch_size"], config["optimizer"]["learning_rate"], config["data"]["image_size"]) == (2, 0.5, 48)


def test_an_unknown_model_is_answered_with_near_ones(capsys):
    assert "tf_efficientnet_b3" in fails(capsys, "info", "tf_eficientnet_b3")
    assert "no model matches" in fails(capsys, "list", "resnet*")


def test_debug_shows_the_traceback(capsys):
    status, out, err = run(capsys, "info", "nothing", "--debug")
    assert status == 1 and not out
    assert "Traceback" in err and "UnknownModelError" in err


def test_what_no_input_is_to_blame_for_has_a_status_of_its_own(capsys, monkeypatch):
    def crash(*_):
        raise RuntimeError("INTERNAL: the device fell off\nthe bus")

    monkeypatch.setattr("jeffnet.cli.list_.list_models", crash)
    status, out, err = run(capsys, "list")
    assert status == 70 and not out
    assert err == "error: RuntimeError: INTERNAL: the device fell off (--debug shows where)\n"
    status, _, err = run(capsys, "list", "--debug")
    assert status == 70 and "Traceback" in err and "the bus" in err


@pytest.mark.parametrize("arguments", ["list --json", "list tf_efficientnet_b0"])
@pytest.mark.parametrize(("reader", "unbuffered"), [("head -c 1", "1"), ("true", "")])
def test_a_reader_that_stops_early_causes_no_traceback(arguments, reader, unbuffered, monkeypatch):
    """Also where all that is written waits in a buffer until the end."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    command = f"(sleep 0.3; {sys.executable} -m jeffnet {arguments}; echo $? >&2) | {reader}"
    answer = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert answer.stderr in ("0\n", "1\n"), answer.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="has no device that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_that_is_full_is_an_error(unbuffered, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with open("/dev/full", "w") as full:
        answer = subprocess.run(
            [sys.executable, "-m", "jeffnet", "list", "tf_efficientnet_b0"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (answer.returncode, answer.stderr) == (
        1,
        "error: cannot write the output: No space left on device\n",
    )


def test_messages_have_no_control_characters(capsys, monkeypatch):
    def fail(names):
        logging.getLogger("jeffnet").warning("file %s", "a\x1b[31m")
        raise JeffnetError("class 'a\x1b[31m\udce9'\n  second line")

    monkeypatch.setattr("jeffnet.cli.list_._chosen", fail, raising=False)
    monkeypatch.setattr("jeffnet.cli.list_.run", fail)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    status, _, err = run(capsys, "list")
    assert status == 1
    assert err == "WARNING: file a\\x1b[31m\nerror: class 'a\\x1b[31m\\xe9'\n  second line\n"


ODD_CLASSES = (os.fsdecode(b"caf\xe9"), "$_{5", "a\n\x1b[31m", "日本")


def test_no_name_of_a_file_or_class_costs_a_pass(capsys, tmp_path, small_model, monkeypatch):
    """Names that are no UTF-8, move the cursor or are formulas, on an output that takes ASCII alone."""
    root, path = tmp_path / "$a$\n", tmp_path / os.fsdecode(b"m\xe9.safetensors")
    for name in ODD_CLASSES:
        (root / "val" / name).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / "picture.png")
        (tmp_path / "picture.png").rename(root / "val" / name / os.fsdecode(b"\xe9$x$\n.png"))
    card = ModelCard(small_model, 4, 3, Preprocessing(32, 1.0), ODD_CLASSES)
    save_model(path, initial_arrays(card.plan(), 0), card)
    output = io.TextIOWrapper(io.BytesIO(), "ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", output)
    files = ["--report", tmp_path / "$r$", "--results", tmp_path / "r.csv", "--save-predictions", tmp_path / "p.csv"]
    assert run(capsys, "validate", root, "--weights", path, *files)[0] == 0
    assert run(capsys, "validate", root, "--weights", path, *files)[0] == 0  # the row is found again
    assert run(capsys, "predict", root, "--weights", path, "--output", tmp_path / "$.png")[0] == 0
    assert run(capsys, "predict", root, "--weights", path, "--json")[0] == 0
    shown = output.buffer.getvalue().decode()  # pyright: ignore[reportAttributeAccessIssue]
    assert output.errors == "strict" and "\x1b" not in shown and r"caf\xe9" in shown
    predictions = json.loads(shown[shown.index("[\n") :])
    assert {name for each in predictions for name in each["classes"]} == set(ODD_CLASSES)
    with (tmp_path / "p.csv").open(newline="", encoding="utf-8") as file:
        assert {row["label"] for row in csv.DictReader(file)} == {r"caf\xe9", *ODD_CLASSES[1:]}
    assert {file.suffix for file in (tmp_path / "$r$").iterdir()} == {".json", ".csv", ".png", ".jpg"}


def test_validate_counts_every_picture_whatever_the_batch(capsys, weights, pictures):
    scores = {}
    for size in (1, 4, 64):
        status, out, _ = run(capsys, "validate", pictures, "--weights", weights, "--batch-size", size, "--json")
        assert status == 0
        scores[size] = json.loads(out)
        assert scores[size]["num_examples"] == 6
    assert scores[1]["loss"] == pytest.approx(scores[64]["loss"], rel=1e-5)
    assert scores[4]["top1"] == scores[64]["top1"]
    assert scores[4]["preprocessing"]["image_size"] == 32
    assert scores[4]["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    assert scores[4]["top5"] == 100.0


def test_validate_prints_the_scores_and_the_preprocessing(capsys, weights, pictures):
    _, out, _ = run(capsys, "validate", pictures, "--weights", weights, "--image-size", 40)
    assert "top-1" in out and "40 px" in out and "6 val pictures" in out


def test_every_backend_scores_and_predicts_the_same_to_the_last_digit(capsys, weights, pictures):
    """What is printed, for people and for programs, but for the name of the backend and the time that it took."""

    def without(text: str) -> str:
        return text.replace(f"computed by the layers of {backend}", "computed by layers")

    answers = {}
    for backend in BACKENDS:
        options = ("--weights", weights, "--backend", backend, "--no-fused", "--batch-size", 4)
        _, scores, _ = run(capsys, "validate", pictures, *options)
        _, exact, _ = run(capsys, "validate", pictures, *options, "--json")
        exact = json.loads(exact)
        assert exact.pop("backend") == exact["settings"].pop("backend") == backend
        assert exact.pop("images_per_second") > 0
        _, predictions, _ = run(capsys, "predict", pictures / "val", *options)
        _, probabilities, _ = run(capsys, "predict", pictures / "val", *options, "--json")
        probabilities = json.loads(probabilities)
        said = {each.pop("computed_by") for each in (exact, *probabilities)}
        assert said == {f"the layers of {backend}"}
        answers[backend] = (without(scores), exact, without(predictions), probabilities)
    assert "top-1" in answers["linen"][0] and len(answers["linen"][3]) == 6
    for backend in BACKENDS:
        assert answers[backend] == answers["linen"], backend
    assert run(capsys, "validate", pictures, "--weights", weights, "--backend", "torch")[0] == 2


def test_on_a_cpu_the_fused_model_answers_as_the_layers(capsys, weights, pictures, tmp_path):
    """What computed is told; another backend, dtype or mode is asked for its layers."""
    by_layers = {
        ("--no-fused",): "the layers of functional",
        ("--backend", "linen"): "the layers of linen",
        ("--dtype", "float16"): "the layers of functional (float16)",
        ("--dtype", "bfloat16"): "the fused model",
    }
    given = (pictures / "val", "--weights", weights)
    fused = json.loads(run(capsys, "predict", *given, "--json")[1])
    assert {each["computed_by"] for each in fused} == {"the fused model"}
    assert "\ncomputed by the fused model\n" in run(capsys, "predict", *given)[1]
    scores = json.loads(run(capsys, "validate", pictures, "--weights", weights, "--json")[1])
    assert scores["computed_by"] == "the fused model"
    assert "\ncomputed by the fused model\n" in run(capsys, "validate", pictures, "--weights", weights)[1]
    for options, said in by_layers.items():
        layers = json.loads(run(capsys, "predict", *given, *options, "--json")[1])
        assert {each["computed_by"] for each in layers} == {said}
        found = json.loads(run(capsys, "validate", pictures, "--weights", weights, *options, "--json")[1])
        assert found["computed_by"] == said
        if "--dtype" in options:
            assert found["loss"] != scores["loss"] and found["loss"] == pytest.approx(scores["loss"], abs=0.05)
        else:
            assert [each["indices"] for each in layers] == [each["indices"] for each in fused]
            probabilities = [[each["probabilities"] for each in answers] for answers in (layers, fused)]
            np.testing.assert_allclose(*probabilities, atol=1e-6)
            assert found["loss"] == pytest.approx(scores["loss"], abs=1e-6) and found["top1"] == scores["top1"]
    found = json.loads(run(capsys, "validate", pictures, "--weights", weights, "--no-jit", "--json")[1])
    assert found["computed_by"] == "the layers of functional (not compiled)"
    with jax.disable_jit():
        found = json.loads(run(capsys, "predict", pictures / "val/cat", "--weights", weights, "--json")[1])
    assert {each["computed_by"] for each in found} == {"the layers of functional (not compiled)"}


def test_convert_to_every_form_and_back(capsys, weights, pictures, tmp_path, small_model):
    """The scores stay; back in jeffnet's own form, so do the arrays; the classes are in that form alone."""
    expected = json.loads(run(capsys, "validate", pictures, "--weights", weights, "--no-fused", "--json")[1])
    # Those that can hold any model.
    for form in sorted({*FORMS} - {"efficientnet_pytorch", "tensorflow", "keras"}):
        there, back = tmp_path / form, tmp_path / f"{form}.safetensors"
        status, out, _ = run(capsys, "convert", weights, there, "--to", form)
        assert status == 0 and small_model in out and "3 classes" in out and str(there) in out
        name = () if form == "jeffnet" else ("--model", small_model)
        status, out, _ = run(capsys, "convert", there, back, *name, "--json")
        assert json.loads(out) | {"arrays": 0, "values": 0} == {
            "model": small_model, "num_classes": 3, "in_chans": 3, "form": "jeffnet", "path": str(back),
            "arrays": 0, "values": 0,
        }  # fmt: skip
        before, after = load_file(weights), load_file(back)
        assert before.keys() == after.keys()
        for key in before:
            np.testing.assert_array_equal(before[key], after[key])
        for backend in BACKENDS:
            options = ("--weights", there, *name, "--image-size", 32, "--crop-pct", 1.0, "--json", "--no-fused")
            options += ("--backend", backend)
            scores = json.loads(run(capsys, "validate", pictures, *options)[1])
            assert (scores["loss"], scores["top1"]) == (expected["loss"], expected["top1"])
    assert "--model" in fails(capsys, "validate", pictures, "--weights", tmp_path / "nnx")


def test_convert_writes_what_the_ending_means_or_says_what_it_can(capsys, weights, tmp_path):
    assert "(linen)" in run(capsys, "convert", weights, tmp_path / "a.msgpack")[1]
    assert (tmp_path / "a.msgpack").read_bytes()[2:8] in (b"params", b"batch_")
    for name, words in {"1": (weights, "--output", "PATH"), "2": ("--output", "PATH", weights)}.items():
        path = tmp_path / f"{name}.safetensors"
        assert run(capsys, "convert", *[path if word == "PATH" else word for word in words])[0] == 0
        assert path.read_bytes() == weights.read_bytes()
    assert run(capsys, "convert", weights, "--to", "jeffnet", tmp_path / "3")[0] == 0
    message = fails(capsys, "convert", weights, tmp_path / "a.onnx", status=2)
    assert "`jeffnet export` writes .onnx files" in message
    assert not (tmp_path / "a.onnx").exists()


@pytest.mark.parametrize("lost", ["d", "manifest.ocdbt", "ocdbt.process_0/d"])
def test_a_broken_checkpoint_is_one_line(capsys, weights, tmp_path, lost):
    """In a process of its own, with what it says when it ends."""
    run(capsys, "convert", weights, tmp_path / "broken", "--to", "nnx")
    lost = tmp_path / "broken" / lost
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    # Any model's name will do: the arrays cannot be read, before it is known which they are.
    command = [sys.executable, "-m", "jeffnet", "convert", tmp_path / "broken", tmp_path / "a", "--model", "mixnet_s"]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 1
    assert len(answer.stderr.splitlines()) == 1 and "broken" in answer.stderr, answer.stderr


def test_convert_loses_nothing(capsys, weights, tmp_path):
    """What exists is not written over, and a conversion that fails leaves nothing behind."""
    (tmp_path / "precious").write_text("precious")
    for form in FORMS:
        assert "exists" in fails(capsys, "convert", weights, tmp_path / "precious", "--to", form)
        if form != "keras":  # which refuses the ending, or the model, before it looks for the folder
            assert "missing" in fails(capsys, "convert", weights, tmp_path / "missing" / "a", "--to", form)
    assert "does not exist" in fails(capsys, "convert", tmp_path / "nothing", tmp_path / "a")
    assert "not of mnasnet_100" in fails(capsys, "convert", weights, tmp_path / "a", "--model", "mnasnet_100")
    assert (tmp_path / "precious").read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
    assert run(capsys, "convert", weights, tmp_path / "a", "--to", "onnx")[0] == 2


def test_predict_shows_classes_and_draws(capsys, weights, pictures, tmp_path):
    inputs = [pictures / "val/cat", pictures / "val/dog/0.jpg"]
    status, out, _ = run(capsys, "predict", *inputs, "--weights", weights, "--output", tmp_path / "p.png")
    assert status == 0
    assert out.count(".jpg") == 3
    assert all(name in out for name in CLASSES)
    with Image.open(tmp_path / "p.png") as drawn:
        assert drawn.size[0] > 600
    for picture in (pictures / "val/cat/0.jpg", pictures / "val/dog/0.jpg"):  # in a folder that is read, and by itself
        content = picture.read_bytes()
        message = fails(capsys, "predict", *inputs, "--weights", weights, "--output", picture)
        assert "is one of the files to read" in message and picture.read_bytes() == content
    _, out, _ = run(capsys, "predict", *inputs, "--weights", weights, "--top", 2, "--json")
    answers = json.loads(out)
    assert len(answers) == 3
    for answer in answers:
        assert len(answer["classes"]) == 2
        assert 1 >= answer["probabilities"][0] >= answer["probabilities"][1] >= 0


def test_predict_judges_pictures_whose_folders_are_the_models_classes(capsys, weights, pictures, tmp_path):
    """In the table, in JSON and in CSV, which say which class a name is."""
    _, out, _ = run(capsys, "predict", pictures / "val", "--weights", weights, "--csv", tmp_path / "p.csv", "--json")
    answers = json.loads(out)
    for answer in answers:
        assert answer["label"] == Path(answer["name"]).parent.name
        assert answer["right"] == (answer["classes"][0] == answer["label"])
        assert [CLASSES[index] for index in answer["indices"]] == answer["classes"] == answer["identifiers"]
    assert {answer["right"] for answer in answers} == {True, False}  # an untrained model always says the same
    with (tmp_path / "p.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * len(answers)
    for row, answer in zip(rows[::3], answers, strict=True):
        assert (row["picture"], row["label"], row["class"]) == (answer["name"], answer["label"], answer["classes"][0])
        assert row["rank"] == "1" and float(row["probability"]) == pytest.approx(answer["probabilities"][0], rel=1e-5)
        assert row["identifier"] == CLASSES[int(row["index"])]
    _, out, _ = run(capsys, "predict", pictures / "val", "--weights", weights)
    assert f"{sum(answer['right'] for answer in answers)} of 6 pictures of known classes are right" in out
    (tmp_path / "holiday").mkdir()
    shutil.copy(pictures / "val/dog/0.jpg", tmp_path / "holiday")
    _, out, _ = run(capsys, "predict", tmp_path / "holiday", "--weights", weights, "--json")
    assert json.loads(out)[0]["label"] is json.loads(out)[0]["right"] is None


def test_classes_of_almost_no_probability_have_no_place_in_a_table():
    shares = (0.9989, 0.00051, 0.00049)
    prediction = Prediction("a.jpg", ("pot (flowerpot)", "dog", "cat"), shares, (0, 1, 2), (None,) * 3)
    assert [name for name, _ in prediction.shown()] == ["pot (flowerpot)", "dog"]


def test_predict_computes_on_the_device_that_is_asked_for(capsys, weights, pictures):
    count, picture = jax.local_device_count(), pictures / "val/dog/0.jpg"
    options = ("predict", picture, "--weights", weights, "--json", "--device")
    platform = jax.default_backend()
    answers = [json.loads(run(capsys, *options, name)[1]) for name in (platform, f"{platform}:{count - 1}")]
    np.testing.assert_allclose(answers[0][0]["probabilities"], answers[1][0]["probabilities"], atol=1e-6)
    message = fails(capsys, *options, f"{platform}:{count}")
    assert f"no device {platform}:{count}: this process has {count}" in message
    assert "not one of cpu, gpu" in run(capsys, *options, "gpu:first")[2]


DRAWN = {".JPEG": "JPEG", ".webp": "WEBP", ".pdf": b"%PDF", ".svg": b"<?xml"}


@pytest.mark.parametrize("ending", DRAWN)
def test_what_is_drawn_has_the_form_of_its_ending(capsys, weights, pictures, recipe, tmp_path, ending):
    drawn = [tmp_path / f"{name}{ending}" for name in ("predictions", "schedule", "augment")]
    predict = ("predict", pictures / "val/dog/0.jpg", "--weights", weights)
    assert run(capsys, *predict, "--output", drawn[0])[0] == 0
    assert run(capsys, "train", "--config", recipe, "--plot-schedule", drawn[1])[0] == 0
    if ending != ".svg":  # pixels have no form in it
        assert run(capsys, "train", "--config", recipe, "--plot-augment", drawn.pop())[0] == 0
        drawn.append(tmp_path / f"augment{ending}")
    for path in [path for path in drawn if path.exists()]:
        if isinstance(DRAWN[ending], bytes):
            assert path.read_bytes().startswith(DRAWN[ending])
        else:
            with Image.open(path) as image:
                assert image.format == DRAWN[ending]


def test_where_nothing_can_be_written_is_said_before_the_work(capsys, pictures, recipe, tmp_path):
    """Before the weights are read, which are not there."""
    for where, fault in (("missing/o.png", "folder does not exist"), (".", "ends in"), ("o.png", "is a folder")):
        (tmp_path / "o.png").mkdir(exist_ok=True)
        output, status = tmp_path / where, 2 if where == "." else 1
        predict = ("predict", pictures / "val", "--weights", tmp_path / "none")
        assert fault in fails(capsys, *predict, "--output", output, status=status)
        assert fault in fails(capsys, "train", "--config", recipe, "--plot-schedule", output, status=status)
        assert fault in fails(capsys, "bench", "mnasnet_small", "--plot", output, status=status)
    (tmp_path / "report").write_text("")
    validate = ("validate", pictures, "--weights", tmp_path / "none", "--report", tmp_path / "report")
    assert "--report" in fails(capsys, *validate)


@pytest.fixture
def server(monkeypatch):
    """An address, and what it answers by path: status, headers and content."""
    answers = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, headers, content = answers[self.path]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    for name in ("JEFFNET_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", answers
    server.shutdown()
    server.server_close()


def test_a_picture_may_have_an_address(capsys, weights, pictures, server):
    address, answers = server
    content = (pictures / "val/dog/0.jpg").read_bytes()
    answers["/dog.jpg?size=large"] = (200, {"Content-Length": str(len(content))}, content)
    answers["/moved"] = (302, {"Location": "/dog.jpg?size=large"}, b"")
    options = ("--weights", weights, "--json")
    file = json.loads(run(capsys, "predict", pictures / "val/dog/0.jpg", *options)[1])
    for path in ("/dog.jpg?size=large", "/moved"):
        status, out, _ = run(capsys, "predict", f"{address}{path}".replace("//", "//me:secret@"), *options)
        assert status == 0
        assert json.loads(out) == [file[0] | {"name": f"{address}{path}"}]


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ((404, {}, b""), "the server answers 404"),
        ((500, {}, b""), "the server answers 500"),
        ((200, {}, b"<html>"), "not a picture in a known format"),
        ((200, {}, b""), "is empty"),
        ((200, {"Content-Length": "9"}, b"cut"), "cannot be fetched"),
        ((200, {"Content-Length": "nine"}, b"cut"), "cannot be fetched"),
        ((302, {"Location": "file:///etc/hostname"}, b""), "cannot be fetched"),
        ((302, {"Location": "/picture.png"}, b""), "cannot be fetched"),
        ((200, {}, bytes(5000)), "more than 4,096 bytes"),
    ],
)
def test_an_address_without_a_picture_is_one_line(capsys, weights, server, monkeypatch, answer, fault):
    monkeypatch.setattr("jeffnet.inference.remote.MOST_BYTES", 4096)
    address, answers = server
    answers["/picture.png"] = answer
    message = fails(capsys, "predict", f"{address}/picture.png", "--weights", weights)
    assert fault in message and f"{address}/picture.png" in message and message.count("\n") == 1


def test_addresses_that_are_not_read(capsys, weights, pictures, server, monkeypatch, tmp_path):
    address, answers = server
    predict = ("predict", "--weights", weights)
    assert "ftp cannot be read" in fails(capsys, *predict, "ftp://host/a.png")
    assert "file cannot be read" in fails(capsys, *predict, "file:///etc/a.png")
    assert "is an address" in fails(capsys, "validate", "https://host/pictures", "--weights", weights)
    config = tmp_path / "recipe.json"
    config.write_text('{"model": {"name": "small_of_the_tests"}, "data": {"path": "https://host/pictures"}}')
    assert "is an address" in fails(capsys, "train", "--config", config, "--output", tmp_path / "run")
    answers["/a.png"] = (200, {}, b"")
    monkeypatch.setattr("jeffnet.inference.remote.MOST_SECONDS", -1)
    monkeypatch.setitem(answers, "/a.png", (200, {}, b"x"))
    assert "takes longer than" in fails(capsys, *predict, f"{address}/a.png")
    monkeypatch.setenv("JEFFNET_OFFLINE", "1")
    assert "offline" in fails(capsys, *predict, f"{address}/a.png")


def test_predict_turns_pictures_upright_and_validate_does_not(capsys, weights, tmp_path):
    """A picture that is stored on its side has the probabilities of the same one that is stored upright."""
    pixels = np.zeros((60, 40, 3), np.uint8)
    pixels[:20], pixels[20:, :20] = (250, 30, 30), (30, 30, 250)
    image = Image.fromarray(pixels)
    for name in CLASSES:
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "upright.png")
        stored = image.transpose(Image.Transpose.ROTATE_90)
        exif = stored.getexif()
        exif[0x0112] = 6
        stored.save(tmp_path / name / "aside.png", exif=exif)

    def probabilities(*options):
        status, out, err = run(capsys, "predict", tmp_path / "cat", "--weights", weights, "--json", *options)
        assert status == 0
        aside, upright = [dict(zip(row["classes"], row["probabilities"], strict=True)) for row in json.loads(out)]
        return aside, upright, err

    aside, upright, err = probabilities()
    # Where a picture stands in its batch may change the order of a sum.
    assert (
        aside == pytest.approx(upright, abs=1e-6) and "1 of 2 pictures have an EXIF orientation and were rotated" in err
    )
    aside, same, err = probabilities("--no-exif")
    assert (
        aside != pytest.approx(upright, abs=1e-3)
        and same == pytest.approx(upright, abs=1e-6)
        and "were not rotated" in err
    )
    validate = ("validate", tmp_path, "--weights", weights)
    _, out, _ = run(capsys, *validate)
    assert "EXIF orientation not applied" in out
    _, out, _ = run(capsys, *validate, "--exif")
    assert "EXIF orientation applied" in out
    losses = {}
    for option in ("--exif", "--no-exif"):
        row = json.loads(run(capsys, *validate, option, "--json")[1])
        assert row["preprocessing"]["exif"] is (option == "--exif")
        losses[option] = row["loss"]
    assert losses["--exif"] != losses["--no-exif"]


def test_a_folder_is_cut_to_the_limit_aloud_and_named_files_never(capsys, weights, pictures):
    folder = pictures / "val"
    _, out, err = run(capsys, "predict", folder, "--weights", weights, "--limit", 2, "--json")
    assert len(json.loads(out)) == 2 and "2 of 6 pictures" in err
    assert len({Path(each["name"]).parent for each in json.loads(out)}) == 2  # not both of the first class
    files = sorted(folder.rglob("*.jpg"))[:3]
    _, out, err = run(capsys, "predict", *files, "--weights", weights, "--limit", 2, "--json")
    assert len(json.loads(out)) == 3 and "--limit" not in err


def test_weights_without_a_classifier_predict_nothing(capsys, pictures, tmp_path, small_model):
    save_file(_timm_state(model_plan(small_model, num_classes=0)), tmp_path / "trunk.safetensors")
    options = ("--weights", tmp_path / "trunk.safetensors", "--model", small_model)
    assert "no classifier" in fails(capsys, "predict", pictures / "val/cat", *options)


def test_probabilities_do_not_depend_on_the_batch(capsys, weights, pictures):
    answers = []
    for size in (1, 2, 6):
        _, out, _ = run(capsys, "predict", pictures / "val", "--weights", weights, "--batch-size", size, "--json")
        answers.append(json.loads(out))
    for other in answers[1:]:
        for one, two in zip(answers[0], other, strict=True):
            assert one["name"] == two["name"]
            np.testing.assert_allclose(one["probabilities"], two["probabilities"], atol=1e-5)


def _picture(mode, tmp_path):
    rng = np.random.default_rng(1)
    depth, dtype = (65536, np.uint16) if mode == "I;16" else (256, np.uint8)
    shape = (40, 40) if mode in ("L", "I;16") else (40, 40, 3)
    image = Image.fromarray(rng.integers(0, depth, shape, dtype))
    path = tmp_path / f"picture.{'jpg' if mode == 'CMYK' else 'png'}"
    (image if image.mode == mode else image.convert(mode)).save(path)
    with Image.open(path) as saved:
        assert saved.mode == mode
    return path


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "I;16"])
def test_predict_takes_pictures_of_any_mode(capsys, weights, tmp_path, mode):
    status, out, _ = run(capsys, "predict", _picture(mode, tmp_path), "--weights", weights, "--json")
    assert status == 0
    assert sum(json.loads(out)[0]["probabilities"]) == pytest.approx(1, abs=1e-5)


def _broken(kind, folder, whole):
    path = folder / f"{kind}.jpg"
    path.write_bytes({"truncated": whole.read_bytes()[:400], "empty": b"", "text": b"no picture"}[kind])
    return path


@pytest.mark.parametrize("kind", ["truncated", "empty", "text"])
def test_broken_pictures_are_named(capsys, weights, pictures, tmp_path, kind):
    path = _broken(kind, tmp_path, pictures / "val/cat/0.jpg")
    assert path.name in fails(capsys, "predict", path, "--weights", weights)


@pytest.mark.parametrize("kind", ["truncated", "empty", "text"])
def test_a_broken_picture_in_a_data_set_is_named(capsys, weights, pictures, tmp_path, kind):
    for name in CLASSES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "whole.jpg").write_bytes((pictures / "val/cat/0.jpg").read_bytes())
    _broken(kind, tmp_path / "cat", pictures / "val/cat/0.jpg")
    assert f"{kind}.jpg" in fails(capsys, "validate", tmp_path, "--weights", weights, "--json")


def test_missing_and_unfit_data_is_named(capsys, weights, pictures, tmp_path):
    assert "missing.jpg" in fails(capsys, "predict", tmp_path / "missing.jpg", "--weights", weights)
    assert "no pictures" in fails(capsys, "predict", tmp_path, "--weights", weights)
    assert "no class folders" in fails(capsys, "validate", tmp_path, "--weights", weights)
    (tmp_path / "fish").mkdir()
    (tmp_path / "fish" / "0.jpg").write_bytes((pictures / "val/cat/0.jpg").read_bytes())
    assert "fish" in fails(capsys, "validate", tmp_path, "--weights", weights)


def test_wrong_weights_are_named_with_what_does_not_fit(capsys, pictures, tmp_path, small_model):
    predict = ("predict", pictures / "val/cat", "--weights")
    assert "does not exist" in fails(capsys, *predict, tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("no weights")
    assert "not a whole safetensors file" in fails(capsys, *predict, tmp_path / "text.safetensors")
    state = _timm_state(model_plan(small_model, num_classes=3))
    save_file(state, tmp_path / "small.safetensors")
    assert "--model" in fails(capsys, *predict, tmp_path / "small.safetensors")
    message = fails(capsys, *predict, tmp_path / "small.safetensors", "--model", "mnasnet_100")
    assert all(word in message for word in ("missing", "left over", "misshapen"))
    assert run(capsys, *predict, tmp_path / "small.safetensors", "--model", "small_of_the_tests")[0] == 0


def _timm_state(plan):
    state = to_source_names(initial_arrays(plan, 0), TIMM, plan)
    return {name: np.ascontiguousarray(array) for name, array in state.items()}


def test_weights_of_another_number_of_classes_than_the_data(capsys, pictures, tmp_path, small_model):
    save_file(_timm_state(model_plan(small_model, num_classes=4)), tmp_path / "four.safetensors")
    message = fails(capsys, "validate", pictures, "--weights", tmp_path / "four.safetensors", "--model", small_model)
    assert "3 classes, the model 4" in message


@pytest.fixture
def recipe(tmp_path, pictures, small_model):
    path = tmp_path / "recipe.py"
    path.write_text(
        "from jeffnet.train.config import *\n"
        f"config = Config(model=ModelConfig(name={small_model!r}), epochs=1, batch_size=3, log=LogConfig(steps=1),\n"
        f"                data=DataConfig(path={str(pictures)!r}, image_size=32))\n"
    )
    return path


def test_train_then_resume_then_predict(capsys, recipe, tmp_path, pictures):
    folder = tmp_path / "run"
    status, out, err = run(capsys, "train", "--config", recipe, "--output", folder, "--loss.label_smoothing", "0.1")
    assert status == 0
    assert "best top-1" in out and "epoch   1/1" in err
    assert json.loads((folder / "config.json").read_text())["loss"]["label_smoothing"] == 0.1
    assert all("step" in json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    status, out, _ = run(capsys, "train", "--resume", folder, "--json")
    assert status == 0
    assert json.loads(out)["steps"] == 2
    assert run(capsys, "predict", pictures / "val/cat", "--weights", folder / "model.safetensors")[0] == 0
    assert "--resume" in fails(capsys, "train", "--config", recipe, "--output", folder)


def test_train_prints_the_whole_configuration(capsys, recipe):
    _, out, _ = run(capsys, "train", "--config", recipe, "--print-config", "--augment.hflip=0.25")
    assert json.loads(out)["augment"]["hflip"] == 0.25
    assert json.loads(out)["optimizer"]["name"] == "sgd"


def test_train_draws_what_a_recipe_does(capsys, recipe, tmp_path):
    pictures = tmp_path / "rate.png", tmp_path / "augmented.png"
    arguments = ("--plot-schedule", pictures[0], "--plot-augment", pictures[1], "--augment.policy", "rand-m9")
    status, out, _ = run(capsys, "train", "--config", recipe, *arguments)
    assert status == 0
    assert "2 steps in 1 epoch of" in out and "rand-m9" in out
    for picture in pictures:
        with Image.open(picture) as drawn:
            assert min(drawn.size) > 200
    # A recipe whose data is elsewhere can be looked at too.
    _, out, _ = run(capsys, "train", "--config", recipe, "--data.path", "elsewhere", "--plot-schedule", pictures[0])
    assert "1281167 pictures" in out


@pytest.mark.slow
def test_train_with_several_seeds(capsys, recipe, tmp_path):
    status, out, _ = run(capsys, "train", "--config", recipe, "--output", tmp_path / "runs", "--seeds", "3,4")
    assert status == 0
    assert "mean of 2 seeds" in out and "standard deviation" in out
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"seed_3", "seed_4", "curves.png"}
    _, out, _ = run(capsys, "train", "--config", recipe, "--output", tmp_path / "runs", "--seeds", "3,4", "--json")
    assert [row["run"] for row in json.loads(out)] == [str(tmp_path / "runs" / f"seed_{seed}") for seed in (3, 4)]


def test_train_refuses_what_will_not_do(capsys, recipe, tmp_path, pictures):
    train = ("train", "--config", recipe, "--output", tmp_path / "run")
    assert "mnasnet_small" in fails(capsys, *train, "--model.name", "mnasnet_smal")
    assert "batch_size 100" in fails(capsys, *train, "--batch_size", "100")
    assert "no run folder" in fails(capsys, "train", "--resume", tmp_path / "nothing")
    one = tmp_path / "one"
    (one / "train/cat").mkdir(parents=True)
    (one / "val/cat").mkdir(parents=True)
    for split in ("train", "val"):
        (one / split / "cat/0.jpg").write_bytes((pictures / "val/cat/0.jpg").read_bytes())
    fails(capsys, *train, "--data.path", one)
    assert not (tmp_path / "run").exists()


def test_a_read_only_output_is_an_error(capsys, recipe, tmp_path, monkeypatch):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    if os.access(locked, os.W_OK):  # who may write everywhere, as root, meets read-only file systems only
        from pathlib import Path

        def refuse(self, *arguments, **options):
            raise OSError(30, "Read-only file system", str(self))

        monkeypatch.setattr(Path, "mkdir", refuse)
    message = fails(capsys, "train", "--config", recipe, "--output", locked / "run")
    assert "locked/run" in message and "cannot be written" in message


def test_an_interrupt_is_no_traceback(capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("jeffnet.cli.list_.list_models", interrupt)
    status, _, err = run(capsys, "list")
    assert (status, err) == (130, "interrupted\n")


def test_an_interrupt_within_an_import_ends_the_command(tmp_path):
    """Though what is imported ignores the exception, as JAX's callbacks do."""
    text = "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n    print()\nexcept: pass\n"
    (tmp_path / "argparse.py").write_text(text)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-m", "jeffnet", "list"]
    # Interrupts are ignored where these tests run in the background, and then by the process that they start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        answer = subprocess.run(command, capture_output=True, env=environment, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (answer.returncode, answer.stdout.strip(), answer.stderr) == (130, "", "interrupted\n")
