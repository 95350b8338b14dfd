"""C++ kernels for CPUs, compiled once on the machine that runs them.

XLA calls them through its foreign function interface. Where there is no compiler, or the build fails, `load` says so
and JAX's own operations do the work.

A compiled library is kept under a name that holds a hash of all that it depends on, and one of its content: a damaged
one is built anew. It is loaded only where nobody but this user and root can have written it.
"""

import atexit
import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jaxlib.version

from jeffnet._jax_compat import include_folder, register_kernel
from jeffnet.errors import OutputError
from jeffnet.system.code_cache import code_folders, make_code_folder, untrusted
from jeffnet.system.processor import fingerprint

_SOURCES = ("depthwise.cc", "dense.cc", "norm.cc", "inverted.cc")
_HEADERS = ("common.h", "dense.h", "row.h")
_TARGETS = (
    "jeffnet_depthwise",
    "jeffnet_depthwise_act",
    "jeffnet_depthwise_input_gradient",
    "jeffnet_depthwise_kernel_gradient",
    "jeffnet_dense",
    "jeffnet_dense_kernel_gradient",
    "jeffnet_inverted",
    "jeffnet_outer_product",
    "jeffnet_statistics",
    "jeffnet_normalize",
    "jeffnet_normalize_sums",
    "jeffnet_normalize_gradient",
)
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-pthread", "-w")
_SECONDS = 300
_BUILD = "build-"

_logger = logging.getLogger("jeffnet")
_is_reported = False


class NativeUnavailableError(RuntimeError):
    """The kernels cannot be built or loaded here; says why."""


@functools.cache
def load() -> ctypes.CDLL:
    """The compiled kernels, registered with JAX; builds them if needed.

    Raises:
      NativeUnavailableError: no compiler, or it fails.
    """
    reason = failure()
    if reason is not None:
        raise NativeUnavailableError(reason)
    return _library()


def available() -> bool:
    """Whether `load` succeeds. Logs the reason once if it does not, unless `failure` returned it."""
    global _is_reported
    reason = _failure()
    if reason is not None and not _is_reported:
        _is_reported = True
        _logger.warning(
            "convolutions and training run without the C++ kernels, more slowly: %s; JEFFNET_CONV=shifted chooses that "
            "without this warning",
            reason,
        )
    return reason is None


def failure() -> str | None:
    """Why `load` fails, in one line, for the caller to report; None if it succeeds."""
    global _is_reported
    _is_reported = True
    return _failure()


@functools.cache
def _failure() -> str | None:
    try:
        _library()
    except (OSError, RuntimeError) as error:  # a full disk is a reason too
        return str(error)
    return None


@functools.cache
def _library() -> ctypes.CDLL:
    path = _path()
    try:
        library = ctypes.CDLL(str(path))
        for target in _TARGETS:
            register_kernel(library, target)
    except (OSError, AttributeError) as error:
        raise NativeUnavailableError(f"{path} cannot be loaded: {error}") from error
    return library


def library_name() -> str:
    """The name of the compiled kernels; differs between sources, machines and compilers.

    Raises:
      NativeUnavailableError: as `load`.
    """
    return Path(load()._name).name.rpartition("-")[0]


def compiler() -> str | None:
    """The C++ compiler: `CXX`, or the first of c++, g++ and clang++ found."""
    named = os.environ.get("CXX")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


def _path() -> Path:
    """The compiled library for this machine."""
    name, folders = _name(), _folders()
    return _kept(folders, name) or _built(folders, name)


def _name() -> str:
    """The file name of the library for this machine, up to the hash of its content."""
    folder = Path(__file__).parent
    texts = [(folder / name).read_bytes() for name in (*_SOURCES, *_HEADERS)]
    program = _compiler()
    facts = [
        program,
        _run([program, "--version"]),
        *_FLAGS,
        jaxlib.version.__version__,
        *platform.libc_ver(),
        fingerprint(),
    ]
    content = b"\0".join([*texts, *map(os.fsencode, facts)])
    return f"kernels-{_hash(content)}"


def _compiler() -> str:
    program = compiler()
    if program is None:
        tried = f"CXX={named}" if (named := os.environ.get("CXX")) else "c++, g++, clang++"
        raise NativeUnavailableError(f"no C++ compiler was found ({tried}); the environment variable CXX names one")
    return program


def _folders() -> list[Path]:
    """Where a library may be kept, the first choice first."""
    try:
        folders = code_folders("native")
    except OutputError:  # a user without a home
        folders = []
    if hasattr(os, "geteuid"):
        folders.append(Path(tempfile.gettempdir()).resolve() / f"jeffnet-native-{os.geteuid()}")
    return folders


def _kept(folders: Sequence[Path], name: str) -> Path | None:
    """An intact library of this name that nobody else can have written; removes damaged ones."""
    for folder in folders:
        for path in sorted(folder.glob(f"{name}-*.so")):
            if untrusted(path) is not None or not path.is_file():
                continue
            with contextlib.suppress(OSError):
                if path.name == f"{name}-{_hash(path.read_bytes())}.so":
                    return path
                path.unlink()
    return None


def _built(folders: Sequence[Path], name: str) -> Path:
    """Build a library in the first writable folder, or in a temporary one for this process alone."""
    _logger.warning("compiling the C++ kernels, once for this machine: that may take a minute")
    place = _build_folder(folders)
    try:
        _compile(place / "partial.so")
        file = f"{name}-{_hash((place / 'partial.so').read_bytes())}.so"
        if place.parent in folders:
            with contextlib.suppress(OSError):  # such as a folder of this name
                (place / "partial.so").replace(place.parent / file)
                shutil.rmtree(place, ignore_errors=True)
                return place.parent / file
        atexit.register(shutil.rmtree, place, ignore_errors=True)
        return (place / "partial.so").replace(place / file)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise


def _build_folder(folders: Sequence[Path]) -> Path:
    """A new folder for this process, in the first of `folders` that can be written to, or among temporary files."""
    for folder in filter(make_code_folder, folders):
        _remove_abandoned(folder)
        with contextlib.suppress(OSError):  # a full disk
            return Path(tempfile.mkdtemp(prefix=_BUILD, dir=folder))
    place = Path(tempfile.mkdtemp(prefix="jeffnet-"))
    if reason := untrusted(place):
        place.rmdir()
        raise NativeUnavailableError(f"{reason}: let JEFFNET_CACHE or TMPDIR name a folder that is yours alone")
    return place


def _remove_abandoned(folder: Path) -> None:
    """Remove build folders of killed processes."""
    for place in folder.glob(f"{_BUILD}*"):
        with contextlib.suppress(OSError):
            if time.time() - place.stat().st_mtime > 2 * _SECONDS:
                shutil.rmtree(place, ignore_errors=True)


def _compile(library: Path) -> None:
    program, folder = _compiler(), Path(__file__).parent
    sources = [folder / source for source in _SOURCES]
    objects = [library.with_name(f"{source.stem}.o") for source in sources]
    commands = [
        [program, *_FLAGS, f"-I{include_folder()}", "-c", str(source), "-o", str(made)]
        for source, made in zip(sources, objects, strict=True)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(_run, commands))
    _run([program, *_FLAGS, "-shared", *map(str, objects), "-o", str(library)])
    library.chmod(0o755)  # whatever the umask: a library that others may write is not loaded


def _run(command: list[str]) -> str:
    """The output of a command, in any encoding."""
    how = {"capture_output": True, "encoding": "utf-8", "errors": "backslashreplace"}
    try:
        return subprocess.run(command, check=True, timeout=_SECONDS, **how).stdout
    except subprocess.CalledProcessError as error:
        first = error.stderr.strip().splitlines()[:3] or [f"exit status {error.returncode}"]
        raise NativeUnavailableError(f"{command[0]} failed: {' / '.join(first)}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeUnavailableError(f"{command[0]} failed: {error}") from error


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
