"""`make demo`: its commands are commands, and what it expects of them can be missed."""

import importlib.util
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from jeffnet.arch.imagenet import class_titles, known_classes
from jeffnet.cli.main import _parse

pytestmark = pytest.mark.users

ROOT = Path(__file__).parents[1]


@pytest.fixture
def demo():
    spec = importlib.util.spec_from_file_location("demo", ROOT / "docs" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def commands(demo, monkeypatch):
    """The commands that the demo would run; it goes on whatever they would have done."""
    ran = []
    monkeypatch.setattr(demo, "step", lambda title, command: ran.append(command) or "")
    monkeypatch.setattr(demo, "judge_names", lambda printed, photographs: (True, ""))
    monkeypatch.setattr(demo, "rows", lambda path: [{"top1": "99"}] * sum("--results" in command for command in ran))
    return ran


def test_the_commands_of_the_demo_parse(demo, commands, monkeypatch, tmp_path, photographs, capsys):
    monkeypatch.setattr(sys, "argv", ["demo.py", str(tmp_path / "run")])
    demo.main()
    suggested = [line for line in capsys.readouterr().out.splitlines() if line.startswith("jeffnet ")]
    assert len(commands) == 6 and len(suggested) == 2
    for command in (*commands, *suggested):
        program, *words = shlex.split(command)
        assert program == "jeffnet" and callable(_parse(words).run)
    assert len(list((tmp_path / "run" / "photographs").iterdir())) == len(demo.PHOTOGRAPHS)


def test_names_of_photographs_are_judged(demo):
    titles = set(class_titles(known_classes(1000)))
    assert titles.issuperset(name for photograph in demo.PHOTOGRAPHS for name in photograph.shown)
    photographs = {Path(one.file).name: one for one in demo.PHOTOGRAPHS}
    lines = [f"run/{file}   {one.shown[0]} 40.1%  web site 2.0%" for file, one in photographs.items()]
    assert demo.judge_names("\n".join(lines), photographs) == (True, "photographs without a right name: ")
    lines[0] = "run/coffee.png   web site 40.1%  espresso 2.0%"
    met, message = demo.judge_names("\n".join(lines[:-1]), photographs)
    assert not met and message.endswith(": coffee.png (web site), flower.jpg (missing)")


def test_a_step_that_misses_what_is_expected_ends_the_demo(demo, commands, monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "rows", lambda path: [{"top1": "96.9"}])
    with pytest.raises(SystemExit, match=r"error: 96\.9 % of the held-out digits were read; at least 97 % expected"):
        demo.fine_tune(tmp_path)
    monkeypatch.setattr(demo, "rows", lambda path: [{"top1": "99.0"}, {"top1": "98.5"}])
    with pytest.raises(SystemExit, match="the model reads 99"):
        demo.export(tmp_path)


def test_a_command_that_fails_ends_the_demo(demo):
    with pytest.raises(SystemExit, match="error: `jeffnet info nothing_of_the_kind` ended with status 1"):
        demo.step("It fails", "jeffnet info nothing_of_the_kind")


@pytest.mark.slow
def test_the_demo_reaches_what_it_expects(lite0_weights, photographs, tmp_path):
    pytest.importorskip("onnxruntime")
    command = [sys.executable, str(ROOT / "docs" / "demo.py"), str(tmp_path / "run")]
    for _ in range(2):  # also where it has run before
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert (tmp_path / "run" / "photographs.png").is_file() and (tmp_path / "run" / "digits.onnx").is_file()
    assert "WARNING" not in done.stderr  # at first it may say that kernels are compiled
