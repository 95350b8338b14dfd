"""Programs that are kept on disk: the same answers without tracing, and right ones whatever is wrong with a file."""

import hashlib
import os

import jax
import numpy as np
import pytest

import jeffnet.inference.fused as fused
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.inference import kept_programs
from jeffnet.inference.fused import fuse
from jeffnet.inference.fused_network import FusedNetwork
from jeffnet.weights.start import start_model

PIXELS = Preprocessing(32, 1.0, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
BATCH = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def start(tiny_model):
    return start_model("tiny_flat", num_classes=5)


@pytest.fixture
def folder(tmp_path):
    option = "jax_compilation_cache_dir"
    before = getattr(jax.config, option)
    jax.config.update(option, str(tmp_path / "kept"))
    yield tmp_path / "kept"
    jax.config.update(option, before)


@pytest.fixture
def traces(monkeypatch):
    """Counts how often a network is traced."""
    counted, apply = [], FusedNetwork.apply
    monkeypatch.setattr(FusedNetwork, "apply", lambda *arguments: counted.append(1) or apply(*arguments))
    return counted


def logits_of(start, batch=BATCH, **options):
    return np.asarray(fuse(start, batch_size=2, image_size=32, **{"preprocessing": PIXELS} | options)(batch))


def test_the_next_one_is_neither_traced_nor_compiled(start, folder, traces, tmp_path):
    """Also not for other weights; and what was kept can be saved."""
    first = logits_of(start)
    assert len(traces) == 1 and len(list(folder.glob("*.program"))) == 1
    np.testing.assert_array_equal(logits_of(start), first)
    other = start_model("tiny_flat", num_classes=5, rng=1)
    assert np.abs(logits_of(other) - first).max() > 0 and len(traces) == 1
    jax.config.update("jax_compilation_cache_dir", None)
    assert (logits_of(other) == logits_of(other)).all() and len(traces) == 3
    jax.config.update("jax_compilation_cache_dir", str(folder))
    fuse(start, batch_size=2, image_size=32, preprocessing=PIXELS).save(tmp_path / "a.fused")
    np.testing.assert_array_equal(fused.load_fused(tmp_path / "a.fused")(BATCH), first)
    assert len(traces) == 3


def test_what_a_program_depends_on_makes_another(start, folder, traces, monkeypatch):
    def traced(**options) -> bool:
        before = len(traces)
        logits_of(start, **options)
        return len(traces) > before

    assert traced() and not traced()
    assert traced(preprocessing=PIXELS.changed(mean=(0.5, 0.4, 0.2)))
    assert traced(preprocessing=None, batch=np.zeros((2, 32, 32, 3), np.float32))
    assert traced(piece=1) and traced(compiler_options={"xla_cpu_prefer_vector_width": 128})
    with jax.default_matmul_precision("highest"):
        assert traced()
    for name, value in (
        ("conditions", lambda: "another JAX, processor or kernels"),
        ("lowering", lambda: "xla"),
        ("lowering", lambda: "shifted"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(fused, name, value)
            assert traced(), name
    for name, value in {
        "processors": lambda: (0, 1, 2, 3, 4),
        "cache_bytes": lambda: 1,
        "_CODE": ("arch/*.py",),
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(kept_programs, name, value)
            assert traced(), name
    with monkeypatch.context() as patch:
        patch.setenv("XLA_FLAGS", "--another")
        assert traced()
    assert not traced()


def signed(key: str, program: bytes) -> bytes:
    return hashlib.sha256(key.encode() + program).digest() + program


BROKEN = {
    "empty": lambda key, content: b"",
    "cut": lambda key, content: content[:-1],
    "flipped": lambda key, content: content[:40] + bytes([content[40] ^ 1]) + content[41:],
    "of another name": lambda key, content: signed("0" * 64, content[32:]),
    "no program": lambda key, content: signed(key, b"nothing that XLA or pickle can read"),
    "no program, in a pickle": lambda key, content: signed(key, b"\x80\x04N."),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_file_is_compiled_again(fault, start, folder, traces):
    expected = logits_of(start)
    (path,) = folder.glob("*.program")
    whole = path.read_bytes()
    path.write_bytes(BROKEN[fault](path.stem, whole))
    np.testing.assert_array_equal(logits_of(start), expected)
    assert len(traces) == 2 and signed(path.stem, path.read_bytes()[32:]) == path.read_bytes()
    np.testing.assert_array_equal(logits_of(start), expected)
    assert len(traces) == 2


def test_a_folder_that_others_can_write_to_is_not_used(start, folder, traces):
    logits_of(start)
    (path,) = folder.glob("*.program")
    folder.chmod(0o777)
    logits_of(start)
    assert len(traces) == 2
    path.unlink()
    logits_of(start)
    assert len(traces) == 3 and not list(folder.glob("*.program"))
    folder.chmod(0o700)


def test_where_nothing_can_be_written_it_is_compiled(start, folder, traces, monkeypatch):
    def full(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr(kept_programs, "write_file", full)
    np.testing.assert_array_equal(logits_of(start), logits_of(start))
    assert len(traces) == 2
    jax.config.update("jax_compilation_cache_dir", str(folder / "file" / "below"))
    (folder / "file").write_text("no folder")
    logits_of(start)
    assert len(traces) == 3


def test_the_least_recently_used_go_first(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_programs, "_MOST", 2)
    kept_programs.keep_program(tmp_path, "a", b"1")
    kept_programs.keep_program(tmp_path, "b", b"2")
    for age, name in enumerate("ba"):
        os.utime(tmp_path / f"{name}.program", (1e9 - age, 1e9 - age))
    assert kept_programs.kept_program(tmp_path, "a") == b"1"
    kept_programs.keep_program(tmp_path, "c", b"3")
    assert [kept_programs.kept_program(tmp_path, name) for name in "abc"] == [b"1", None, b"3"]
