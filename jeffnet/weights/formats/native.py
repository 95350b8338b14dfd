"""Checkpoints that a module system's own tools write of our models, by canonical name.

* Linen: `{'params', 'batch_stats'}` as MessagePack, by `flax.serialization`.
* NNX: the model's state as a folder, by `orbax.checkpoint`; Linen's and functional variables written so are read too.
* Objax: its variables as npz, by `objax.io.save_var_collection`.

Reading needs neither the models nor Objax, and executes nothing of a file. Neither MessagePack nor Orbax has checksums
of the arrays, so that ours are beside the variables as the collection `checksums`, which Flax's modules do not look at,
and in the checkpoint's own metadata. Those of training states that others wrote, which have none, are read too.
"""

import json
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jeffnet.errors import WeightsError, first_line
from jeffnet.system.files import check_orbax_name
from jeffnet.weights.archive import check_growth
from jeffnet.weights.checksum import CHECKSUMS_KEY, checked, checksum
from jeffnet.weights.stored import Stored, stored

_COLLECTIONS = ("params", "batch_stats")
_CHECKSUMS = "checksums"
# The first byte of a map of MessagePack, by its number of entries.
_MAPS = {bytes([0x80 + entries]) for entries in range(1, 16)}
_log = logging.getLogger("jeffnet")
_OBJAX_LEAVES = {
    "w": "kernel", "b": "bias", "beta": "bias", "gamma": "scale", "running_mean": "mean", "running_var": "var",
}  # fmt: skip


def is_orbax(folder: Path) -> bool:
    """Whether a folder is a checkpoint of `orbax.checkpoint`, of arrays and not of several items."""
    return (folder / "_METADATA").is_file()


def read_orbax(folder: Path) -> tuple[dict[str, Stored], bool]:
    """The arrays of a checkpoint folder, and whether they have checksums, see `jeffnet.weights.checksum.checked`.

    Raises:
      WeightsError: it cannot be read.
    """
    import jax
    import orbax.checkpoint as ocp

    try:
        check_orbax_name(folder)
        _check_database(folder.absolute())
        with ocp.PyTreeCheckpointer() as checkpointer:
            metadata = checkpointer.metadata(folder.absolute())
            found = metadata.item_metadata
            size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(found.tree))
            check_growth(size, sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))
            # As NumPy arrays: what was spread over the devices of another machine is whole here.
            arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), found.tree)
            tree: Any = checkpointer.restore(folder.absolute(), restore_args=arguments)
        return _checked(tree, (metadata.custom_metadata or {}).get(CHECKSUMS_KEY), str(folder))
    except WeightsError:
        raise
    except Exception as error:  # whatever a broken file makes Orbax and TensorStore raise
        raise WeightsError(f"checkpoint {str(folder)!r} cannot be read: {first_line(error)}") from error


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
            raise FileNotFoundError("some of its files are missing")


def is_msgpack(start: bytes) -> bool:
    """Whether a file that starts so is a map whose first key is a word, as `flax.serialization` writes variables."""
    length = start[1] & 0x1F if len(start) > 1 and start[1] & 0xE0 == 0xA0 else 0
    return start[:1] in _MAPS and length > 0 and start[2 : 2 + length].replace(b"_", b"a").isalnum()


def read_msgpack(path: Path) -> tuple[dict[str, Stored], bool]:
    """The arrays of a file of `flax.serialization`, and whether they have checksums, as `read_orbax`.

    Raises:
      WeightsError: it cannot be read.
    """
    from flax.serialization import msgpack_restore

    try:
        tree: Any = msgpack_restore(path.read_bytes())
        return _checked(tree, tree.pop(_CHECKSUMS, None), str(path))
    except WeightsError:
        raise
    except Exception as error:  # whatever a broken file makes the parser raise, or what is in it instead of variables
        raise WeightsError(
            f"weights {str(path)!r} are not a whole MessagePack file of Flax: {first_line(error)}"
        ) from error


def tree_checksums(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Checksums of arrays by canonical name, as they are in Orbax's metadata."""
    return {name: f"{checksum(array):016x}" for name, array in arrays.items()}


def write_msgpack(path: Path, variables: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write variables as `flax.serialization` does, with the checksums of their arrays.

    Args:
      path: of the file.
      variables: by collection.
      arrays: the same by canonical name.
    """
    from flax.serialization import to_bytes

    # As arrays of what JAX has a type for: whoever takes all collections to a device can.
    sums = {name: np.frombuffer(bytes.fromhex(digits), np.uint8) for name, digits in tree_checksums(arrays).items()}
    path.write_bytes(to_bytes({**variables, _CHECKSUMS: sums}))


def _checked(tree: Mapping[str, Any], sums: Mapping[str, Any] | None, source: str) -> tuple[dict[str, Stored], bool]:
    arrays = {name: stored(array) for name, array in from_tree(_variables(tree, source)).items()}
    if sums is None:
        return arrays, False
    digits = {
        name: text if isinstance(text, str) else np.asarray(text, np.uint8).tobytes().hex()
        for name, text in sums.items()
    }
    return checked(arrays, {name: int(text, 16) for name, text in digits.items()}, source), True


def _variables(tree: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """Of a training state the model's variables: `TrainState` and the like have an optimizer's state beside them."""
    if "params" not in tree:
        return tree
    if left := [str(name) for name in tree if name not in _COLLECTIONS]:
        _log.warning("%s: took %s; left out %s", source, " and ".join(_COLLECTIONS), ", ".join(left))
    return {name: tree[name] for name in _COLLECTIONS if name in tree}


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
