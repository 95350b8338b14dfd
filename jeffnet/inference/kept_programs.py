"""Programs of fused models, kept on disk, so that the next process neither traces nor compiles them.

They are kept where JAX keeps compiled programs, the folder of its option `jax_compilation_cache_dir`, which jeffnet's
commands set: without one nothing is kept, nor where others could write to it, since programs are executed. JAX's own
cache cannot replace this one: it finds a program by what tracing yields, which takes as long as all the rest.
"""

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterable
from pathlib import Path

import jax

import jeffnet
from jeffnet.errors import OutputError
from jeffnet.system.code_cache import make_code_folder
from jeffnet.system.files import write_file
from jeffnet.system.processor import cache_bytes, processors

_ENDING = ".program"
_MOST = 500  # files, of 0.1 to 1 MB; the least recently used are removed first
# What a program is traced by, besides the packages that have versions.
_CODE = ("_jax_compat.py", "arch/*.py", "inference/*.py", "ops/*.py", "system/processor.py")
_log = logging.getLogger("jeffnet")


def program_key(*facts: object) -> str:
    """A name for a program: a hash of the facts, and of all else that it depends on.

    That is jeffnet's code, the options of JAX and XLA, and how many processors and how much cache there are.

    Args:
      facts: whose `repr` tells them apart.
    """
    # The attribute is the value within a context such as `jax.default_matmul_precision`, and some options have none.
    values = sorted(jax.config.values.items())
    options = {name: getattr(jax.config, name, value) for name, value in values if "cache" not in name}
    machine = processors(), cache_bytes(), os.environ.get("XLA_FLAGS")
    digest = hashlib.sha256(repr((facts, machine, options)).encode())
    folder = Path(jeffnet.__file__).parent
    for path in sorted(path for pattern in _CODE for path in folder.glob(pattern)):
        content = path.read_bytes()
        digest.update(f"\0{path.name} {len(content)}\0".encode() + content)
    return digest.hexdigest()


def programs_folder() -> Path | None:
    """Where programs are kept; None for nowhere."""
    name = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if not name or "://" in name:
        return None
    folder = Path(name).resolve()
    return folder if make_code_folder(folder) else None


def kept_program(folder: Path, key: str) -> bytes | None:
    """A program that a folder has under a key; None if there is none, or a damaged one, which is removed."""
    path = folder / f"{key}{_ENDING}"
    try:
        checksum, program = (content := path.read_bytes())[:32], content[32:]
        if checksum != _checksum(key, program):
            path.unlink()
            return None
        os.utime(path)
        return program
    except OSError:  # mostly there is none
        return None


def keep_program(folder: Path, key: str, program: bytes) -> None:
    """Keep a program for `kept_program`; where that is not possible, such as on a full disk, it is left."""
    try:
        write_file(folder / f"{key}{_ENDING}", _checksum(key, program) + program)
        _remove_oldest(folder.glob(f"*{_ENDING}"))
    except (OSError, OutputError) as error:
        _log.debug("a program is not kept: %s", error)


def _checksum(key: str, program: bytes) -> bytes:
    """Of a file: a program that was cut, or that has another's name, is not run."""
    return hashlib.sha256(key.encode() + program).digest()


def _remove_oldest(paths: Iterable[Path]) -> None:
    ages = sorted((path.stat().st_mtime, path) for path in paths)
    for _, path in ages[: max(0, len(ages) - _MOST)]:
        with contextlib.suppress(OSError):
            path.unlink()
