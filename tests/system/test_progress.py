"""How far work is: a bar on a terminal, lines now and then in a log."""

import io
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from jeffnet.system import progress
from jeffnet.system.progress import progress_bar


class Stream(io.StringIO):
    """Standard error, which may be a terminal."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def _shown(monkeypatch, terminal: bool, **options) -> str:
    stream = Stream(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar("reading", 8, "image", **options) as bar:
        bar.update(3)
        time.sleep(0.3)  # one long step: nothing calls the bar
    return stream.getvalue()


def test_a_log_gets_whole_lines_also_while_nothing_is_counted(monkeypatch):
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.05)
    lines = _shown(monkeypatch, terminal=False).splitlines(keepends=True)
    assert 1 <= len(lines) <= 6
    assert all(line.startswith("reading: ") and " 3/8 [" in line and line.endswith("]\n") for line in lines)


@pytest.mark.parametrize(("terminal", "options"), [(False, {}), (False, {"shown": False}), (True, {"shown": False})])
def test_short_work_and_hidden_work_write_nothing(monkeypatch, terminal, options):
    assert _shown(monkeypatch, terminal, **options) == ""


LINES = """
import time
from jeffnet.system import progress
progress.EVERY_SECONDS = 0.05
with progress.progress_bar("reading"):
    time.sleep(0.3)
"""


@pytest.mark.parametrize(("value", "shown"), [("", True), ("1", False)])
def test_the_environment_hides_bars_and_lines(value, shown):
    """It is read when tqdm is imported."""
    done = subprocess.run(
        [sys.executable, "-c", LINES],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"TQDM_DISABLE": value},
    )
    assert ("reading: " in done.stderr) == shown


def test_a_notebook_has_a_bar_though_its_stream_is_no_terminal(monkeypatch):
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert "\rreading:" in _shown(monkeypatch, terminal=False)


def test_a_terminal_has_a_bar(monkeypatch):
    text = _shown(monkeypatch, terminal=True)
    assert "reading:" in text and "\r" in text and "\n" not in text
