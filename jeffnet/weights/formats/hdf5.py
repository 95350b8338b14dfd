"""HDF5 files, in which Keras keeps the arrays of a model's layers. Reading them needs h5py.

HDF5 trusts its files: a damaged one may crash it, and a crafted one do worse. So another process reads the file and
sends back its bytes.
"""

import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy)
import numpy as np

from jeffnet.errors import WeightsError, first_line
from jeffnet.weights.archive import check_growth
from jeffnet.weights.checksum import checked, checksum
from jeffnet.weights.stored import Stored

MAGIC = b"\x89HDF\r\n\x1a\n"
BROKEN = "are not a whole file of Keras"
Layers = dict[str, dict[str, Stored]]
# An attribute of each array in files that jeffnet wrote: HDF5 as Keras uses it has no checksums.
_CHECKSUM = "jeffnet.checksum"
# What the process may use at most: a broken file can make HDF5 go round in circles, or ask for any amount of memory.
_SECONDS, _BYTES = 600, 2**34
_NORM = ("gamma", "beta", "moving_mean", "moving_variance")
# Keras 3 numbers the arrays of a layer: what they are is told by how many axes each has.
_LEAVES_BY_AXES = {
    (1, 1, 1, 1): _NORM,
    (1, 1, 0): ("mean", "variance", "count"),
    **{axes: ("kernel", "bias") for axes in ((4,), (4, 1), (2,), (2, 1))},
}


@dataclass(frozen=True)
class LayersFile:
    """What such a file holds.

    Attributes:
      layers: arrays by layer and leaf, such as `kernel`.
      config: Keras's configuration of the model in JSON, if there is one.
      has_checksums: whether every array has one, which is compared when it is read.
    """

    layers: Layers
    config: str | None
    has_checksums: bool


def read_layers(path: Path, content: BinaryIO, stems: set[str]) -> LayersFile:
    """The layers of a file of Keras, in either of the arrangements that Keras has had.

    Args:
      path: what to call it.
      content: the file.
      stems: names of first layers; one of them shows that the file names its layers.

    Raises:
      WeightsError: h5py is not installed, or the file is broken or points to other files.
    """
    if importlib.util.find_spec("h5py") is None:
        missing = ModuleNotFoundError("h5py")
        raise WeightsError(f"weights {str(path)!r} are in HDF5: pip install h5py to read them") from missing
    with tempfile.TemporaryFile() as output:
        _copy_by_process(path, content, output, stems)
        output_bytes = np.memmap(output, np.uint8, "r")
    length = int.from_bytes(output_bytes[-8:].tobytes(), "little")
    listing = json.loads(output_bytes[-8 - length : -8].tobytes())
    if "error" in listing:
        raise WeightsError(f"weights {str(path)!r} {BROKEN}: {listing['error']}")
    return _listed(path, output_bytes, listing)


def _copy_by_process(path: Path, content: BinaryIO, output: BinaryIO, stems: set[str]) -> None:
    """Run `copy_layers` in another process."""
    done = subprocess.run(
        # Without the current folder on its path, in which a file from elsewhere may lie beside modules from there.
        [sys.executable, "-P", "-c", f"from {__name__} import main; main()", json.dumps(sorted(stems))],
        stdin=content,
        stdout=output,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(part or os.getcwd() for part in sys.path)},
        check=False,
    )
    if done.returncode:
        crash = f"HDF5 crashed on it (signal {-done.returncode})" if done.returncode < 0 else "it cannot be read"
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines and done.returncode > 0 else crash
        raise WeightsError(f"weights {str(path)!r} {BROKEN}: {reason}")


def with_checksums(content: bytes) -> bytes:
    """The content of a file, with a checksum of every array in it."""
    import h5py

    def add(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            item.attrs[_CHECKSUM] = f"{checksum(np.asarray(item[()])):016x}"

    changed = io.BytesIO(content)
    with h5py.File(changed, "r+") as file:
        file.visititems(add)
    return changed.getvalue()


def _listed(path: Path, content: np.ndarray, listing: dict[str, Any]) -> LayersFile:
    layers: Layers = {}
    for layer, leaf, shape, dtype, start, digits in listing["arrays"]:
        shape, dtype = tuple(shape), np.dtype(dtype)
        end = start + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize

        def read(part: np.ndarray = content[start:end], shape: tuple = shape, dtype: np.dtype = dtype) -> np.ndarray:
            return np.array(part).view(dtype).reshape(shape)

        array, name = Stored(shape, dtype, read), f"{layer}/{leaf}"
        if digits is not None:
            array = checked({name: array}, {name: int(digits, 16)}, str(path))[name]
        layers.setdefault(layer, {})[leaf] = array
    has_checksums = bool(layers) and all(digits is not None for *_, digits in listing["arrays"])
    return LayersFile(layers, listing["config"], has_checksums)


def main() -> None:
    """The process: `copy_layers` from its standard input to its standard output."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # so that nothing else is printed in between
    _limit()
    with open(0, "rb") as content:
        copy_layers(content, output, set(json.loads(sys.argv[1])))
    os._exit(0)  # without what HDF5 does at the end


def copy_layers(content: BinaryIO, output: BinaryIO, stems: set[str]) -> None:
    """Write the arrays of a file, and at the end a list of them or why there is none; see `read_layers`."""
    try:
        listing = _written(content, output, stems)
    except Exception as error:  # whatever a broken file makes HDF5 raise
        listing = {"error": first_line(error)}
    text = json.dumps(listing).encode()
    output.write(text + len(text).to_bytes(8, "little"))
    output.flush()


def _limit() -> None:
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return
    for kind, most in ((resource.RLIMIT_CPU, _SECONDS), (resource.RLIMIT_AS, _BYTES), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _written(content: BinaryIO, output: BinaryIO, stems: set[str]) -> dict[str, Any]:
    """Write the arrays; returns the list of them."""
    import h5py

    with h5py.File(content, "r") as file:
        layers, arrays = _layers(file, stems), []
        datasets = [dataset for leaves in layers.values() for dataset in leaves.values()]
        check_growth(sum(dataset.nbytes for dataset in datasets), os.fstat(content.fileno()).st_size)
        start = 0
        for layer, leaves in layers.items():
            for leaf, dataset in leaves.items():
                array = np.ascontiguousarray(dataset[()]).reshape(dataset.shape)
                # HDF5 has no bfloat16: Keras writes two bytes of nothing in particular and says what they are.
                is_bfloat16 = dataset.attrs.get("dtype") == "bfloat16" and array.itemsize == 2
                if array.dtype.kind not in "fiub" and not is_bfloat16:
                    raise ValueError(f"{dataset.name} has elements of type {array.dtype}")
                digits = dataset.attrs.get(_CHECKSUM)
                output.write(array.tobytes())
                dtype = "bfloat16" if is_bfloat16 else array.dtype.str
                arrays.append((layer, leaf, array.shape, dtype, start, None if digits is None else str(digits)))
                start += array.nbytes
        config = file.attrs.get("model_config")
    return {"arrays": arrays, "config": config.decode() if isinstance(config, bytes) else config}


def _layers(file: Any, stems: set[str]) -> dict[str, dict[str, Any]]:
    """Datasets by layer and by what they are, from either arrangement."""
    root = _child(file, "model_weights")
    root = file if root is None else root
    if names := _texts(root, "layer_names"):
        return _listed_layers(root, names)
    nested = list(_nested_layers(file, set()))
    is_named = bool(stems & {name for _, name, _ in nested})
    layers: dict[str, dict[str, Any]] = {}
    for place, name, arrays in nested:
        short = name if is_named else place.rpartition("/")[2]
        layers[place if short in layers else short] = arrays
    return layers


def _listed_layers(root: Any, names: list[str]) -> dict[str, dict[str, Any]]:
    """The older arrangement: attributes list the layers and their weights, of a model in a model all together."""
    layers: dict[str, dict[str, Any]] = {}
    for layer in names:
        group = _child(root, layer)
        weights = _texts(group, "weight_names")
        is_model = len({weight.rpartition("/")[0] for weight in weights}) > 1
        for weight in weights:
            owner, _, leaf = weight.rpartition("/")
            leaf = leaf.partition(":")[0].removeprefix("depthwise_")
            layers.setdefault(owner if is_model else layer, {})[leaf] = _dataset(_child(group, weight))
    if "Conv/BatchNorm" in layers:  # as MobileNetV3's layers were called before Keras 3
        return {name.replace("/BatchNorm", "_bn").replace("/", "_").lower(): layers[name] for name in layers}
    return {name.rpartition("/")[2]: arrays for name, arrays in layers.items()}


def _nested_layers(group: Any, seen: set) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The arrangement of Keras 3: where each layer is, the name that it states, and its arrays."""
    for container in ("layers", "_layer_checkpoint_dependencies"):
        layers = _child(group, container)
        for key in () if layers is None else layers:
            layer = _child(layers, key)
            if layer.id in seen:  # a group that is in itself would have no end
                continue
            seen.add(layer.id)
            variables = _child(layer, "vars")
            if variables is not None and len(variables):
                arrays = [_dataset(_child(variables, number)) for number in sorted(variables, key=int)]
                numbers = tuple(str(number) for number in range(len(arrays)))
                leaves = _LEAVES_BY_AXES.get(tuple(array.ndim for array in arrays), numbers)
                yield layer.name, variables.attrs.get("name", key), dict(zip(leaves, arrays, strict=False))
            yield from _nested_layers(layer, seen)


def _child(group: Any, path: str) -> Any:
    """What is at a path, or None. Links that might lead to another file are refused."""
    import h5py

    for key in path.split("/"):
        link = group.get(key, getlink=True)
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{key!r} in it is a link elsewhere: refused")
        group = group[key]
    return group


def _texts(group: Any, attribute: str) -> list[str]:
    """A list in an attribute, or in several if it is too long for one."""
    parts, more = [group.attrs.get(attribute, ())], f"{attribute}0"
    while more in group.attrs:
        parts.append(group.attrs[more])
        more = f"{attribute}{len(parts) - 1}"
    return [text.decode() if isinstance(text, bytes) else str(text) for part in parts for text in part]


def _dataset(dataset: Any) -> Any:
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"{dataset.name!r} of it is in another file: refused")
    return dataset
