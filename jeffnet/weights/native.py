"""Checkpoints that a module system's own tools write of our models, by canonical name.

* Linen: `{'params', 'batch_stats'}` as MessagePack, by `flax.serialization`.
* NNX: the model's state as a folder, by `orbax.checkpoint`; Linen's and functional variables written so are read too.
* Objax: its variables as npz, by `objax.io.save_var_collection`.

Reading needs neither the models nor Objax, and executes nothing of a file.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jeffnet.errors import WeightsError
from jeffnet.weights.stored import Stored

_COLLECTIONS = ("params", "batch_stats")
_OBJAX_LEAVES = {
    "w": "kernel", "b": "bias", "beta": "bias", "gamma": "scale", "running_mean": "mean", "running_var": "var",
}  # fmt: skip


def is_orbax(folder: Path) -> bool:
    """Whether a folder is a checkpoint of `orbax.checkpoint`, of arrays and not of several items."""
    return (folder / "_METADATA").is_file()


def read_orbax(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint folder.

    Raises:
      WeightsError: it cannot be read.
    """
    import jax
    import orbax.checkpoint as ocp

    try:
        _check_database(folder.absolute())
        with ocp.PyTreeCheckpointer() as checkpointer:
            metadata = checkpointer.metadata(folder.absolute()).item_metadata
            # As NumPy arrays: what was spread over the devices of another machine is whole here.
            arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata.tree)
            tree = checkpointer.restore(folder.absolute(), restore_args=arguments)
            return from_tree(tree)  # pyright: ignore[reportArgumentType]
    except Exception as error:  # whatever a broken file makes Orbax and TensorStore raise
        text = str(error).strip().partition("\n")[0]
        raise WeightsError(f"checkpoint {str(folder)!r} cannot be read: {text}") from error


def _check_database(folder: Path) -> None:
    """Raise if anything of the database in which Orbax keeps arrays cannot be read.

    Orbax itself gives up at the first array, and leaves the reads of the others to print tracebacks of their own: so
    all is read once before.
    """
    import tensorstore

    if json.loads((folder / "_METADATA").read_text()).get("use_ocdbt"):
        database = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}}
        store = tensorstore.KvStore.open(database).result()
        # What lies in a file that is gone reads as nothing, without an error.
        keys = store.list().result()
        if not keys or not all(store.read(key).result().value for key in keys):
            raise WeightsError("some of its files are missing")


def read_msgpack(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file of `flax.serialization`.

    Raises:
      WeightsError: it cannot be read.
    """
    from flax.serialization import msgpack_restore

    try:
        return from_tree(msgpack_restore(path.read_bytes()))  # pyright: ignore[reportArgumentType]
    except Exception as error:  # whatever a broken file makes the parser raise, or what is in it instead of variables
        raise WeightsError(f"weights {str(path)!r} are not a whole MessagePack file of Flax: {error}") from error


def from_tree(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arrays by canonical name from nested variables or states of Linen, NNX or `jeffnet.functional`.

    Names that are no model's are kept as they are, for `jeffnet.weights.fit.fit` to report; an NNX model's random
    numbers are left out.
    """
    return {
        name: np.asarray(array)
        for name, array in ((_tree_name(path), array) for path, array in _leaves(tree))
        if not name.startswith("rngs.")
    }


def from_objax(variables: Mapping[str, Stored]) -> dict[str, Stored]:
    """Arrays by canonical name from Objax's; the state of random numbers is left out.

    `(ImageClassifier).blocks(ModuleList)[2](ModuleList)[1](Block).bn1(BatchNorm).beta` is `blocks.2.1.bn1.bias`.
    """
    arrays = {}
    for name, array in variables.items():
        words = re.sub(r"\[(\d+)\]", r".\1", re.sub(r"\(\w+\)", "", name)).strip(".").split(".")
        if words[-1] != "_key":
            arrays[".".join([*words[:-1], _OBJAX_LEAVES.get(words[-1], words[-1])])] = array
    return arrays


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    leaves = []
    for key, value in tree.items():
        leaves += _leaves(value, (*path, str(key))) if isinstance(value, Mapping) else [((*path, str(key)), value)]
    return leaves


def _tree_name(path: tuple[str, ...]) -> str:
    words = list(path)
    if words[0] in _COLLECTIONS:
        words = words[1:]
    if words[-1:] == ["value"]:  # an NNX variable's
        words = words[:-1]
    return ".".join(re.sub(r"_(\d+)", r".\1", word) for word in words)
