"""Files of compiled models: machine code, arrays, and what they were compiled for."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jeffnet.errors import WeightsError
from jeffnet.ops import native
from jeffnet.system.files import written_atomically
from jeffnet.system.processor import short_fingerprint

_METADATA_KEY = "jeffnet-fused"
_FORMAT = 3
_EXECUTABLE = "executable"


def write_fused(
    path: str | os.PathLike,
    executable: bytes,
    arrays: Mapping[str, Any],
    images: jax.ShapeDtypeStruct,
    piece: int,
    unfused: Sequence[str],
) -> None:
    """Write a compiled model for this kind of machine and this version of JAX; replaces a file of this name.

    JAX serialised the `executable`; for the rest see `jeffnet.inference.fused.FusedModel`.
    """
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    arrays[_EXECUTABLE] = np.frombuffer(executable, np.uint8)
    batch = [list(images.shape), images.dtype.name]
    about = {"format": _FORMAT, "made for": conditions(), "images": batch, "piece": piece, "unfused": list(unfused)}
    text = json.dumps(about)
    with written_atomically(path) as partial:
        save_file(arrays, partial, {_METADATA_KEY: f"{_checksum(text, arrays)} {text}"})


def read_fused(
    path: str | os.PathLike,
) -> tuple[bytes, dict[str, np.ndarray], jax.ShapeDtypeStruct, int, tuple[str, ...]]:
    """What `write_fused` wrote: executable, arrays, images, piece, unfused operations.

    Raises:
      WeightsError: no such file, another kind of file, a damaged one, or one for another machine or version of JAX.
    """
    if not Path(path).is_file():
        raise WeightsError(f"'{path}' is no file")
    try:
        with safe_open(path, "numpy") as file:
            entry = (file.metadata() or {}).get(_METADATA_KEY)
            arrays = {name: file.get_tensor(name) for name in file.keys()} if entry else {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"'{path}' is no fused model, or is cut off: {error}") from error
    if entry is None:
        raise WeightsError(f"'{path}' is no fused model: make one by `fuse(...).save(path)`")
    checksum, _, about = entry.partition(" ")
    if checksum != _checksum(about, arrays):
        raise WeightsError(
            f"'{path}' is damaged, by its checksum, or of an older version: copy it again, or fuse the model again"
        )
    facts = json.loads(about)
    there = facts["made for"]
    other = [
        f"{name}: {there.get(name)}, here {here}" for name, here in conditions().items() if there.get(name) != here
    ]
    if facts["format"] != _FORMAT or other:
        raise WeightsError(
            f"'{path}' was compiled elsewhere ({'; '.join(other) or 'another format'}): fuse the model anew"
        )
    if there["kernels"] != "none":
        native.load()  # registers what the executable calls
    executable = arrays.pop(_EXECUTABLE).tobytes()
    images = jax.ShapeDtypeStruct(tuple(facts["images"][0]), jnp.dtype(facts["images"][1]))
    return executable, arrays, images, facts["piece"], tuple(facts["unfused"])


def _checksum(about: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Of all that a file holds; an executable with a flipped bit may do anything."""
    digest = hashlib.sha256(about.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"\0{name} {array.dtype} {array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def conditions() -> dict[str, str]:
    """What a compiled model depends on."""
    device = jax.devices()[0]
    return {
        "jax": jax.__version__,
        "jaxlib": jaxlib.version.__version__,
        "platform": device.platform,
        "device": short_fingerprint() if device.platform == "cpu" else device.device_kind,
        "kernels": native.library_name() if device.platform == "cpu" and native.available() else "none",
    }
