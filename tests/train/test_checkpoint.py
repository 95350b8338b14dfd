"""Checkpoints: what is saved comes back to the bit; what is damaged, or does not fit, is told from what is good."""

import errno
import logging
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from jeffnet.errors import ConfigError, OutputError, TrainingError
from jeffnet.train import checkpoint
from jeffnet.train.checkpoint import Checkpoints
from jeffnet.train.state import initial_state

# Where one array cannot be read, Orbax gives up while its threads still read the others.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

ARRAYS = {
    "conv.kernel": jnp.arange(24.0).reshape(1, 1, 4, 6),
    "bn.scale": jnp.ones(6),
    "bn.bias": jnp.zeros(6),
    "bn.mean": jnp.linspace(-1, 1, 6),
    "bn.var": jnp.full(6, 0.3),
}


def make_state(step=0, optimizer=None, arrays=ARRAYS, **options):
    state = initial_state(arrays, optimizer or optax.adam(0.1), **{"averaged": True, "scaled": True} | options)
    changed = jax.tree.map(lambda array: (array + 0.1 * step).astype(array.dtype), state)
    return changed.replace(step=jnp.int32(step))


def save_some(folder, *steps, keep=3):
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(make_state(step), {"position": 10 * step})
    checkpoints.close()


def assert_same(state, expected):
    for array, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert array.dtype == wanted.dtype
        np.testing.assert_array_equal(array, wanted)


def restore(folder, template=None):
    checkpoints = Checkpoints(folder, 3)
    try:
        return checkpoints.restore(make_state() if template is None else template)
    finally:
        checkpoints.close()


def test_the_last_one_comes_back_to_the_bit_with_its_values(tmp_path):
    save_some(tmp_path / "c", 3, 7)
    state, values = restore(tmp_path / "c", jax.eval_shape(make_state))
    assert_same(state, make_state(7))
    assert values == {"position": 70}


def test_where_there_is_none_there_is_none(tmp_path):
    assert restore(tmp_path / "c") is None


def test_the_last_few_are_kept(tmp_path):
    save_some(tmp_path / "c", 1, 2, 3, 4, keep=2)
    assert Checkpoints(tmp_path / "c", 2).steps == [4, 3]


def test_a_state_may_change_as_soon_as_save_returns(tmp_path):
    """A step gives its buffers up, while the checkpoint is still being written."""
    checkpoints, state = Checkpoints(tmp_path / "c", 2), make_state(1)
    expected = jax.tree.map(np.array, state)
    checkpoints.save(state, {})
    jax.jit(lambda state: jax.tree.map(lambda array: array * 0 - 1, state), donate_argnums=0)(state)
    checkpoints.close()
    assert_same(restore(tmp_path / "c")[0], expected)


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "json"])
def test_a_damaged_last_one_is_renamed_and_the_one_before_it_taken(damage, tmp_path, caplog):
    """Never deleted, nor renamed over one of the same step that was damaged before."""
    save_some(tmp_path / "c", 3, 7)
    (tmp_path / "c" / "damaged_7").mkdir()
    files = [path for path in (tmp_path / "c" / "7").rglob("*") if path.is_file()]
    largest = max((path for path in files if "progress" not in str(path)), key=lambda path: path.stat().st_size)
    if damage == "remove":
        largest.unlink()
    elif damage == "json":
        (progress,) = [path for path in files if path.parent.name == "progress" and path.name == "metadata"]
        progress.write_text(progress.read_text()[:20])
    else:
        content = bytearray(largest.read_bytes())
        middle = len(content) // 2
        content[middle] ^= 1
        largest.write_bytes(content[:middle] if damage == "truncate" else content)
    with caplog.at_level(logging.WARNING):
        state, values = restore(tmp_path / "c")
    assert_same(state, make_state(3))
    assert values == {"position": 30}
    # Ours alone: threads of Orbax tell of what this and earlier tests left undone, whenever they come to it.
    messages = "\n".join(record.getMessage() for record in caplog.records if record.name == "jeffnet.train")
    assert "step 7 cannot be read" in messages and "it is kept as damaged_7_2" in messages
    assert "tensorstore_spec" not in messages
    assert Checkpoints(tmp_path / "c", 3).steps == [3]
    left = [path for path in (tmp_path / "c" / "damaged_7_2").rglob("*") if path.is_file()]
    assert len(left) == len(files) - (damage == "remove")


def restore_fails(monkeypatch, error, times):
    """The system refuses to read a checkpoint so many times."""
    tries, read = iter(range(times)), ocp.CheckpointManager.restore

    def fail(manager, step, **options):
        if step == 7 and next(tries, None) is not None:
            raise error
        return read(manager, step, **options)

    monkeypatch.setattr(ocp.CheckpointManager, "restore", fail)
    monkeypatch.setattr(checkpoint, "_SECONDS_BEFORE_READING", (0, 0, 0))


REFUSALS = [
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ESTALE, "Stale file handle"),
    ValueError("UNKNOWN: Error reading \"zarr\" driver [source locations='file_util.cc:1' os_error_code='5']"),
]


@pytest.mark.parametrize("error", REFUSALS)
def test_what_cannot_be_read_now_is_read_again(error, tmp_path, monkeypatch):
    save_some(tmp_path / "c", 3, 7)
    restore_fails(monkeypatch, error, 2)
    assert_same(restore(tmp_path / "c")[0], make_state(7))


@pytest.mark.parametrize("error", REFUSALS)
def test_what_stays_unreadable_ends_the_run_and_nothing_is_changed(error, tmp_path, monkeypatch):
    save_some(tmp_path / "c", 3, 7)
    restore_fails(monkeypatch, error, 99)
    with pytest.raises(
        TrainingError, match=r"c/7' cannot be read: (Input/output error|Stale file handle): nothing was"
    ):
        restore(tmp_path / "c")
    monkeypatch.undo()
    assert Checkpoints(tmp_path / "c", 3).steps == [7, 3]
    assert_same(restore(tmp_path / "c")[0], make_state(7))


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="no file of the system that refuses to be read")
def test_a_file_that_the_system_refuses_to_read_is_no_proof_of_damage(tmp_path, monkeypatch):
    """Whatever the library that meets it makes of the error."""
    save_some(tmp_path / "c", 3, 7)
    monkeypatch.setattr(checkpoint, "_SECONDS_BEFORE_READING", (0, 0))
    files = sorted((tmp_path / "c" / "7").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    for path in (files[-1], tmp_path / "c" / "7" / "progress" / "metadata"):
        path.rename(tmp_path / "moved")
        path.symlink_to("/proc/self/mem")
        with pytest.raises(TrainingError, match="c/7' cannot be read: Input/output error"):
            restore(tmp_path / "c")
        (tmp_path / "moved").replace(path)
        assert Checkpoints(tmp_path / "c", 3).steps == [7, 3], path


def test_a_checkpoint_gets_its_name_when_all_of_it_is_on_the_disk(tmp_path, monkeypatch):
    flushed, named = set(), []
    fsync, replace, rename = os.fsync, os.replace, os.rename

    def note(descriptor):
        fsync(descriptor)
        flushed.add(os.fstat(descriptor).st_ino)

    def moves(move):
        def check(source, target, **options):
            if Path(target) == tmp_path / "c" / "3":
                named.append({path for path in Path(source).rglob("*") if path.stat().st_ino not in flushed})
                flushed.clear()
            move(source, target, **options)

        return check

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "replace", moves(replace))
    monkeypatch.setattr(os, "rename", moves(rename))
    save_some(tmp_path / "c", 3)
    assert named == [set()]
    assert (tmp_path / "c").stat().st_ino in flushed
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["3"]


def test_what_killed_processes_began_to_write_is_removed(tmp_path):
    save_some(tmp_path / "c", 3)
    for name in ("9.orbax-checkpoint-tmp", "8.orbax-checkpoint-tmp-written"):
        (tmp_path / "c" / name / "arrays").mkdir(parents=True)
    checkpoints = Checkpoints(tmp_path / "c", 3)
    assert checkpoints.steps == [3]
    checkpoints.remove_unfinished()
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["3"]
    checkpoints.close()


def test_where_all_are_damaged_that_is_an_error_and_they_stay(tmp_path):
    save_some(tmp_path / "c", 3)
    for path in (tmp_path / "c" / "3").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(TrainingError, match="none of the checkpoints"):
        restore(tmp_path / "c")
    assert Checkpoints(tmp_path / "c", 3).steps == [3]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (lambda: make_state(optimizer=optax.sgd(0.1)), "left over"),
        (lambda: make_state(averaged=False), "left over .*average"),
        (lambda: make_state(optimizer=optax.adamw(optax.constant_schedule(0.1))), "missing"),
        (
            lambda: make_state(arrays={**ARRAYS, "conv.kernel": jnp.zeros((1, 1, 4, 5))}),
            r"misshapen .*conv.kernel is .*6",
        ),
        (lambda: make_state(arrays={**ARRAYS, "more.kernel": jnp.zeros(3)}), "missing .*more.kernel"),
    ],
)
def test_one_that_does_not_fit_the_configuration_is_an_error_and_stays(template, message, tmp_path):
    save_some(tmp_path / "c", 3, 7)
    with pytest.raises(ConfigError, match=message):
        restore(tmp_path / "c", template())
    assert Checkpoints(tmp_path / "c", 3).steps == [7, 3]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failing_write_is_an_error_that_says_what_is_left(tmp_path):
    """The disk being full looks the same: the writer's thread gets an OSError."""
    save_some(tmp_path / "c", 3)
    checkpoints = Checkpoints(tmp_path / "c", 3)
    try:
        (tmp_path / "c").rename(tmp_path / "gone")
        (tmp_path / "c").write_text("a file in the folder's place")
        with pytest.raises(OutputError, match="cannot be written"):
            checkpoints.save(make_state(7), {})
            checkpoints.wait()
    finally:
        (tmp_path / "c").unlink()
        (tmp_path / "gone").rename(tmp_path / "c")
    assert_same(restore(tmp_path / "c")[0], make_state(3))


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        Checkpoints(tmp_path / "file" / "c", 1)
