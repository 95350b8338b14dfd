"""StableHLO with its weights, for CPUs, GPUs and TPUs in one file, as `jax.export` writes it.

The description is beside it in a file that also has its SHA-256, so that the two can never be of different exports.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jeffnet.export.batches import in_batches
from jeffnet.export.description import BESIDE
from jeffnet.export.metadata import ExportMetadata, metadata_json, parse_metadata
from jeffnet.export.network import ExportNetwork
from jeffnet.export.program import load
from jeffnet.export.traced import PLATFORMS, batch_dimension, for_platforms
from jeffnet.system.files import written_atomically


def write(path: Path, network: ExportNetwork, metadata: ExportMetadata) -> None:
    """Write the program, and its description beside it.

    Raises:
      OutputError: they cannot be written.
    """
    content = serialized(network)
    description = json.loads(metadata_json(metadata)) | {"sha256": hashlib.sha256(content).hexdigest()}
    with written_atomically(path) as partial:
        Path(partial).write_bytes(content)
        Path(partial + BESIDE).write_text(json.dumps(description), encoding="utf-8")


def serialized(network: ExportNetwork) -> bytes:
    """The program as `jax.export` serialises it."""
    from jax import export

    images = network.images(batch_dimension(network))
    return bytes(export.export(jax.jit(for_platforms(network)), platforms=PLATFORMS)(images).serialize())


class ProgramRunner:
    """A program, see `jeffnet.export.targets.Runner`.

    Attributes:
      program: what runs.
    """

    def __init__(self, path: Path) -> None:
        self.program = program = load(path)
        self.runtime = f"jax {jax.__version__}"
        self.shape, self.dtype = program.shape, str(program.dtype)
        source = str(path) + BESIDE
        self.metadata = None if program.metadata is None else parse_metadata(json.dumps(program.metadata), source)

    def __call__(self, images: Any) -> np.ndarray:
        return in_batches(lambda batch: np.asarray(self.program(batch)), np.asarray(images), self.shape[0])


def open_runner(path: Path, threads: int | None = None) -> ProgramRunner:
    """The program in this process; it takes as many threads as JAX has.

    Raises:
      WeightsError: see `jeffnet.export.program.load`.
    """
    del threads
    return ProgramRunner(path)
