"""SavedModel folders, which TensorFlow and its serving run.

The program is StableHLO inside, as `jax2tf` writes it. The description is an asset of the module: what TensorFlow saves
again after it has loaded the folder has it too, unlike files of `assets.extra`, or beside the folder.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from jeffnet._tensorflow import on_cpu, tensorflow, tf
from jeffnet.errors import ConfigError, WeightsError, first_line
from jeffnet.export.batches import check_pictures, in_batches
from jeffnet.export.metadata import ExportMetadata, metadata_json, parse_metadata
from jeffnet.export.network import ExportNetwork
from jeffnet.export.traced import PLATFORMS, as_function, for_platforms
from jeffnet.system.extras import install
from jeffnet.system.files import written_atomically
from jeffnet.system.reading import read_text

DESCRIPTION = "assets/jeffnet.json"
SIGNATURE, INPUT = "serving_default", "images"


def as_tensorflow(network: ExportNetwork, lowering: str | None = None) -> Callable[..., Any]:
    """What a file computes, as a function of TensorFlow.

    Args:
      network: to be written.
      lowering: of its convolutions; None for the one that suits each platform.

    Raises:
      ConfigError: TensorFlow is not installed.
    """
    try:
        tensorflow()  # before jax2tf, which would load it with all its messages
        from jax.experimental import jax2tf
    except ImportError as error:
        raise ConfigError(f"this needs TensorFlow: {install('tf')}") from error
    sides = ", ".join(map(str, network.images(1).shape[1:]))
    batch = network.options.batch_size or "batch"
    platforms = PLATFORMS if lowering is None else ("cpu",)
    return jax2tf.convert(
        for_platforms(network) if lowering is None else as_function(network, lowering),
        polymorphic_shapes=[f"({batch}, {sides})"],
        with_gradient=False,
        native_serialization_platforms=platforms,
    )


def write(path: Path, network: ExportNetwork, metadata: ExportMetadata) -> None:
    """Write the folder, with its description.

    Raises:
      ConfigError: TensorFlow is not installed.
      OutputError: it cannot be written.
    """
    function = as_tensorflow(network)
    images = network.images(network.options.batch_size)
    name = "probabilities" if "softmax" in network.options.include else "logits"
    with TemporaryDirectory() as folder, on_cpu(), written_atomically(path) as partial:
        description = Path(folder, Path(DESCRIPTION).name)
        description.write_text(metadata_json(metadata), encoding="utf-8")
        module = tf.Module()
        module.description = tf.saved_model.Asset(str(description))
        signature = tf.TensorSpec(images.shape, images.dtype.name, INPUT)
        module.serve = tf.function(
            lambda images: {name: function(images)}, autograph=False, input_signature=[signature]
        )
        tf.saved_model.save(module, partial, signatures={SIGNATURE: module.serve})


class _Runner:
    """A folder in TensorFlow, see `jeffnet.export.targets.Runner`."""

    def __init__(self, path: Path) -> None:
        self._source = str(path)
        try:
            self.runtime = f"tensorflow {tf.__version__}"
        except ImportError as error:
            raise WeightsError(f"{self._source!r} needs TensorFlow: {install('tf')}") from error
        description = Path(path, DESCRIPTION)
        try:
            text = read_text(description) if description.exists() else None
        except OSError as error:
            raise WeightsError(f"cannot read {str(description)!r}: {error.strerror or error}") from error
        self.metadata = None if text is None else parse_metadata(text, self._source)
        try:
            with on_cpu():
                self._module = tf.saved_model.load(self._source)  # its functions live as long as it does
            self._function = self._module.signatures[SIGNATURE]
            ((self._name, images),) = self._function.structured_input_signature[1].items()
            ((self._output, _),) = self._function.structured_outputs.items()
        except Exception as error:  # whatever TensorFlow raises
            raise WeightsError(f"TensorFlow cannot load {self._source!r}: {first_line(error)}") from error
        self.shape, self.dtype = tuple(images.shape), images.dtype.name

    def __call__(self, images: Any) -> np.ndarray:
        images = np.asarray(images)
        check_pictures(self._source, images, self.shape, self.dtype)
        return in_batches(self._run, images.astype(self.dtype), self.shape[0])

    def _run(self, batch: np.ndarray) -> np.ndarray:
        with on_cpu():
            return self._function(**{self._name: tf.constant(batch)})[self._output].numpy()


def open_runner(path: Path, threads: int | None = None) -> _Runner:
    """A folder in TensorFlow, which takes as many threads as it is set to in this process.

    Raises:
      WeightsError: it cannot be read, is something else, or TensorFlow is not installed.
    """
    del threads
    return _Runner(path)
