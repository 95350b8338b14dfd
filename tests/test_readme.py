"""The README's examples run as they are printed, and its commands exist."""

import re
import shlex
from pathlib import Path

import pytest

from jeffnet.cli.main import _parse

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_python_examples_run_in_order():
    """Pictures are smaller here, for speed; examples that need a file of the reader's are marked `notest`."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 5
    names = {}
    for block in blocks:
        exec(compile(block.replace("224, 224", "64, 64"), "README.md", "exec"), names)
    assert names["logits"].shape == (2, 1000)
    assert [level.shape[1] for level in names["maps"]] == [16, 8, 2]
    assert names["pooled"].shape == (2, 1280)
    assert names["config"].model.pretrained == "model.safetensors"


@pytest.mark.parametrize("line", re.findall(r"^jeffnet .*$", README, re.MULTILINE))
def test_the_commands_parse(line):
    words = shlex.split(line, comments=True)
    options = _parse(words[1:])
    assert callable(options.run)


def test_files_that_the_readme_names_exist():
    root = Path(__file__).parents[1]
    names = re.findall(r"\]\((?!http)([^)#]+)\)", README) + re.findall(r"configs/\w+\.py", README)
    assert len(names) >= 4
    assert [name for name in names if not (root / name).exists()] == []
