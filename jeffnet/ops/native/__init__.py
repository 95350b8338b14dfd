"""C++ libraries for CPUs: compiled into the installed package, or once on the machine that runs them.

XLA calls the kernels through its foreign function interface; `jeffnet.data.resize` uses the other library, without
importing JAX. An installed package may have libraries for several kinds of processors, and the best for this one is
used. Otherwise the sources are compiled. Where there is no compiler, or the build fails, `load` says so and JAX's own
operations, or Pillow's, do the work.

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
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from jeffnet.errors import OutputError
from jeffnet.ops.native.build import (
    FLAGS,
    KERNELS,
    SECONDS,
    THIS_PROCESSOR,
    Library,
    NativeUnavailableError,
    compile_library,
    compiler,
    library_file,
    processors,
    require_compiler,
    run,
    short_hash,
)
from jeffnet.system.code_cache import code_folders, make_code_folder, untrusted
from jeffnet.system.processor import features, fingerprint

__all__ = ["NativeUnavailableError", "available", "compiler", "failure", "library_name", "load", "open_library"]

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
    return open_library(KERNELS, _register)


def open_library(library: Library, prepare: Callable[[ctypes.CDLL], object]) -> ctypes.CDLL:
    """A library of the installed package, or compiled on this machine, now if need be.

    Args:
      library: which one.
      prepare: called with the loaded library; an AttributeError or RuntimeError says that it cannot be used.

    Returns:
      The prepared library.

    Raises:
      NativeUnavailableError: as `load`.
    """
    fault = None
    try:
        if path := _prebuilt(library):
            return _prepared(path, prepare)
    except NativeUnavailableError as error:
        fault = str(error)
    try:
        opened = _prepared(_path(library), prepare)
    except NativeUnavailableError as error:
        raise NativeUnavailableError("; ".join(filter(None, [fault, str(error)]))) from error
    if fault:
        _logger.warning("%s; what was compiled on this machine is used", fault)
    return opened


def _prepared(path: Path, prepare: Callable[[ctypes.CDLL], object]) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
        prepare(library)
    except (OSError, AttributeError, RuntimeError) as error:
        raise NativeUnavailableError(f"{path} cannot be loaded: {str(error).splitlines()[0]}") from error
    return library


def _register(library: ctypes.CDLL) -> None:
    """Register the kernels with JAX, all or none.

    XLA refuses a library for a newer interface than its own, or one so old that it is no longer supported: kernels tell
    the version of their headers when they are registered. One library has one version, so the first kernel decides.
    """
    from jeffnet._jax_compat import register_kernel

    for target in _TARGETS:
        getattr(library, target)
    for target in _TARGETS:
        register_kernel(library, target)


def library_name() -> str:
    """The name of the kernels in use; differs between sources, machines and compilers.

    Raises:
      NativeUnavailableError: as `load`.
    """
    path = Path(load()._name)
    return path.stem if path.parent == _PREBUILT else path.name.rpartition("-")[0]


def _prebuilt(library: Library = KERNELS) -> Path | None:
    """The installed package's file of a library for this processor; None if it has none.

    Raises:
      NativeUnavailableError: it is damaged.
    """
    for processor in processors():
        if processor.features <= features():
            name = f"{library.name}-{processor.name}"
            for path in _PREBUILT.glob(f"{name}-*.so"):
                if path.name == library_file(name, path):
                    return path
                raise NativeUnavailableError(f"'{path}' is damaged: install jeffnet again")
    return None


def _path(library: Library = KERNELS) -> Path:
    """The library that was compiled for this machine, or is compiled now."""
    name, folders = _name(library), _folders()
    return _kept(folders, name) or _built(library, folders, name)


def _name(library: Library) -> str:
    """The file name of a library for this machine, up to the hash of its content."""
    program = require_compiler()
    texts = [(_FOLDER / name).read_bytes() for name in (*library.sources, *library.headers)]
    facts = [
        program,
        run([program, "--version"]),
        *FLAGS,
        *library.flags,
        *THIS_PROCESSOR,
        *([version("jaxlib")] if library.includes_xla else []),
        *platform.libc_ver(),
        fingerprint(),
    ]
    content = b"\0".join([*texts, *map(os.fsencode, facts)])
    return f"{library.name}-{short_hash(content)}"


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


def _built(library: Library, folders: Sequence[Path], name: str) -> Path:
    """Build a library in the first writable folder, or in a temporary one for this process alone."""
    _logger.warning("compiling %s, once for this machine: that may take a minute", library.title)
    place = _build_folder(folders)
    try:
        compile_library(library, _FOLDER, _include(library), THIS_PROCESSOR, place / "partial.so")
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


def _include(library: Library) -> str | None:
    if not library.includes_xla:
        return None
    from jeffnet._jax_compat import include_folder

    return include_folder()


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
