"""TensorFlow, where it is needed: quiet, and without a GPU, whose memory it would take whole."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any


def tensorflow() -> Any:
    """The module.

    Raises:
      ImportError: it is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "tensorflow" in sys.modules:
        import tensorflow as tf
    else:
        with _silence():
            import tensorflow as tf
    _hide_gpus()
    return tf


@cache
def _hide_gpus() -> None:
    import tensorflow as tf

    # What is in use already stays visible.
    with suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")


@contextmanager
def _silence() -> Iterator[None]:
    """Within it nothing reaches standard error.

    As it is loaded TensorFlow announces oneDNN before anybody can tell it not to. Without oneDNN it would be silent,
    but its pipelines 1.6 times as slow.
    """
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
