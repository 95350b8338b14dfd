"""The README's examples run as they are printed, and its commands exist."""

import re
import shlex
import signal
from pathlib import Path

import numpy as np
import pytest

from jeffnet.arch import zoo
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.pretrained import PRETRAINED
from jeffnet.arch.spec import ModelSpec
from jeffnet.cli.main import EXIT_CRASH, _parse, main
from jeffnet.cli.train import _pairs
from jeffnet.errors import EndingError, UsageError
from jeffnet.nnx import from_pretrained
from jeffnet.parallel.distributed import EXIT_LOST
from jeffnet.train.interrupt import EXIT_CODES
from jeffnet.train.recipe import load_recipe, override

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("models", ["small", pytest.param("printed", marks=pytest.mark.slow)])
def test_the_python_examples_run_in_order(models, tmp_path, monkeypatch):
    """Pictures are smaller here, for speed, and in `make test` models too; what needs a reader's file is `notest`."""
    monkeypatch.chdir(tmp_path)
    # Nothing but 1x1 convolutions, of which all of this compiles in seconds; as many maps as the printed ones have.
    stages = tuple((f"cn_r1_k1_s{stride}_c8",) for stride in (1, 2, 2, 2, 2))
    monkeypatch.setitem(zoo.MODELS, "flat", ModelSpec(stages=stages, stem=8, features=64))
    monkeypatch.setitem(zoo.PREPROCESSING, "flat", Preprocessing(32, 1.0))
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 5
    names = {}
    for block in blocks:
        block = block.replace("224, 224", "64, 64")
        if models == "small":
            block = re.sub("pt_efficientnet_b0|pt_mobilenetv3_small_100", "flat", block)
        exec(compile(block, "README.md", "exec"), names)
    assert names["logits"].shape == (2, 1000)
    assert [level.shape[1] for level in names["maps"]] == [16, 8, 2]
    assert names["pooled"].shape == (2, 64 if models == "small" else 1280)
    np.testing.assert_allclose(names["fused_logits"], names["functional_logits"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(names["loaded_logits"], names["fused_logits"])
    for backend in ("nnx", "objax", "functional", "converted", "served"):
        assert names[f"{backend}_logits"].shape == (2, 10)
    np.testing.assert_allclose(names["served_logits"], names["nnx_logits"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(names["converted_logits"], names["nnx_logits"], rtol=1e-4, atol=1e-5)
    assert np.isfinite([float(names["nnx_loss"]), float(names["objax_value"])]).all()
    for name in ("trained.safetensors", "trained.msgpack"):
        _, card = from_pretrained(tmp_path / name, "flat" if models == "small" else "pt_mobilenetv3_small_100")
        assert card.num_classes == 10


@pytest.mark.parametrize("line", re.findall(r"^jeffnet .*$", README, re.MULTILINE))
def test_the_commands_parse(line):
    words = shlex.split(line, comments=True)
    options = _parse(words[1:])
    assert callable(options.run)
    if getattr(options, "config", None):
        assert override(load_recipe(ROOT / options.config), _pairs(options.overrides))


def test_the_table_of_models_is_what_the_command_prints(capsys):
    assert main(["list", "--markdown"]) == 0
    table = re.search(r"<!-- models -->\n(.*?)<!-- end of models -->", README, re.DOTALL)[1]
    assert table == capsys.readouterr().out
    assert table.count("jeffnet validate") == len(PRETRAINED)
    for line in re.findall(r"`(jeffnet validate .*?)`", table):
        test_the_commands_parse(line)


def test_the_table_of_statuses_has_those_that_commands_end_with():
    table = README.partition("| status | meaning |")[2].partition("\n\n")[0]
    listed = {
        int(code): text
        for codes, text in re.findall(r"^\| ([\d, ]+) \| (.*) \|$", table, re.M)
        for code in codes.split(",")
    }
    assert {0, 1, EXIT_CRASH, UsageError.exit_code, EndingError.exit_code, EXIT_LOST, *EXIT_CODES.values()} == {*listed}
    assert listed[UsageError.exit_code].startswith("wrong usage") and "SIGTERM" in listed[EXIT_CODES[signal.SIGTERM]]


def test_files_that_the_readme_names_exist():
    names = re.findall(r"\]\((?!http)([^)#]+)\)", README) + re.findall(r"configs/\w+\.py", README)
    assert len(names) >= 4
    assert [name for name in names if not (ROOT / name).exists()] == []
