"""MessagePack: the variables of a Linen model in a file, by `flax.serialization`.

Checksums of the arrays are beside the variables, as the collection `checksums`, which Flax's modules ignore.
"""

from pathlib import Path
from typing import Any

import numpy as np

from jeffnet.weights.formats.interface import Contents, Probe, WeightsFile, reading
from jeffnet.weights.trees import tree_checksums, tree_file

_CHECKSUMS = "checksums"
# The first byte of a map, by its number of entries.
_MAPS = {bytes([0x80 + entries]) for entries in range(1, 16)}


def sniff(probe: Probe) -> bool:
    """A map whose first key is a word."""
    start = probe.start
    length = start[1] & 0x1F if len(start) > 1 and start[1] & 0xE0 == 0xA0 else 0
    return start[:1] in _MAPS and length > 0 and start[2 : 2 + length].replace(b"_", b"a").isalnum()


def read(path: Path) -> WeightsFile:
    """See `jeffnet.weights.formats.FormatModule`; all arrays are read at once."""
    from flax.serialization import msgpack_restore

    with reading(path, "are not a whole MessagePack file of Flax"):
        tree: Any = msgpack_restore(path.read_bytes())
        if (sums := tree.pop(_CHECKSUMS, None)) is not None:
            sums = {name: np.asarray(digits, np.uint8).tobytes().hex() for name, digits in sums.items()}
        return tree_file(str(path), tree, sums, "MessagePack of Flax")


def write(path: Path, contents: Contents) -> None:
    """See `jeffnet.weights.formats.FormatModule`."""
    from flax.serialization import to_bytes

    _, variables = contents.build("linen")
    # As arrays of a dtype that JAX has too: some programs move all collections to a device.
    sums = tree_checksums(contents.arrays)
    collection = {name: np.frombuffer(bytes.fromhex(digits), np.uint8) for name, digits in sums.items()}
    path.write_bytes(to_bytes({**variables, _CHECKSUMS: collection}))
