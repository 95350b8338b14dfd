"""Versions of what results depend on."""

import importlib.metadata
import platform

import jeffnet

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")


def versions() -> dict[str, str | None]:
    """Of jeffnet, Python and the packages that they rest on; None for those that are not installed."""
    own = {"jeffnet": jeffnet.__version__, "python": platform.python_version()}
    return own | {name: version(name) for name in PACKAGES}


def version(package: str) -> str | None:
    """Of an installed package; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
