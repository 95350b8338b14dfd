"""Metrics: what was written is there whatever happens afterwards; a run that goes on takes back what comes again."""

import contextlib
import json
import logging
import math
import struct
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from jeffnet.errors import ConfigError, OutputError
from jeffnet.train.config import LogConfig
from jeffnet.train.reports import boards
from jeffnet.train.reports.journal import METRICS_FILE, Journal, read_rows

QUIET = LogConfig(tensorboard=False)
ROWS = [
    {"step": 2, "epoch": 0.5, "train_loss": 2.5, "train_top1": 12.5, "learning_rate": 0.1, "images_per_second": 310.2},
    {
        "step": 4,
        "epoch": 1.0,
        "train_loss": 2.25,
        "train_top1": 25.0,
        "learning_rate": 0.05,
        "images_per_second": 300.0,
    },
    {"step": 4, "epoch": 1, "val_loss": 1.5, "val_top1": 50.0, "val_examples": 9, "ema_val_top1": 40.0},
    {"step": 6, "epoch": 1.5, "train_loss": 2.0, "train_top1": 37.5, "skipped": 1, "learning_rate": 0.0},
]


def open_journal(folder, log=QUIET, after_step=0):
    return Journal(folder, log, {"seed": 3}, after_step)


def write_some(folder, log=QUIET, after_step=0, rows=ROWS):
    journal = open_journal(folder, log, after_step)
    for row in rows:
        journal.write(row)
    journal.close()
    return journal


def test_each_row_is_a_line_as_soon_as_it_is_written(tmp_path):
    journal = open_journal(tmp_path)
    for count, row in enumerate(ROWS, 1):
        journal.write(row)
        assert [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()] == ROWS[:count]
        assert journal.rows() == read_rows(tmp_path) == ROWS[:count]
    journal.close()


def test_a_folder_without_metrics_has_no_rows(tmp_path):
    assert read_rows(tmp_path) == []


@pytest.mark.parametrize(("after_step", "kept"), [(0, 0), (3, 1), (4, 3), (5, 3), (6, 4), (100, 4)])
def test_later_rows_are_taken_back(after_step, kept, tmp_path):
    write_some(tmp_path)
    lines = (tmp_path / METRICS_FILE).read_bytes().splitlines(keepends=True)
    journal = open_journal(tmp_path, after_step=after_step)
    assert journal.rows() == ROWS[:kept]
    assert (tmp_path / METRICS_FILE).read_bytes() == b"".join(lines[:kept])
    journal.write({"step": 7})
    journal.close()
    assert read_rows(tmp_path) == [*ROWS[:kept], {"step": 7}]


def test_a_file_cut_off_anywhere_loses_its_last_line_alone(tmp_path):
    write_some(tmp_path, rows=ROWS[:3])
    whole = (tmp_path / METRICS_FILE).read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for end in range(last, len(whole) + 1):
        (tmp_path / METRICS_FILE).write_bytes(whole[:end])
        complete = 3 if end >= len(whole) - 1 else 2
        write_some(tmp_path, after_step=5, rows=ROWS[3:])
        assert read_rows(tmp_path) == [*ROWS[:complete], ROWS[3]]


def test_a_line_that_is_no_row_is_left_out_with_a_warning(tmp_path, caplog):
    write_some(tmp_path)
    lines = (tmp_path / METRICS_FILE).read_text().splitlines()
    (tmp_path / METRICS_FILE).write_text("\n".join([lines[0], "\0\0\0", '{"epoch": 3}', *lines[1:]]) + "\n")
    with caplog.at_level(logging.WARNING):
        assert read_rows(tmp_path) == ROWS
    assert "line 2 of" in caplog.text and "line 3 of" in caplog.text


def test_what_is_no_number_is_null_in_the_file_and_nan_in_memory(tmp_path):
    values = {"step": 1, "train_loss": math.nan, "train_grad_norm": math.inf, "val_loss": -math.inf, "train_top1": 0.0}
    journal = write_some(tmp_path, LogConfig(), rows=[values])

    def refuse(constant):
        raise AssertionError(constant)

    (line,) = (tmp_path / METRICS_FILE).read_text().splitlines()
    strict = json.loads(line, parse_constant=refuse)
    assert strict == {"step": 1, "train_loss": None, "train_grad_norm": None, "val_loss": None, "train_top1": 0.0}
    for (row,) in (journal.rows(), read_rows(tmp_path)):
        assert [name for name, value in row.items() if math.isnan(value)] == [
            "train_loss",
            "train_grad_norm",
            "val_loss",
        ]


def test_numbers_of_numpy_are_numbers(tmp_path):
    write_some(tmp_path, rows=[{"step": np.int64(3), "val_top1": np.float32(0.1), "skipped": np.int32(2)}])
    (row,) = read_rows(tmp_path)
    assert row == {"step": 3, "val_top1": float(np.float32(0.1)), "skipped": 2}
    assert isinstance(row["step"], int) and isinstance(row["skipped"], int)


@contextlib.contextmanager
def full_disk(size):
    """Within it no file grows beyond so many bytes, which looks the same."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_an_error_and_spoils_no_line(tmp_path):
    """It takes the first bytes of a line, then no more."""
    journal = open_journal(tmp_path)
    journal.write(ROWS[0])
    size = (tmp_path / METRICS_FILE).stat().st_size + 10
    with full_disk(size), pytest.raises(OutputError, match=r"cannot write .*metrics\.jsonl"):
        journal.write(ROWS[1])
    assert journal.rows() == read_rows(tmp_path) == ROWS[:1]
    journal.write(ROWS[2])
    journal.close()
    assert read_rows(tmp_path) == [ROWS[0], ROWS[2]]


def test_a_file_that_cannot_be_opened_is_an_error(tmp_path):
    with pytest.raises(OutputError, match=r"cannot write .*events"):
        open_journal(tmp_path / "missing", LogConfig())
    (tmp_path / METRICS_FILE).mkdir()
    with pytest.raises(OutputError, match=r"cannot read .*metrics\.jsonl"):
        open_journal(tmp_path)


# TensorBoard.


def events(folder):
    """All events in the order of TensorBoard, which reads files by their names; lengths and checksums frame each."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content = path.read_bytes()
        while content:
            length, checksum = struct.unpack("<QI", content[:12])
            data = content[12 : 12 + length]
            assert checksum == masked_crc32c(content[:8])
            assert struct.unpack("<I", content[12 + length : 16 + length]) == (masked_crc32c(data),)
            found.append(Event.FromString(data))
            content = content[16 + length :]
    return found


def scalars(folder):
    return [(event.step, value.tag, value.simple_value) for event in events(folder) for value in event.summary.value]


def test_tensorboard_has_the_same_numbers_in_groups(tmp_path):
    write_some(tmp_path, LogConfig())
    expected = {
        (4, "train/loss", 2.25),
        (4, "train/top1", 25.0),
        (4, "learning_rate", np.float32(0.05)),
        (4, "images_per_second", 300.0),
        (4, "val/loss", 1.5),
        (4, "val/top1", 50.0),
        (4, "val/examples", 9.0),
        (4, "ema_val/top1", 40.0),
        (4, "epoch", 1.0),
    }
    assert {scalar for scalar in scalars(tmp_path) if scalar[0] == 4} == expected
    assert {step for step, _, _ in scalars(tmp_path)} == {2, 4, 6}
    assert boards.tags({"step": 1, "averaged_val_loss": 2, "averaged_epochs": 3}) == {
        "averaged_val/loss": 2,
        "averaged_epochs": 3,
    }


def test_tensorboard_is_off_where_it_is_not_wanted(tmp_path):
    write_some(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [METRICS_FILE]


def test_the_name_of_the_machine_is_in_no_file_name(tmp_path, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "machine-of-somebody")
    write_some(tmp_path, LogConfig())
    assert not list(tmp_path.glob("*machine*"))


def test_a_run_that_goes_on_takes_later_events_back(tmp_path):
    """A restart at a step is what tells TensorBoard to forget this step and all after it."""
    write_some(tmp_path, LogConfig())
    write_some(tmp_path, LogConfig(), after_step=4, rows=[{"step": 6, "train_loss": 1.0}])
    restarts = [event.step for event in events(tmp_path) if event.HasField("session_log")]
    assert restarts == [1, 5]
    assert len(list(tmp_path.glob("events*"))) == 2


def test_tensorboard_itself_reads_it(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    # Without it TensorBoard loads TensorFlow, where it is installed, in many seconds.
    monkeypatch.setitem(sys.modules, "tensorboard.compat.notf", types.ModuleType("tensorboard.compat.notf"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_some(tmp_path, LogConfig())
    write_some(
        tmp_path, LogConfig(), after_step=4, rows=[{"step": 6, "train_loss": 1.0}, {"step": 8, "train_loss": 0.5}]
    )
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert [(event.step, event.value) for event in read.Scalars("train/loss")] == [
        (2, 2.5),
        (4, 2.25),
        (6, 1.0),
        (8, 0.5),
    ]
    assert [(event.step, event.value) for event in read.Scalars("val/top1")] == [(4, 50.0)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_does_not_let_a_run_wait_for_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setattr("time.time_ns", lambda: 1)
    (tmp_path / "events.out.tfevents.1").symlink_to("/dev/full")
    with pytest.raises(OutputError, match=r"cannot write .*events\.out\.tfevents"):
        open_journal(tmp_path, LogConfig())


def test_a_disk_that_fills_up_is_told_when_events_are_written_or_at_the_latest_at_the_end(tmp_path, monkeypatch):
    for seconds in (0, 1000):
        (tmp_path / str(seconds)).mkdir()
        monkeypatch.setattr(boards, "_SECONDS_TO_FLUSH", seconds)
        journal = open_journal(tmp_path / str(seconds), LogConfig())
        with full_disk(0), pytest.raises(OutputError, match="tfevents"):
            for board in journal._boards:
                board.write(ROWS[0])
            assert seconds > 0
            journal.close()
        with contextlib.suppress(OutputError):
            journal.close()


def test_writing_for_tensorboard_loads_no_torch(tmp_path):
    """Its writer loads it where it is installed; afterwards whoever wants it has it."""
    code = """
import sys, types
import importlib.util
from pathlib import Path
from jeffnet.train.reports.boards import TensorBoard
TensorBoard(Path(sys.argv[1]), 1).close()
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)
    assert list(tmp_path.glob("events*"))


# Weights & Biases.


class FakeRun:
    def __init__(self, fails=False):
        self.fails, self.rows, self.finished, self.metrics = fails, [], 0, []

    def define_metric(self, *args, **options):
        self.metrics.append((args, options))

    def log(self, row):
        if self.fails:
            raise BrokenPipeError("the network is gone\nfor good")
        self.rows.append(row)

    def finish(self):
        self.finished += 1
        if self.fails:
            raise BrokenPipeError("still gone")


@pytest.fixture
def wandb(monkeypatch):
    """As much of Weights & Biases as is used."""
    module = types.ModuleType("wandb")

    class UsageError(Exception):
        pass

    class AuthenticationError(Exception):
        pass

    def init(**options):
        module.options.append(options)
        if module.refusal is not None:
            raise module.refusal
        module.runs.append(FakeRun(module.fails))
        return module.runs[-1]

    module.errors = types.SimpleNamespace(UsageError=UsageError, AuthenticationError=AuthenticationError)
    module.Settings = lambda **entries: entries
    module.init, module.options, module.runs, module.fails, module.refusal = init, [], [], False, None
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


SENT = LogConfig(tensorboard=False, wandb_project="flowers")


def test_weights_and_biases_get_the_rows_and_the_configuration(wandb, tmp_path):
    write_some(tmp_path, SENT)
    (options,), (run,) = wandb.options, wandb.runs
    assert options["project"] == "flowers" and options["config"] == {"seed": 3} and options["dir"] == str(tmp_path)
    assert run.metrics == [(("*",), {"step_metric": "step"})]
    assert [row["step"] for row in run.rows] == [2, 4, 4, 6]
    assert run.rows[2] == {
        "step": 4,
        "epoch": 1,
        "val/loss": 1.5,
        "val/top1": 50.0,
        "val/examples": 9,
        "ema_val/top1": 40.0,
    }
    assert run.finished == 1


def test_the_configuration_may_be_json(wandb, tmp_path):
    Journal(tmp_path, SENT, {"optimizer": {"name": "sgd"}}, 0).close()
    assert wandb.options[0]["config"] == {"optimizer": {"name": "sgd"}}


def test_a_run_that_goes_on_is_the_same_run_there(wandb, tmp_path):
    write_some(tmp_path, SENT)
    write_some(tmp_path, SENT, after_step=4)
    (tmp_path / "other").mkdir()
    write_some(tmp_path / "other", SENT)
    first, second, other = (options["id"] for options in wandb.options)
    assert first == second != other
    assert {options["resume"] for options in wandb.options} == {"allow"}


def test_a_network_that_fails_stops_nothing_and_is_told_once(wandb, tmp_path, caplog):
    wandb.fails = True
    with caplog.at_level(logging.WARNING):
        write_some(tmp_path, SENT)
    assert read_rows(tmp_path) == ROWS
    (record,) = caplog.records
    assert record.getMessage().endswith("goes on without it: the network is gone")


def test_a_network_that_is_not_there_at_the_start_stops_nothing_either(wandb, tmp_path, caplog):
    wandb.refusal = TimeoutError("nobody answers")
    with caplog.at_level(logging.WARNING):
        write_some(tmp_path, SENT)
    assert read_rows(tmp_path) == ROWS
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == ["nobody answers"]


@pytest.mark.parametrize("error", ["UsageError", "AuthenticationError"])
def test_a_refusal_is_an_error_that_says_what_to_do(error, wandb, tmp_path):
    wandb.refusal = getattr(wandb.errors, error)("no key")
    with pytest.raises(ConfigError, match=r"wandb_project 'flowers' .*no key.*wandb login"):
        open_journal(tmp_path, SENT)


def test_where_it_is_not_installed_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"pip install wandb"):
        open_journal(tmp_path, SENT)
    with pytest.raises(ConfigError, match="wandb"):
        boards.check_boards(SENT)
    boards.check_boards(QUIET)


def test_what_was_opened_is_closed_where_the_rest_cannot_be(wandb, tmp_path):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(OutputError):
        patch.setattr("builtins.open", _refuse_metrics(open))
        open_journal(tmp_path, SENT)
    assert wandb.runs[0].finished == 1


def _refuse_metrics(real):
    def refusing(path, *args, **options):
        if Path(path).name == METRICS_FILE:
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **options)

    return refusing
