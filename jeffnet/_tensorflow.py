"""TensorFlow, where it is needed: quiet, on the CPU, and otherwise as the user's program has it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

_LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"


def tensorflow() -> Any:
    """The module.

    Raises:
      ImportError: it is not installed.
    """
    if "tensorflow" not in sys.modules:
        with silence():
            import tensorflow  # noqa: F401
    import tensorflow as tf

    return tf


class _WhenUsed:
    def __getattr__(self, name: str) -> Any:
        return getattr(tensorflow(), name)


# The module, loaded by the first use of one of its names.
tf: Any = _WhenUsed()


def on_cpu() -> Any:
    """A context within which TensorFlow computes on the CPU: on a GPU it would take all of its memory from JAX."""
    return tf.device("CPU:0")


def hide_gpus() -> None:
    """Keep TensorFlow from GPUs for as long as this process runs: for a process that is ours alone."""
    # What is in use already stays visible.
    with suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")


@contextmanager
def silence() -> Iterator[None]:
    """Within it nothing reaches standard error, and TensorFlow reads that it is to log errors only: to load it in.

    It, and what has parts of it, announces oneDNN, without which its pipelines would be 1.6 times as slow.
    """
    before = os.environ.get(_LOG_LEVEL)
    os.environ.setdefault(_LOG_LEVEL, "3")
    try:
        with _no_standard_error():
            yield
    finally:
        if before is None:
            del os.environ[_LOG_LEVEL]


@contextmanager
def _no_standard_error() -> Iterator[None]:
    try:
        kept = os.dup(2)
    except OSError:  # closed, or not there at all
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
