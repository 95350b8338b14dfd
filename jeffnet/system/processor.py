"""The processor: what compiled code depends on, the size of its caches, and which cores this process may use."""

import functools
import hashlib
import os
import platform
from pathlib import Path

_UNKNOWN_CACHE = 8 << 20


@functools.cache
def fingerprint() -> str:
    """A text that differs between processors for which different code would be compiled."""
    facts = {line for line in _cpuinfo() if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return "\n".join([platform.system(), platform.machine(), *sorted(facts)])


@functools.cache
def short_fingerprint() -> str:
    """`fingerprint` in one line: the kind of machine, and a hash."""
    return f"{platform.machine()} {hashlib.sha256(fingerprint().encode()).hexdigest()[:16]}"


@functools.cache
def vector_bits() -> int:
    """Width of the widest vectors that XLA's option `xla_cpu_prefer_vector_width` should name."""
    return 512 if "avx512f" in fingerprint().split() else 256


@functools.cache
def cache_bytes() -> int:
    """Size of the largest cache; 8 MiB where the system does not say."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = []
    for entry in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        try:
            text = entry.read_text().strip()
            sizes.append(int(text[:-1]) * units[text[-1]])
        except (OSError, ValueError, LookupError):
            continue
    return max(sizes, default=_UNKNOWN_CACHE)


def processors() -> tuple[int, ...]:
    """Numbers of the processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def remat_options() -> dict[str, str]:
    """Options of XLA with which what `jax.checkpoint` forgets is forgotten, for `jax.jit(..., compiler_options=...)`.

    XLA's compiler for CPUs drops the barriers that JAX puts before what is to be computed again, and then computes it
    early and keeps it after all. Nothing is needed on other platforms.
    """
    import jax

    return {"xla_disable_hlo_passes": "cse_barrier_expander"} if jax.default_backend() == "cpu" else {}


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return [f"model name {platform.processor()}"]
