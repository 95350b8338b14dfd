"""Kernels in C++ for CPUs, compiled on the machine that runs them, once, by the C++ compiler found there.

XLA calls them through its foreign function interface. Where there is no compiler, or the build fails, `load` says so
and JAX's own operations do the work.
"""

import atexit
import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jaxlib.version

from jeffnet.files import cache_folder
from jeffnet.ops.processor import fingerprint

_SOURCES = ("depthwise.cc", "dense.cc", "norm.cc", "inverted.cc")
_HEADERS = ("common.h", "dense.h", "row.h")
_TARGETS = (
    "jeffnet_depthwise",
    "jeffnet_depthwise_act",
    "jeffnet_depthwise_input_gradient",
    "jeffnet_depthwise_kernel_gradient",
    "jeffnet_dense",
    "jeffnet_inverted",
    "jeffnet_outer_product",
    "jeffnet_statistics",
    "jeffnet_normalize",
    "jeffnet_normalize_sums",
    "jeffnet_normalize_gradient",
)
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-pthread", "-w")
_SECONDS = 300

_logger = logging.getLogger("jeffnet")


class NativeUnavailableError(RuntimeError):
    """The kernels cannot be built or loaded here; says why."""


@functools.cache
def load() -> ctypes.CDLL:
    """The compiled kernels, registered with JAX; builds them where that was not done yet.

    Raises:
      NativeUnavailableError: no compiler, or it fails.
    """
    reason = failure()
    if reason is not None:
        raise NativeUnavailableError(reason)
    return _library()


def available() -> bool:
    """Whether `load` succeeds. What stands in the way is logged once."""
    return failure() is None


@functools.cache
def failure() -> str | None:
    """Why `load` cannot succeed, in one line; None where it does."""
    try:
        _library()
    except (OSError, RuntimeError) as error:  # a full disk and a user without a home are reasons too
        _logger.info("convolutions run without the C++ kernels: %s", error)
        return str(error)
    return None


@functools.cache
def _library() -> ctypes.CDLL:
    path = _built()
    try:
        library = ctypes.CDLL(str(path))
        for target in _TARGETS:
            jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(library, target)), platform="cpu")
    except (OSError, AttributeError) as error:
        raise NativeUnavailableError(f"{path} cannot be loaded: {error}") from error
    return library


def library_name() -> str:
    """The file name of the compiled kernels: another one for other kernels, or for another machine.

    Raises:
      NativeUnavailableError: as `load`.
    """
    return Path(load()._name).name


def compiler() -> str | None:
    """The C++ compiler: `CXX`, or the first of c++, g++ and clang++ found."""
    named = os.environ.get("CXX")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


def _built() -> Path:
    """The shared library for this machine; its name holds a hash of all that it depends on."""
    program = compiler()
    if program is None:
        tried = f"CXX={named}" if (named := os.environ.get("CXX")) else "c++, g++, clang++"
        raise NativeUnavailableError(f"no C++ compiler was found ({tried}); the environment variable CXX names one")
    folder = Path(__file__).parent
    sources = [folder / name for name in _SOURCES]
    version = _run([program, "--version"])
    texts = [(folder / name).read_text() for name in (*_SOURCES, *_HEADERS)]
    facts = [*texts, program, version, *_FLAGS, jaxlib.version.__version__, fingerprint()]
    name = f"kernels-{hashlib.sha256(chr(0).join(facts).encode()).hexdigest()[:16]}.so"
    path = cache_folder() / "native" / name
    if path.exists():
        return path
    _logger.info("compiling the C++ kernels, once for this machine: %s", path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        place = Path(tempfile.mkdtemp(prefix="build-", dir=path.parent))
    except OSError:  # a read-only home: this process builds for itself
        place = Path(tempfile.mkdtemp(prefix="jeffnet-"))
        atexit.register(shutil.rmtree, place, ignore_errors=True)
        path = place / name
    partial = place / "partial.so"
    try:
        _compile(program, sources, partial)
        partial.replace(path)
    finally:
        if place != path.parent:
            shutil.rmtree(place, ignore_errors=True)
    return path


def _compile(program: str, sources: list[Path], library: Path) -> None:
    objects = [library.with_name(f"{source.stem}.o") for source in sources]
    commands = [
        [program, *_FLAGS, f"-I{jax.ffi.include_dir()}", "-c", str(source), "-o", str(made)]
        for source, made in zip(sources, objects, strict=True)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(_run, commands))
    _run([program, *_FLAGS, "-shared", *map(str, objects), "-o", str(library)])
    for each in objects:
        each.unlink()


def _run(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=_SECONDS).stdout
    except subprocess.CalledProcessError as error:
        first = error.stderr.strip().splitlines()[:3] or [f"exit status {error.returncode}"]
        raise NativeUnavailableError(f"{command[0]} failed: {' / '.join(first)}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeUnavailableError(f"{command[0]} failed: {error}") from error
