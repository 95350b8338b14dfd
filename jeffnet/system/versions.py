"""Versions of the packages that results depend on."""

import importlib.metadata
import platform

import jeffnet

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")


def versions() -> dict[str, str | None]:
    """Versions of jeffnet, Python and `PACKAGES`; None for packages that are not installed."""
    packages = {name: version(name) for name in PACKAGES}
    return {"jeffnet": jeffnet.__version__, "python": platform.python_version(), **packages}


def version(package: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
