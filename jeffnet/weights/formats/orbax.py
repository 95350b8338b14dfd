"""Orbax: the state of an NNX model in a folder, by `orbax.checkpoint`; variables of Linen and functional are read too.

Checksums of the arrays are in the checkpoint's custom metadata.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from jeffnet.system.files import check_orbax_name
from jeffnet.weights.archive import check_growth
from jeffnet.weights.checksum import CHECKSUMS_KEY
from jeffnet.weights.formats.interface import Contents, Probe, WeightsFile, reading
from jeffnet.weights.trees import tree_checksums, tree_file


def sniff(probe: Probe) -> bool:
    """A folder with a checkpoint of arrays, not of several items."""
    return (probe.path / "_METADATA").is_file()


def read(path: Path) -> WeightsFile:
    """See `jeffnet.weights.formats.FormatModule`; all arrays are read at once."""
    import jax
    import orbax.checkpoint as ocp

    folder = path.absolute()
    with reading(path, "are not a whole checkpoint of Orbax"):
        check_orbax_name(path)
        _check_database(folder)
        with ocp.PyTreeCheckpointer() as checkpointer:
            metadata = checkpointer.metadata(folder)
            found = metadata.item_metadata.tree
            size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(found))
            check_growth(size, sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))
            # As NumPy arrays: what was spread over the devices of another machine is whole here.
            arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), found)
            tree: Any = checkpointer.restore(folder, restore_args=arguments)
        sums = (metadata.custom_metadata or {}).get(CHECKSUMS_KEY)
        return tree_file(str(path), tree, sums, "checkpoint of Orbax")


def write(path: Path, contents: Contents) -> None:
    """See `jeffnet.weights.formats.FormatModule`."""
    import orbax.checkpoint as ocp
    from flax import nnx

    check_orbax_name(path)
    state = nnx.state(contents.build("nnx"))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), state, custom_metadata={CHECKSUMS_KEY: tree_checksums(contents.arrays)})


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
