"""What all tests share: JAX on the CPU, its compilation cache, 64-bit mode, and the reference implementation."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Settle JAX's settings in the environment, before a test module imports it, so that subprocesses inherit them."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.rootpath / ".pytest_cache" / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    # Only a bounded cache takes a lock, without which two processes read each other's half-written entries.
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(2**30))


@pytest.fixture
def x64() -> Iterator[None]:
    """64-bit JAX for one test."""
    import jax

    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def timm() -> ModuleType:
    """The reference implementation; what asks for it is skipped where torch or timm is not installed."""
    for name in ("torch", "torchvision", "timm"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        # Its compiled operators do not load beside some builds of torch. Only detection models need them, but the
        # module that registers their shapes fails on import, and torchvision with it: stand in for that module.
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        name = "torchvision._meta_registrations"
        sys.modules[name] = ModuleType(name)
    return importlib.import_module("timm")
