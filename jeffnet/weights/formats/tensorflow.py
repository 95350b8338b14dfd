"""TensorFlow checkpoints of the papers' authors. Reading and writing them needs TensorFlow.

* EfficientNet, Lite, EdgeTPU, MNASNet, MixNet: tensorflow/tpu, models/official/efficientnet and mnasnet.
* EfficientNetV2: google/automl, efficientnetv2.
* MobileNetV2 and V3: tensorflow/models, research/slim/nets/mobilenet.
"""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from jeffnet._tensorflow import on_cpu, tensorflow
from jeffnet.arch.plan import Plan
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.zoo import list_models, model_preprocessing
from jeffnet.errors import OutputError, WeightsError
from jeffnet.system.extras import install
from jeffnet.system.reading import MOST_TEXT, read_file
from jeffnet.weights.formats.interface import OF_ARRAYS, Contents, Probe, WeightsFile, guarded, reading
from jeffnet.weights.formats.keras_names import LEAVES
from jeffnet.weights.naming import Layer, Naming, array_names, to_source_names
from jeffnet.weights.stored import Stored

_log = logging.getLogger("jeffnet")
_AVERAGE = "/ExponentialMovingAverage"
_FAULT = "are no whole checkpoint of TensorFlow"
_INDEX, _DATA = ".index", re.compile(r"\.data-\d{5}-of-\d{5}$")
# The last bytes of an index, which is a table of LevelDB.
_TABLE = bytes.fromhex("57fb808b247547db")
# Optimizers' own variables, and counters.
_IGNORED = re.compile(
    r"(^|/)(global_step|Variable(_\d+)?|Momentum|RMSProp(_\d+)?|Adam(_\d+)?|beta\d_power|lars_vars|ema_decay|num_updates)$"
)
_STEM = re.compile(r"^(?P<root>(?:.*/)?)(?P<mnas>mnas_)?stem/conv2d(?:_\d+)?/kernel$")
_SLIM = re.compile(r"^(?P<root>(?:.*/)?MobilenetV[23])/Conv/weights$")
_LAYER = re.compile(
    r"^(?P<scope>.*)/(?P<layer>(?:tpu_)?(?P<kind>conv2d|depthwise_conv2d|batch_normalization|dense)(?:_(?P<number>\d+))?)/\w+$"
)
_TPU_NORM = "tpu_batch_normalization"
_SLIM_LEAVES = {
    "kernel": "/weights", "depthwise_conv2d.kernel": "/depthwise_weights", "bias": "/biases",
    "batch_normalization.bias": "/BatchNorm/beta", "scale": "/BatchNorm/gamma",
    "mean": "/BatchNorm/moving_mean", "var": "/BatchNorm/moving_variance",
}  # fmt: skip
# By the role of a layer in a block, where it is not the role itself.
_SLIM_LAYERS = {"reduce": "squeeze_excite/Conv", "gate": "squeeze_excite/Conv_1"}
# Lite and EdgeTPU were trained on pixels with these constants, whose rounded values timm uses.
_EDGE = ((127 / 255,) * 3, (128 / 255,) * 3)
_CLASSES_21K = 21_843
# EfficientNetV2 S to L on ImageNet-1k: (pixel - 128) / 128, of the whole picture resized to a square.
_V2 = {
    "mean": (128 / 255,) * 3, "std": (128 / 255,) * 3,
    "crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bilinear",
}  # fmt: skip
# Our models by the name under which the authors' variables are.
_MODELS = {
    **{f"efficientnet-b{size}": f"tf_efficientnet_b{size}" for size in range(9)},
    "efficientnet-l2": "tf_efficientnet_l2",
    **{f"efficientnet-lite{size}": f"tf_efficientnet_lite{size}" for size in range(5)},
    **{f"efficientnet-edgetpu-{size.upper()}": f"tf_efficientnet_e{size}" for size in "sml"},
    **{f"efficientnetv2-{size}": f"tf_efficientnetv2_{size}" for size in ("b0", "b1", "b2", "b3", "s", "m", "l", "xl")},
    **{f"mixnet-{size}": f"tf_mixnet_{size}" for size in "sml"},
    "mnasnet-a1": "tf_semnasnet_100",
    "mnasnet-b1": "tf_mnasnet_100",
}


def sniff(probe: Probe) -> bool:
    """One of a checkpoint's files, its prefix or its folder; see `find_checkpoint`."""
    return find_checkpoint(probe.path) is not None


def find_checkpoint(path: Path) -> Path | None:
    """The prefix of the checkpoint that a path means, or None where it means none.

    The path may be a prefix (`model.ckpt-1000`, which is no file itself), one of the checkpoint's files, or a folder
    with one checkpoint or with a file `checkpoint` that says which is the latest.

    Raises:
      WeightsError: a folder with several checkpoints, of which it does not say the latest.
      OSError: a file cannot be read.
    """
    if path.is_dir():
        indices = sorted(index for index in path.glob(f"*{_INDEX}") if index.is_file())
        latest = path / "checkpoint"
        if latest.is_file() and indices:
            text = read_file(latest, MOST_TEXT).decode(errors="replace")
            match = re.search(r'^model_checkpoint_path: "(.*)"', text, re.MULTILINE)
            if match and (path / (Path(match[1]).name + _INDEX)).is_file():
                return path / Path(match[1]).name
        if len(indices) > 1:
            names = ", ".join(index.name.removesuffix(_INDEX) for index in indices)
            raise WeightsError(f"weights {str(path)!r} have several checkpoints: give one of {names}")
        return _prefix(indices[0]) if indices else None
    if path.is_file():
        return _prefix(path)
    index = path.with_name(path.name + _INDEX)
    return path if index.is_file() else None


def _prefix(path: Path) -> Path | None:
    if _DATA.search(path.name):
        prefix = path.with_name(_DATA.sub("", path.name))
        return prefix if prefix.with_name(prefix.name + _INDEX).is_file() else None
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - len(_TABLE)))
        is_table = file.read() == _TABLE
    return path.with_name(path.name.removesuffix(_INDEX)) if is_table and path.name.endswith(_INDEX) else None


def read(path: Path) -> WeightsFile:
    """See `jeffnet.weights.formats.FormatModule`.

    Moving averages of the variables (ExponentialMovingAverage) are taken if there are any, with a warning.
    """
    prefix = find_checkpoint(path) or path
    try:
        tf = tensorflow()
    except ImportError as error:
        raise WeightsError(
            f"weights {str(prefix)!r} are a checkpoint of TensorFlow, which is not installed: {install('tf')}"
        ) from error
    with reading(prefix, _FAULT):
        reader = tf.train.load_checkpoint(str(prefix))
        dtypes = reader.get_variable_to_dtype_map()
        stored = {
            name: Stored(tuple(shape), np.dtype(dtypes[name].as_numpy_dtype), partial(reader.get_tensor, name))
            for name, shape in reader.get_variable_to_shape_map().items()
            if dtypes[name].is_numpy_compatible and dtypes[name] != tf.string
        }
    arrays = _averaged({name: guarded(array, prefix, _FAULT) for name, array in stored.items()}, prefix)
    naming = naming_of(arrays)
    if naming is None:
        raise WeightsError(
            f"weights {str(prefix)!r} are a checkpoint of TensorFlow, but not of the authors' code: no "
            f"'stem/conv2d/kernel' or 'MobilenetV3/Conv/weights' among {len(arrays)} variables "
            f"({', '.join(list(arrays)[:3])}, ...)"
        )
    root = next((match["root"].strip("/") for match in map(_STEM.match, arrays) if match), "")
    model = _MODELS.get(root.rpartition("/")[2])
    classes = next((array.shape[-1] for name, array in arrays.items() if name.endswith("head/dense/bias")), 1000)
    preprocessing = preprocessing_of(model, classes) if model else None
    return WeightsFile(str(prefix), arrays, naming, model=model, preprocessing=preprocessing, checksums=OF_ARRAYS)


def preprocessing_of(model: str, classes: int) -> Preprocessing | None:
    """What the authors' checkpoints of one of our models expect of pictures; None for the zoo's.

    EfficientNetV2 with 21,843 classes was trained on ImageNet-21k, and XL only there at first: both as in the zoo. The
    same of S, M and L with 1,000 classes have the names of those that ImageNet-1k alone trained, for which they are
    taken; their pixels differ by 0.4 %.
    """
    if re.match(r"tf_efficientnet_(lite\d|e[sml])$", model):
        return replace(model_preprocessing(model), mean=_EDGE[0], std=_EDGE[1])
    if not model.startswith("tf_efficientnetv2_") or model.endswith("_xl"):
        return None
    if classes == _CLASSES_21K:
        names = list_models(f"{model}.in21k", tags=True)
        return model_preprocessing(names[0]) if names else None
    preprocessing = model_preprocessing(f"{model}.in1k")
    return preprocessing if model[-2] == "b" else replace(preprocessing, **_V2)


def write(path: Path, contents: Contents) -> None:
    """See `jeffnet.weights.formats.FormatModule`; `tf.train.load_checkpoint` and TensorFlow 1's `Saver` read it."""
    hints = hints_of(contents.card.model)
    naming = naming_of(hints)
    assert naming is not None
    arrays = to_source_names(contents.arrays, naming, contents.card.plan(), hints)
    try:
        tf = tensorflow()
    except ImportError as error:
        raise OutputError(f"a checkpoint of TensorFlow needs it to be written: {install('tf')}") from error
    with on_cpu():
        tensors = [tf.convert_to_tensor(np.ascontiguousarray(array)) for array in arrays.values()]
        tf.raw_ops.SaveV2(
            prefix=str(path), tensor_names=list(arrays), shape_and_slices=[""] * len(tensors), tensors=tensors
        )


def hints_of(model: str) -> tuple[str, ...]:
    """Names of variables that tell what the authors' checkpoints of a model call theirs; `Naming.names` goes by them.

    Raises:
      WeightsError: the authors have no such model.
    """
    if re.match(r"tf_mobilenetv[23]_", model):
        return (f"MobilenetV{model[len('tf_mobilenetv')]}/Conv/weights",)
    architecture = re.sub(r"_(ap|ns|ns_475)$", "", model.partition(".")[0])
    for root, ours in _MODELS.items():
        if architecture == ours.removesuffix("_ns"):
            if root.startswith("mnasnet"):
                return (f"{root}/mnas_stem/conv2d/kernel",)
            norm = "batch_normalization" if root.startswith("mixnet") else _TPU_NORM
            return f"{root}/stem/conv2d/kernel", f"{root}/stem/{norm}/gamma"
    raise WeightsError(
        f"the authors' TensorFlow code has no {model}: only tf_ models can be written as its checkpoints"
    )


def _averaged(arrays: Mapping[str, Stored], prefix: Path) -> dict[str, Stored]:
    averages = {name.removesuffix(_AVERAGE): array for name, array in arrays.items() if name.endswith(_AVERAGE)}
    plain = {name: array for name, array in arrays.items() if not name.endswith(_AVERAGE) and not _IGNORED.search(name)}
    if not averages:
        return plain
    # Running statistics are averages already, of which some training loops keep no second one.
    without = [name for name in plain if name not in averages and not re.search(r"/moving_(mean|variance)$", name)]
    if without:
        raise WeightsError(
            f"weights {str(prefix)!r} have moving averages of some variables only, not of {len(without)} "
            f"({without[0]}, ...): save all or none"
        )
    _log.warning("%s: took the moving averages of the variables", prefix)
    return plain | averages


def _names_of_tpu(plan: Plan, present: Iterable[str]) -> dict[str, str]:
    present = list(present)
    root = next((f"{match['root']}{match['mnas'] or ''}" for match in map(_STEM.match, present) if match), "")
    layers: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for match in map(_LAYER.match, present):
        if match:
            layers[match["scope"], match["kind"]][int(match["number"] or 0)] = match["layer"]
    counts: dict[tuple[str, str], int] = Counter()
    norm = _TPU_NORM if any(_TPU_NORM in name for name in present) else "batch_normalization"

    def name(layer: Layer) -> str:
        """The next layer of a kind: some of TensorFlow's layers count up in their scope, others in the whole graph."""
        module = f"blocks_{layer.place}" if layer.block else layer.role.replace("classifier", "head")
        scope, kind = f"{root}{module}" + ("/se" if layer.role in ("reduce", "gate") else ""), layer.kind
        place = counts[scope, kind]
        counts[scope, kind] += 1
        if place < len(layers[scope, kind]):
            return f"{scope}/{sorted(layers[scope, kind].items())[place][1]}"
        return f"{scope}/{norm if kind == 'batch_normalization' else kind}" + (f"_{place}" if place else "")

    return array_names(plan, name, LEAVES | {"depthwise_conv2d.kernel": "/depthwise_kernel"})


def _names_of_slim(plan: Plan, present: Iterable[str]) -> dict[str, str]:
    default = f"MobilenetV{3 if plan.pool_first else 2}"
    root = next((match["root"] for match in map(_SLIM.match, present) if match), default)
    ends = [*(block.name for block in plan.blocks if len(block.ops) == 1), ""]  # the head is in no block

    def name(layer: Layer) -> str:
        if layer.role in ("stem", "classifier"):
            return f"{root}/{'Conv' if layer.role == 'stem' else 'Logits/Conv2d_1c_1x1'}"
        if layer.role in ("single", "head"):
            return f"{root}/Conv_{1 + ends.index(layer.block)}"
        block = "expanded_conv" + (f"_{layer.place}" if layer.place else "")
        return f"{root}/{block}/{_SLIM_LAYERS.get(layer.role, layer.role)}"

    return array_names(plan, name, _SLIM_LEAVES)


TPU = Naming("checkpoint of tensorflow/tpu", _names_of_tpu, "tensorflow", background=True)
SLIM = Naming("checkpoint of slim", _names_of_slim, "tensorflow", background=True, conv_classifier=True)


def naming_of(names: Iterable[str]) -> Naming | None:
    """Whose names these are; None where nobody's we know."""
    names = list(names)
    if any(map(_STEM.match, names)):
        return TPU
    return SLIM if any(map(_SLIM.match, names)) else None
