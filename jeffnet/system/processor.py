"""The processor: what compiled code depends on, the size of its caches, and which cores this process may use."""

import functools
import hashlib
import os
import platform
import re
from pathlib import Path

_UNKNOWN_CACHE = 8 << 20
_X86 = ("x86_64", "amd64")
_VNNI = ("avx_vnni", "avx512_vnni")


@functools.cache
def fingerprint() -> str:
    """A text that differs between processors that need different compiled code."""
    facts = {line for line in _cpuinfo() if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return "\n".join([platform.system(), platform.machine(), *sorted(facts)])


@functools.cache
def short_fingerprint() -> str:
    """`fingerprint` in one line: the architecture and a hash."""
    return f"{platform.machine()} {hashlib.sha256(fingerprint().encode()).hexdigest()[:16]}"


def model_name() -> str:
    """The processor's name, for people."""
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if re.match(r"model name\s*:", line)]
    return names[0] if names else platform.processor()


def features() -> frozenset[str]:
    """Instruction sets that all cores have, in Linux's names, such as `avx2`; empty where the system does not tell."""
    facts = (line.partition(":") for line in fingerprint().splitlines() if line.startswith(("flags", "Features")))
    found = [frozenset(names.split()) for _, _, names in facts]
    return frozenset.intersection(*found) if found else frozenset()


@functools.cache
def vector_bits() -> int:
    """The value for XLA's option `xla_cpu_prefer_vector_width`."""
    return 512 if "avx512f" in features() else 256


def lacks_vnni() -> bool:
    """Whether this is an x86 processor that is not known to have VNNI.

    Without it, pairs of products of 8-bit integers are added in 16 bits, where they can overflow.
    """
    flags = fingerprint().split()
    return platform.machine().lower() in _X86 and not any(flag in flags for flag in _VNNI)


@functools.cache
def cache_bytes() -> int:
    """Size of the largest cache; 8 MiB if unknown."""
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
    """Compiler options for `jax.jit` with which `jax.checkpoint` saves memory on CPUs.

    XLA's compiler for CPUs drops the barriers that JAX puts before recomputation, so that it computes early and keeps
    the results after all. Other platforms need no options.
    """
    import jax

    return {"xla_disable_hlo_passes": "cse_barrier_expander"} if jax.default_backend() == "cpu" else {}


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return [f"model name {platform.processor()}"]
