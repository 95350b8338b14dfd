"""C++ kernels for CPUs: compiled into the installed package, or once on the machine that runs them.

XLA calls them through its foreign function interface. An installed package may have libraries for several kinds of
processors, and the best for this one is used. Otherwise the sources are compiled. Where there is no compiler, or the
build fails, `load` says so and JAX's own operations do the work.

A library's name has a hash of its content, by which a damaged one is noticed. One that was compiled here also has a
hash of all that it depends on, and is loaded only where nobody but this user and root can have written it.
"""

import atexit
import contextlib
import ctypes
import functools
import logging
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jaxlib.version

from jeffnet._jax_compat import include_folder, register_kernel
from jeffnet.errors import OutputError
from jeffnet.ops.native.build import (
    FLAGS,
    HEADERS,
    SECONDS,
    SOURCES,
    THIS_PROCESSOR,
    NativeUnavailableError,
    compile_kernels,
    compiler,
    library_file,
    processors,
    require_compiler,
    run,
    short_hash,
)
from jeffnet.system.code_cache import code_folders, make_code_folder, untrusted
from jeffnet.system.processor import features, fingerprint

__all__ = ["NativeUnavailableError", "available", "compiler", "failure", "library_name", "load"]

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
_FOLDER = Path(__file__).parent
_PREBUILT = _FOLDER / "prebuilt"
_BUILD = "build-"

_logger = logging.getLogger("jeffnet")
_is_reported = False


@functools.cache
def load() -> ctypes.CDLL:
    """The compiled kernels, registered with JAX; builds them if needed.

    Raises:
      NativeUnavailableError: there are none for this processor, and no compiler, or it fails.
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
    fault = None
    try:
        if path := _prebuilt():
            return _registered(path)
    except NativeUnavailableError as error:
        fault = str(error)
    try:
        library = _registered(_path())
    except NativeUnavailableError as error:
        raise NativeUnavailableError("; ".join(filter(None, [fault, str(error)]))) from error
    if fault:
        _logger.warning("%s; kernels that were compiled on this machine are used", fault)
    return library


def _registered(path: Path) -> ctypes.CDLL:
    """Load a library and register its kernels, all or none.

    XLA refuses a library for a newer interface than its own, or one so old that it is no longer supported: kernels tell
    the version of their headers when they are registered. One library has one version, so the first kernel decides.
    """
    try:
        library = ctypes.CDLL(str(path))
        for target in _TARGETS:
            getattr(library, target)
        for target in _TARGETS:
            register_kernel(library, target)
    except (OSError, AttributeError, RuntimeError) as error:
        raise NativeUnavailableError(f"{path} cannot be loaded: {str(error).splitlines()[0]}") from error
    return library


def library_name() -> str:
    """The name of the kernels in use; differs between sources, machines and compilers.

    Raises:
      NativeUnavailableError: as `load`.
    """
    path = Path(load()._name)
    return path.stem if path.parent == _PREBUILT else path.name.rpartition("-")[0]


def _prebuilt() -> Path | None:
    """The installed package's library for this processor; None if it has none.

    Raises:
      NativeUnavailableError: it is damaged.
    """
    for processor in processors():
        if processor.features <= features():
            for path in _PREBUILT.glob(f"kernels-{processor.name}-*.so"):
                if path.name == library_file(f"kernels-{processor.name}", path):
                    return path
                raise NativeUnavailableError(f"'{path}' is damaged: install jeffnet again")
    return None


def _path() -> Path:
    """The library that was compiled for this machine, or is compiled now."""
    name, folders = _name(), _folders()
    return _kept(folders, name) or _built(folders, name)


def _name() -> str:
    """The file name of the library for this machine, up to the hash of its content."""
    program = require_compiler()
    texts = [(_FOLDER / name).read_bytes() for name in (*SOURCES, *HEADERS)]
    facts = [
        program,
        run([program, "--version"]),
        *FLAGS,
        *THIS_PROCESSOR,
        jaxlib.version.__version__,
        *platform.libc_ver(),
        fingerprint(),
    ]
    content = b"\0".join([*texts, *map(os.fsencode, facts)])
    return f"kernels-{short_hash(content)}"


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
                if path.name == library_file(name, path):
                    return path
                path.unlink()
    return None


def _built(folders: Sequence[Path], name: str) -> Path:
    """Build a library in the first writable folder, or in a temporary one for this process alone."""
    _logger.warning("compiling the C++ kernels, once for this machine: that may take a minute")
    place = _build_folder(folders)
    try:
        compile_kernels(_FOLDER, include_folder(), THIS_PROCESSOR, place / "partial.so")
        file = library_file(name, place / "partial.so")
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
            if time.time() - place.stat().st_mtime > 2 * SECONDS:
                shutil.rmtree(place, ignore_errors=True)
