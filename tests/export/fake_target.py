"""A format of exported files that only the tests have: the network itself, which JAX runs."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jeffnet.export.metadata import metadata_json, parse_metadata

NETWORKS = []
# From the network's arrays to what the file has instead.
faults = {}


def write(path, network, metadata):
    NETWORKS.append(network)
    Path(path).write_text(f"FAKE {len(NETWORKS) - 1}\n{metadata_json(metadata)}", encoding="utf-8")


def open_runner(path, threads=None):
    return Runner(Path(path).read_text(encoding="utf-8"), str(path))


class Runner:
    runtime = "fake 1.0"

    def __init__(self, text, path):
        head, _, metadata = text.partition("\n")
        self.metadata = parse_metadata(metadata, path) if metadata else None
        self.network = NETWORKS[int(head.split()[1])]
        size = self.network.options.batch_size
        images = self.network.images(size or 1)
        self.shape, self.dtype = (size, *images.shape[1:]), str(images.dtype)

    def __call__(self, images):
        assert images.shape[1:] == self.shape[1:] and images.dtype == self.dtype
        assert len(images) == self.shape[0] or self.shape[0] is None
        return np.asarray(self.network.apply(_arrays(self.network), jnp.asarray(images)))


def values(path, images, names):
    found = {}

    def keep(name, value):
        found[name] = np.asarray(value)
        return value

    network = open_runner(path).network
    network.apply(_arrays(network), jnp.asarray(images), keep)
    return {name: found[name] for name in names}


def _arrays(network):
    return {name: jnp.asarray(faults.get(name, lambda x: x)(array)) for name, array in network.arrays.items()}
