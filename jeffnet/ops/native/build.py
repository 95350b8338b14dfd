"""How a C++ compiler builds the libraries: on the machine that runs them, or into wheels for several processors.

The build of wheels runs this file by its path, where nothing of the package can be imported: it needs nothing but the
standard library.
"""

import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

FLAGS = ("-std=c++17", "-O3", "-fPIC", "-pthread", "-w")
THIS_PROCESSOR = ("-march=native",)
SECONDS = 300


class NativeUnavailableError(RuntimeError):
    """The kernels cannot be built or loaded here; says why."""


class Library(NamedTuple):
    """Sources that are compiled together.

    Attributes:
      name: the library's file name begins with it.
      title: what it is, for messages.
      sources: files in this folder.
      headers: files in this folder that they include.
      flags: for the compiler, after `FLAGS`.
      includes_xla: whether they include headers of XLA's foreign function interface.
    """

    name: str
    title: str
    sources: tuple[str, ...]
    headers: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    includes_xla: bool = False


KERNELS = Library(
    "kernels",
    "the C++ kernels",
    ("depthwise.cc", "dense.cc", "norm.cc", "inverted.cc"),
    ("common.h", "dense.h", "row.h"),
    includes_xla=True,
)
# Pillow for x86-64 is compiled without fused operations, which round otherwise; elsewhere with those of the compiler.
_UNFUSED = ("-ffp-contract=off",) if platform.machine().lower() in ("x86_64", "amd64") else ()
PIXELS = Library("pixels", "the C++ code that prepares pictures", ("pixels.cc",), flags=_UNFUSED)
LIBRARIES = (KERNELS, PIXELS)


class Processor(NamedTuple):
    """A kind of processor for which wheels have a library.

    Attributes:
      name: part of the library's file name.
      flags: for the compiler.
      features: what a processor needs to run the library, in Linux's names.
    """

    name: str
    flags: tuple[str, ...]
    features: frozenset[str] = frozenset()


# The C++ library is linked into the kernels, which then need nothing but the C library.
_LINUX = ("-static-libstdc++", "-static-libgcc", "-Wl,--exclude-libs,ALL", "-s")
_V3 = frozenset({"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"})
_V4 = _V3 | {"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"}
# By system and machine, the best first.
_PROCESSORS = {
    ("Linux", "x86_64"): (
        Processor("x86-64-bf16", ("-march=x86-64-v4", "-mavx512bf16", *_LINUX), _V4 | {"avx512_bf16"}),
        Processor("x86-64-v4", ("-march=x86-64-v4", *_LINUX), _V4),
        Processor("x86-64-v3", ("-march=x86-64-v3", *_LINUX), _V3),
    ),
    ("Linux", "aarch64"): (Processor("armv8-a", ("-march=armv8-a", *_LINUX)),),
    ("Darwin", "arm64"): (Processor("apple-m1", ("-mcpu=apple-m1", "-mmacosx-version-min=11.0")),),
}


def processors() -> tuple[Processor, ...]:
    """The kinds of processors for which wheels of this system have a library, the best first."""
    return _PROCESSORS.get((platform.system(), platform.machine()), ())


def compiler() -> str | None:
    """The C++ compiler: `CXX`, or the first of c++, g++ and clang++ found."""
    named = os.environ.get("CXX")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


def require_compiler() -> str:
    """The C++ compiler.

    Raises:
      NativeUnavailableError: there is none.
    """
    program = compiler()
    if program is None:
        tried = f"CXX={named}" if (named := os.environ.get("CXX")) else "c++, g++, clang++"
        raise NativeUnavailableError(
            f"no C++ compiler was found ({tried}): install one, such as the package g++, or let the environment "
            "variable CXX name one"
        )
    return program


def compile_library(library: Library, folder: Path, include: str | None, flags: Sequence[str], path: Path) -> None:
    """Compile a library, with objects beside it.

    Args:
      library: which one.
      folder: of the sources.
      include: folder of the headers of XLA's foreign function interface; None if they are not needed.
      flags: for the compiler, for a processor.
      path: of the new file.

    Raises:
      NativeUnavailableError: no compiler, or it fails.
    """
    command = [require_compiler(), *FLAGS, *library.flags, *flags]
    includes = [f"-I{include}"] if include else []
    sources = [folder / source for source in library.sources]
    objects = [path.with_name(f"{path.stem}-{source.stem}.o") for source in sources]
    commands = [
        [*command, *includes, "-c", str(source), "-o", str(made)] for source, made in zip(sources, objects, strict=True)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(run, commands))
    run([*command, "-shared", *map(str, objects), "-o", str(path)])
    path.chmod(0o755)  # whatever the umask: a library that others may write is not loaded


def run(command: list[str]) -> str:
    """The output of a command, in any encoding.

    Raises:
      NativeUnavailableError: it fails.
    """
    how = {"capture_output": True, "encoding": "utf-8", "errors": "backslashreplace"}
    try:
        return subprocess.run(command, check=True, timeout=SECONDS, **how).stdout
    except subprocess.CalledProcessError as error:
        first = error.stderr.strip().splitlines()[:3] or [f"exit status {error.returncode}"]
        raise NativeUnavailableError(f"{command[0]} failed: {' / '.join(first)}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeUnavailableError(f"{command[0]} failed: {error}") from error


def library_file(name: str, library: Path) -> str:
    """The file name of a library, with a hash of its content, by which a damaged one is noticed."""
    return f"{name}-{short_hash(library.read_bytes())}.so"


def short_hash(content: bytes) -> str:
    """The first 16 digits of its SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]
