"""Files of Keras, which it writes with either backend itself: float64 logits equal to its own."""

import functools
import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import filelock
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jeffnet.arch.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from jeffnet.arch.summary import array_specs
from jeffnet.arch.zoo import list_models, model_plan, model_preprocessing
from jeffnet.checkpoints import write_checkpoint
from jeffnet.errors import EndingError, OutputError, WeightsError
from jeffnet.functional import ImageClassifier, to_variables
from jeffnet.ops.image import normalize
from jeffnet.weights.card import ModelCard
from jeffnet.weights.fit import fit
from jeffnet.weights.formats import hdf5
from jeffnet.weights.formats.hdf5 import with_checksums
from jeffnet.weights.formats.interface import Probe
from jeffnet.weights.formats.keras import KERAS, read, sniff
from jeffnet.weights.naming import to_canonical_names
from jeffnet.weights.start import start_arrays

h5py = pytest.importorskip("h5py")

TOLERANCE = 1e-10
COMPILER_OPTIONS = {"xla_backend_optimization_level": 0}
ENDINGS = (".keras", ".weights.h5", ".h5")
SCRIPT = Path(__file__).with_name("keras_reference.py")
# Our models and the size of the cases of the script; None where it is no square, and the zoo's holds.
CASES = {
    "b0": ("tf_efficientnet_b0", 65),
    "b1": ("tf_efficientnet_b1", 64),
    "b3": ("tf_efficientnet_b3", None),
    **{f"e2_{size}": (f"tf_efficientnetv2_{size}", 65) for size in ("b0", "b1", "b2", "b3", "s", "m", "l")},
    "v2_035": ("tf_mobilenetv2_035", 71),
    "v2_056": ("tf_mobilenetv2_056", None),
    "v2_130": ("tf_mobilenetv2_130", 64),
    "v3_small": ("tf_mobilenetv3_small_100", 75),
    "v3_small_075": ("tf_mobilenetv3_small_075", None),
    "v3_small_minimal": ("tf_mobilenetv3_small_minimal_100", 64),
    "v3_large": ("tf_mobilenetv3_large_100", 65),
    "v3_large_075": ("tf_mobilenetv3_large_075", 64),
    "v3_large_minimal": ("tf_mobilenetv3_large_minimal_100", 65),
}
FAST = {
    "tensorflow": ("b0", "e2_b0", "v2_035", "v3_small", "around", "heads"),
    "jax": (),
}
QUICK_LOGITS = {"tensorflow": ("e2_b0", "v2_035", "v3_small"), "jax": ()}
SMALL = "v2_035"


@pytest.fixture(autouse=True)
def in_this_process(request, monkeypatch):
    """HDF5 reads where the tests run, since a process for each file takes long, but for tests with `in_a_process`."""
    if "in_a_process" not in request.fixturenames:
        monkeypatch.setattr(
            hdf5, "_copy_by_process", lambda path, content, output, stems: hdf5.copy_layers(content, output, stems)
        )


@pytest.fixture
def in_a_process():
    """For tests of damage, and of what a process makes of whole files."""


@pytest.fixture(scope="session")
def reference(pytestconfig):
    """The folder with a case's files: made by the backend, all quick cases at once, and kept for the next run."""
    return functools.cache(functools.partial(_reference, pytestconfig.rootpath / ".pytest_cache" / "keras"))


def _reference(kept, backend, case):
    keras = importlib.util.find_spec("keras")
    if keras is None or importlib.util.find_spec("tensorflow") is None:
        pytest.skip("keras or tensorflow is not installed")
    version = Path(keras.origin).with_name("src") / "version.py"
    digest = hashlib.sha256(SCRIPT.read_bytes() + version.read_bytes()).hexdigest()[:16]
    folder = kept / digest / backend
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / "lock"):
        if not (folder / f"{case}.npz").exists():
            cases = FAST[backend] if case in FAST[backend] else (case,)
            random = ""
            if backend == "jax":  # what TensorFlow has drawn, as Keras itself reads it
                random = str(kept / digest / "tensorflow")
                for each in cases:
                    _reference(kept, "tensorflow", each)
            environment = {
                **os.environ,
                "KERAS_BACKEND": backend,
                "JAX_ENABLE_X64": "1",
                "XLA_FLAGS": "--xla_backend_optimization_level=0",
                "TF_CPP_MIN_LOG_LEVEL": "3",
            }
            command = [sys.executable, str(SCRIPT), str(folder), random, *cases]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
            assert done.returncode == 0, done.stderr[-3000:]
    return folder


def _fitted(file, num_classes=7, in_chans=3, model=None):
    plan = model_plan(model or file.model, num_classes=num_classes, in_chans=in_chans)
    return plan, fit(to_canonical_names(file.arrays, KERAS, plan), plan, source="the file", model="the model")


def _logits(plan, arrays, pictures, preprocessing):
    """In float64, from the pictures as they are."""
    with jax.enable_x64(True):
        model = ImageClassifier(plan, jnp.float64, jnp.float64)
        images = normalize(pictures, preprocessing.mean, preprocessing.std, jnp.float64)
        variables = to_variables({name: np.asarray(array, np.float64) for name, array in arrays.items()})
        return np.asarray(jax.jit(model.apply, compiler_options=COMPILER_OPTIONS)(variables, images))


def _error(ours, theirs):
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype == np.float64
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def _same(arrays, expected):
    assert arrays.keys() == expected.keys()
    for name, array in expected.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)


@pytest.mark.parametrize(
    ("backend", "case"),
    [
        pytest.param(backend, case, marks=() if case in QUICK_LOGITS[backend] else pytest.mark.slow)
        for backend in QUICK_LOGITS
        for case in CASES
    ],
)
def test_logits_equal_keras(backend, case, reference):
    """From the same pictures; the three kinds of file say the same of the model, and have the same arrays."""
    folder, (model, size) = reference(backend, case), CASES[case]
    expected = np.load(folder / f"{case}.npz")
    pictures = expected["pictures"]
    files = {ending: read(folder / f"{case}{ending}") for ending in ENDINGS}
    plan, arrays = _fitted(files[".keras"], in_chans=pictures.shape[-1])
    for ending, file in files.items():
        assert file.model == model
        in_zoo = model_preprocessing(f"{model}.in1k" if case.startswith("e2") else model)
        told = size if size and ending != ".weights.h5" else in_zoo.image_size
        assert file.preprocessing.image_size == told
        assert file.preprocessing.crop_pct == in_zoo.crop_pct
        assert file.preprocessing.interpolation == in_zoo.interpolation
        assert file.preprocessing.mean == files[".keras"].preprocessing.mean
        assert file.preprocessing.std == files[".keras"].preprocessing.std
        _same(_fitted(file, in_chans=pictures.shape[-1])[1], arrays)
    logits = _logits(plan, arrays, pictures, files[".keras"].preprocessing)
    assert _error(logits, expected["outputs"]) < TOLERANCE
    probabilities = np.asarray(jax.nn.softmax(logits))
    # Keras computed these in float32, which on some processors is off by more than 1e-5 in such a network.
    assert np.abs(probabilities - expected["probabilities"]).max() < 1e-3


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_model_of_keras_inside_another(ending, in_a_process, reference):
    """With a classifier of the user's own, trained with Adam, in float64."""
    folder = reference("tensorflow", "around")
    file = read(folder / f"around{ending}")
    assert file.model == "tf_mobilenetv2_035"
    plan, arrays = _fitted(file)
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float64)}
    if ending == ".keras":
        expected = np.load(folder / "around.npz")
        assert _error(_logits(plan, arrays, expected["pictures"], file.preprocessing), expected["outputs"]) < TOLERANCE
    else:
        _same(arrays, _fitted(read(folder / "around.keras"))[1])


@pytest.mark.slow
def test_published_weights_have_their_own_way_to_normalise(reference):
    """No top, and one layer more than the file of weights alone tells, which Keras makes for weights='imagenet'."""
    folder = reference("tensorflow", "published")
    expected = np.load(folder / "published.npz")
    for ending in (*ENDINGS, "_weights_alone.h5"):
        file = read(folder / f"published{ending}")
        assert file.model == "tf_efficientnet_b0"
        assert (file.preprocessing.mean, file.preprocessing.std) == (IMAGENET_MEAN, IMAGENET_STD)
        plan, arrays = _fitted(file, num_classes=0)
        if ending == ".keras":
            features = _logits(plan, arrays, expected["pictures"], file.preprocessing)
            assert _error(features, expected["outputs"]) < TOLERANCE


def _layers(file):
    """Layers of a file of Keras 3 by the names that they say they have."""
    return {group["vars"].attrs["name"]: group["vars"] for group in file["layers"].values()}


def _changed_weights(path, into, change):
    """A copy of a file of weights, or of an archive with one, with a change."""
    shutil.copy(path, into)
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        content = io.BytesIO(members["model.weights.h5"])
        with h5py.File(content, "r+") as file:
            change(file)
        with zipfile.ZipFile(into, "w") as archive:
            for name, member in {**members, "model.weights.h5": content.getvalue()}.items():
                archive.writestr(name, member)
    else:
        with h5py.File(into, "r+") as file:
            change(file)
    return into


@pytest.mark.parametrize(
    ("mean", "variance", "alone", "told"),
    [
        (
            IMAGENET_MEAN,
            IMAGENET_STD,
            (IMAGENET_MEAN, IMAGENET_STD),
            (IMAGENET_MEAN, np.sqrt(np.float32(IMAGENET_STD), dtype=float)),
        ),
        (IMAGENET_MEAN, np.square(IMAGENET_STD), (IMAGENET_MEAN, IMAGENET_STD), (IMAGENET_MEAN, IMAGENET_STD)),
        ((0, 0, 0), (1, 1, 1), ((0, 0, 0), (1, 1, 1)), ((0, 0, 0), (1, 1, 1))),
        ((0.25, 0.5, 0.75), (4, 0.0625, 0), ((0.25, 0.5, 0.75), (2, 0.25, 1e-7)), ((0.25, 0.5, 0.75), (2, 0.25, 1e-7))),
    ],
    ids=["published", "our own", "fresh", "others"],
)
def test_mean_and_std(mean, variance, alone, told, reference, tmp_path):
    """What is published has in place of the variance its root, which only the network's description can contradict."""

    def change(file):
        layer = next(layer for layer in _layers(file).values() if len(layer) == 3)
        layer["0"][...], layer["1"][...] = mean, variance

    for ending, expected in ((".weights.h5", alone), (".keras", told)):
        path = reference("tensorflow", "b0") / f"b0{ending}"
        found = read(_changed_weights(path, tmp_path / path.name, change)).preprocessing
        np.testing.assert_allclose((found.mean, found.std), expected, rtol=1e-15)


@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
@pytest.mark.parametrize("case", ["b0", "v2_035", "v3_small"])
@pytest.mark.parametrize("container", ["layers", "_layer_checkpoint_dependencies"])
def test_layers_that_are_only_counted(container, case, ending, reference, tmp_path):
    """As earlier versions of Keras 3 wrote them, and Keras 2.13 into another group."""

    def change(file):
        for layer in file["layers"].values():
            del layer["vars"].attrs["name"]
        file.move("layers", container) if container != "layers" else None

    path = reference("tensorflow", case) / f"{case}{ending}"
    file = read(_changed_weights(path, tmp_path / path.name, change))
    assert "conv2d_1/kernel" in file.arrays and file.model == CASES[case][0]
    _same(_fitted(file)[1], _fitted(read(path))[1])


@pytest.mark.parametrize("case", ["b0", "v2_035", "v3_small"])
@pytest.mark.parametrize("parts", [1, 3])
def test_weights_alone_as_before_keras_3(parts, case, reference, tmp_path):
    """In the names of those days; a list that is too long for one attribute is in several."""
    path = reference("tensorflow", case) / f"{case}.h5"
    old = {"conv": "Conv", "conv_1": "Conv_1", "conv_2": "Conv_2", "logits": "Logits"} if case == "v3_small" else {}

    def renamed(name):
        if case == "v2_035":
            return "Logits" if name == "predictions" else name
        if case == "b0":
            return name
        name, norm = (name.removesuffix("_bn"), "/BatchNorm") if name.endswith("_bn") else (name, "")
        found = re.fullmatch(r"(expanded_conv(?:_\d+)?)_([a-z]\w+)", name)
        where = found and found[2].replace("squeeze_excite_conv", "squeeze_excite/Conv")
        return (f"{found[1]}/{where}" if found else old.get(name, name)) + norm

    with h5py.File(path) as whole, h5py.File(tmp_path / "a.h5", "w") as file:
        root = whole["model_weights"]
        names = [renamed(name) for name in root.attrs["layer_names"]]
        for number, part in enumerate(np.array_split(np.array(names, "S"), parts)):
            file.attrs["layer_names" if parts == 1 else f"layer_names{number}"] = part
        for name in root.attrs["layer_names"]:
            group, weights = file.require_group(renamed(name)), []
            for weight in root[name].attrs["weight_names"]:
                leaf = weight.rpartition("/")[2]
                depthwise = "depthwise_" if leaf == "kernel" and re.search("dwconv$|depthwise$", name) else ""
                weights.append(f"{renamed(name)}/{depthwise}{leaf}:0")
                group[weights[-1]] = root[name][weight][()]
            group.attrs["weight_names"] = np.array(weights, "S")
    file = read(tmp_path / "a.h5")
    assert file.model == CASES[case][0]
    _same(_fitted(file)[1], _fitted(read(path))[1])


def test_bfloat16(in_a_process, reference, tmp_path):
    path = reference("tensorflow", SMALL) / f"{SMALL}.weights.h5"

    def change(file):
        layer = _layers(file)["Conv1"]
        values = layer["0"][()].astype(jnp.bfloat16)
        del layer["0"]
        layer.create_dataset("0", data=values).attrs["dtype"] = "bfloat16"

    kernel = _fitted(read(_changed_weights(path, tmp_path / "a.weights.h5", change)))[1]["conv_stem.kernel"]
    assert kernel.dtype == jnp.bfloat16
    np.testing.assert_array_equal(kernel, _fitted(read(path))[1]["conv_stem.kernel"].astype(jnp.bfloat16))


def test_arrays_can_be_read_when_the_file_is_gone(in_a_process, reference, tmp_path):
    for ending in ENDINGS:
        path = shutil.copy(reference("tensorflow", SMALL) / f"{SMALL}{ending}", tmp_path / f"a{ending}")
        arrays = read(Path(path)).arrays
        os.remove(path)
        assert arrays["Conv1/kernel"].shape == arrays["Conv1/kernel"].read().shape == (3, 3, 3, 16)


def _external_link(file, group):
    group["0"] = h5py.ExternalLink("other.h5", "/secret")


def _soft_link(file, group):
    group["0"] = h5py.SoftLink("/elsewhere")


def _external_dataset(file, group):
    group.create_dataset("0", (3, 3, 3, 16), "f4", external=[("secret.bin", 0, h5py.h5f.UNLIMITED)])


def _virtual_dataset(file, group):
    layout = h5py.VirtualLayout((3, 3, 3, 16), "f4")
    layout[...] = h5py.VirtualSource("other.h5", "secret", (3, 3, 3, 16))
    group.create_virtual_dataset("0", layout)


@pytest.mark.parametrize("pointer", [_external_link, _soft_link, _external_dataset, _virtual_dataset])
@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
def test_a_file_that_points_to_another_is_refused(ending, pointer, in_a_process, reference, tmp_path):
    """h5py itself would follow: the values would be those of the other file."""
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["secret"] = np.ones((3, 3, 3, 16), np.float32)
    (tmp_path / "secret.bin").write_bytes(bytes(4 * 27 * 16))

    def change(file):
        layer = _layers(file)["Conv1"]
        file["elsewhere"] = layer["0"]
        del layer["0"]
        pointer(file, layer)

    path = _changed_weights(reference("tensorflow", SMALL) / f"{SMALL}{ending}", tmp_path / f"a{ending}", change)
    with pytest.raises(WeightsError, match=r"refused$") as raised:
        read(path)
    assert str(path) in str(raised.value)


def test_a_group_that_contains_itself_ends(reference, tmp_path):
    def change(file):
        file["layers/conv2d/layers"] = file["layers"]

    path = reference("tensorflow", SMALL) / f"{SMALL}.weights.h5"
    file = read(_changed_weights(path, tmp_path / "a.weights.h5", change))
    _same(_fitted(file)[1], _fitted(read(path))[1])


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("share", [0.0001, 0.1, 0.5, 0.99])
def test_a_truncated_file(share, ending, reference, tmp_path):
    content = (reference("tensorflow", SMALL) / f"{SMALL}{ending}").read_bytes()
    path = tmp_path / f"a{ending}"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(WeightsError) as raised:
        read(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_a_changed_byte_in_an_archive(in_a_process, reference, tmp_path):
    content = bytearray((reference("tensorflow", SMALL) / f"{SMALL}.keras").read_bytes())
    content[len(content) // 2] ^= 0xFF
    path = tmp_path / "a.keras"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="not a whole file of Keras: Bad CRC-32"):
        read(path)


def test_a_flipped_bit_in_an_array_with_a_checksum_is_noticed(reference, tmp_path):
    """HDF5 itself would not: Keras writes no checksums, but what we write of it has them."""
    path = tmp_path / "a.weights.h5"
    path.write_bytes(with_checksums((reference("tensorflow", SMALL) / f"{SMALL}.weights.h5").read_bytes()))
    file = read(path)
    assert file.checksums and file.arrays["Conv1/kernel"].read().shape == (3, 3, 3, 16)
    with h5py.File(path) as whole:
        kernel = _layers(whole)["Conv1"]["0"]
        place = kernel.id.get_offset() + kernel.nbytes // 2
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"are damaged: Conv1/kernel is not what was written"):
        read(path).arrays["Conv1/kernel"].read()


def test_an_archive_that_is_far_too_long(reference, tmp_path, monkeypatch):
    path = shutil.copy(reference("tensorflow", SMALL) / f"{SMALL}.keras", tmp_path / "a.keras")
    monkeypatch.setattr("jeffnet.weights.formats.keras._LONGEST", 1000)
    with pytest.raises(WeightsError, match=r"its config.json takes more than 1,000 bytes"):
        read(path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("zeros", "w") as file:
        for _ in range(100):
            file.write(bytes(2**20))
    monkeypatch.setattr("jeffnet.weights.archive.MOST_TIMES", 10)
    with pytest.raises(WeightsError, match=r"would unpack to .*: refused"):
        read(path)


@pytest.mark.parametrize("death", ["os.kill(os.getpid(), 11)", "raise MemoryError", "os._exit(7)", "print('h5py')"])
def test_a_death_of_hdf5_is_an_error_and_no_end(death, in_a_process, reference, tmp_path, monkeypatch):
    """It reads in a process of its own, where what it prints is not mistaken for arrays."""
    (tmp_path / "h5py.py").write_text(f"import os\n{death}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = reference("tensorflow", SMALL) / f"{SMALL}.weights.h5"
    with pytest.raises(WeightsError, match=f"{re.escape(str(path))}' are not a whole file of Keras: ."):
        read(path)


@pytest.mark.parametrize("config", [b"{", b"[]", b'{"class_name": 3}', b'{"class_name": "A", "config": {"layers": 5}}'])
def test_a_broken_description(config, reference, tmp_path):
    with zipfile.ZipFile(reference("tensorflow", SMALL) / f"{SMALL}.keras") as archive:
        weights = archive.read("model.weights.h5")
    with zipfile.ZipFile(tmp_path / "a.keras", "w") as archive:
        archive.writestr("config.json", config)
        archive.writestr("model.weights.h5", weights)
    with pytest.raises(WeightsError, match="not a whole file of Keras"):
        read(tmp_path / "a.keras")


def test_a_lambda_in_a_description_is_only_read(reference, tmp_path):
    """Keras would unmarshal its code; that of this one would raise even then."""
    with zipfile.ZipFile(reference("tensorflow", SMALL) / f"{SMALL}.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    code = {"class_name": "__lambda__", "config": {"code": "bm90IGNvZGU=", "defaults": None, "closure": None}}
    config["config"]["layers"].append({"class_name": "Lambda", "config": {"name": "lambda", "function": code}})
    with zipfile.ZipFile(tmp_path / "a.keras", "w") as archive:
        for name, member in {**members, "config.json": json.dumps(config).encode()}.items():
            archive.writestr(name, member)
    with pytest.raises(WeightsError, match=r"its layer 'lambda' \(Lambda\) makes something else"):
        read(tmp_path / "a.keras")


@pytest.mark.parametrize(
    "head", ["softmax", "linear", "activation", "rescaled", "twice", "normalized", "augmented", "headless"]
)
def test_what_is_around_the_network_is_followed(head, reference):
    """Other pixels, and whatever changes nothing: the same numbers, from the pictures as they are."""
    folder = reference("tensorflow", "heads")
    expected = np.load(folder / "heads.npz")
    file = read(folder / f"heads_{head}.keras")
    plan, arrays = _fitted(file, num_classes=0 if head == "headless" else 7)
    outputs = _logits(plan, arrays, expected["pictures"], file.preprocessing)
    if head not in ("linear", "headless"):
        outputs = np.exp(outputs) / np.exp(outputs).sum(-1, keepdims=True)
    assert _error(outputs, expected[head]) < TOLERANCE


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("max", "its layer 'culprit' .GlobalMaxPooling2D. makes something else"),
        ("sigmoid", "its layer 'culprit' has a single output"),
        ("sigmoids", "its layer 'culprit' .Dense. ends in the activation 'sigmoid'"),
        ("sigmoid_after", "its layer 'culprit' .Activation. ends in the activation 'sigmoid'"),
        ("two_dense", "its layer 'culprit'.* is none of the network's"),
        ("norm", "its layer 'culprit' is none of the network's"),
        ("relu", "its layer 'culprit' .ReLU. makes something else"),
        ("twice_softmax", "its layer 'culprit' .Softmax. makes something else"),
        ("unpooled", "its layer 'culprit' .Flatten. makes something else"),
        ("output_scaled", "its layer 'culprit' .Rescaling. makes something else"),
        ("resized", "its layer 'culprit' .Resizing. stands before the network"),
        ("negative", "its layer 'rescaling.*' .Rescaling. leaves no positive scale"),
    ],
)
def test_what_would_compute_something_else_is_refused_by_name(head, message, reference):
    path = reference("tensorflow", "heads") / f"heads_{head}.keras"
    with pytest.raises(WeightsError, match=f"{re.escape(str(path))}.* that Keras computes otherwise: {message}"):
        read(path)


@pytest.mark.parametrize("head", ["two_dense", "norm", "sigmoid"])
def test_so_is_a_file_of_weights_alone_where_it_tells(head, reference):
    with pytest.raises(WeightsError, match="that Keras computes otherwise: its layer"):
        read(reference("tensorflow", "heads") / f"heads_{head}.weights.h5")


@pytest.mark.parametrize("layers", [("dense",), ()])
def test_another_network_is_told_as_such(layers, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for layer in layers:
            file[f"layers/{layer}/vars/0"] = np.ones((2, 3))
    with pytest.raises(WeightsError, match=r"of none of the models of keras.applications .* Conv1, conv, stem_conv"):
        read(tmp_path / "a.h5")


def test_mobilenetv3_without_its_top_is_told_as_such(reference, tmp_path):
    """In Keras, its last convolution is gone with the classifier."""

    def change(file):
        for name, group in list(file["layers"].items()):
            if group["vars"].attrs["name"] in ("conv_2", "logits"):
                del file["layers"][name]

    path = reference("tensorflow", "v3_small") / "v3_small.weights.h5"
    file = read(_changed_weights(path, tmp_path / "a.weights.h5", change))
    assert file.model is None
    with pytest.raises(WeightsError, match="build it with include_top=True"):
        _fitted(file, model="tf_mobilenetv3_small_100")


def test_a_layer_too_many_is_refused(reference, tmp_path):
    def change(file):
        file["layers/conv2d_99/vars/0"] = np.ones((1, 1, 2, 3))

    path = reference("tensorflow", SMALL) / f"{SMALL}.weights.h5"
    with pytest.raises(WeightsError, match="its layer 'conv2d_99' is none of the network's"):
        read(_changed_weights(path, tmp_path / "a.weights.h5", change))


# The pruned EfficientNets have the layers of B1 to B3, of other widths, which only a file's shapes tell.
OTHERS = [name for name in list_models() if not re.match(r"tf_(eff|mobilenet)|efficientnet_b[123]_pruned", name)]


@pytest.mark.parametrize("model", OTHERS)
def test_a_plan_that_keras_does_not_have(model):
    with pytest.raises(WeightsError, match="begins with tf_"):
        KERAS.names(model_plan(model), ())


@pytest.mark.parametrize("model", list_models("tf_efficientnet_lite?") + list_models("tf_efficientnet_e?"))
def test_nor_efficientnets_for_other_processors(model):
    with pytest.raises(WeightsError, match="begins with tf_"):
        KERAS.names(model_plan(model), ())


def test_which_files_are_of_keras():
    for probe in (b"\x89HDF\r\n\x1a\n\0",), (b"PK\x03\x04", ("metadata.json", "config.json", "model.weights.h5")):
        assert sniff(Probe(Path("a"), *probe))
    for probe in (b"PK\x03\x04", ("config.json",)), (b"PK\x03\x04",), (b"",):
        assert not sniff(Probe(Path("a"), *probe))


def test_without_h5py_the_message_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "a.h5").touch()
    with pytest.raises(WeightsError, match="pip install h5py"):
        read(tmp_path / "a.h5")


def test_reading_loads_neither_keras_nor_tensorflow(reference):
    path = reference("tensorflow", SMALL) / f"{SMALL}.keras"
    script = f"""
import sys
from pathlib import Path
from jeffnet.weights.formats.keras import read
assert "h5py" not in sys.modules
assert read(Path({str(path)!r})).model
print({{"keras", "tensorflow", "jax"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert "keras" not in done.stdout and "tensorflow" not in done.stdout


# Writes with our function, then has Keras read it back: in a process of its own, for its global state.
WRITE = """
import sys
from pathlib import Path
import numpy as np
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.errors import JeffnetError
from jeffnet.checkpoints import write_checkpoint
from jeffnet.weights.card import ModelCard

folder, model, num_classes, in_chans = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
mean, std = eval(sys.argv[5])
arrays = dict(np.load(folder / "arrays.npz"))
card = ModelCard(model, num_classes, in_chans, Preprocessing(48, 0.9, "bicubic", mean, std))
write_checkpoint(folder / "a.keras", arrays, card)
write_checkpoint(folder / "a.weights.h5", arrays, card)
import keras
loaded = keras.models.load_model(folder / "a.keras")
pictures = np.load(folder / "pictures.npy")
outputs = [loaded.predict(pictures, verbose=0)]
loaded.load_weights(folder / "a.weights.h5")
outputs.append(loaded.predict(pictures, verbose=0))
np.savez(folder / "outputs.npz", *outputs)
for path, size in ((folder / "b.keras", 8), (folder / "missing" / "a.keras", 48)):
    card = ModelCard(model, num_classes, in_chans, Preprocessing(size, 0.9, "bicubic", mean, std))
    try:
        write_checkpoint(path, arrays, card)
    except JeffnetError as error:
        print(error)
"""
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
OF_V2 = ((128 / 255,) * 3,) * 2
OWN = ((0.1, 0.2, 0.3), (0.6, 0.7, 0.8))


@pytest.mark.parametrize(
    ("model", "num_classes", "in_chans", "moments", "backend"),
    [
        ("tf_mobilenetv3_small_minimal_100", 5, 3, HALF, "tensorflow"),
        pytest.param("tf_efficientnet_b0", 5, 3, (IMAGENET_MEAN, IMAGENET_STD), "tensorflow", marks=pytest.mark.slow),
        pytest.param("tf_efficientnet_b0.ns_jft_in1k", 0, 3, OWN, "tensorflow", marks=pytest.mark.slow),
        pytest.param("tf_efficientnet_b1.ap_in1k", 5, 1, OWN, "tensorflow", marks=pytest.mark.slow),
        pytest.param("tf_efficientnetv2_b0", 5, 3, (IMAGENET_MEAN, IMAGENET_STD), "tensorflow", marks=pytest.mark.slow),
        pytest.param("tf_efficientnetv2_s", 0, 3, OF_V2, "tensorflow", marks=pytest.mark.slow),
        pytest.param("tf_mobilenetv2_056", 5, 3, HALF, "tensorflow", marks=pytest.mark.slow),
        pytest.param("tf_mobilenetv2_100", 0, 3, HALF, "tensorflow", marks=pytest.mark.slow),
        pytest.param("tf_mobilenetv3_large_075", 5, 3, HALF, "tensorflow", marks=pytest.mark.slow),
        pytest.param("tf_mobilenetv2_035", 5, 3, HALF, "jax", marks=pytest.mark.slow),
    ],
)
def test_keras_reads_what_is_written(model, num_classes, in_chans, moments, backend, tmp_path):
    """As a whole model and as weights; what we read of it are the same arrays to the bit, and the same mean and std."""
    if importlib.util.find_spec("keras") is None or importlib.util.find_spec(backend) is None:
        pytest.skip(f"keras or {backend} is not installed")
    plan = model_plan(model, num_classes=num_classes, in_chans=in_chans)
    rng = np.random.default_rng(0)
    arrays = {
        # In sum the same for every output, since a network of many layers would overflow.
        name: array + (rng.uniform(0.01, 0.02, array.shape) / np.prod(array.shape[:-1])).astype(np.float32)
        for name, array in start_arrays(plan, 0, np.float32).items()
    }
    np.savez(tmp_path / "arrays.npz", **arrays)
    pictures = rng.integers(0, 256, (2, 48, 48, in_chans), np.uint8)
    # MobileNetV2 alone has its preprocessing outside of the network.
    np.save(
        tmp_path / "pictures.npy", pictures / np.float32(127.5) - 1 if "mobilenetv2" in model else pictures.astype("f4")
    )
    command = [sys.executable, "-c", WRITE, tmp_path, model, str(num_classes), str(in_chans), repr(moments)]
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    made = {"a.keras", "a.weights.h5", "arrays.npz", "pictures.npy", "outputs.npz"}
    assert {path.name for path in tmp_path.iterdir()} == made
    too_small, nowhere = done.stdout.splitlines()
    assert "at least 32x32" in too_small and "No such file" in nowhere
    for ending in (".keras", ".weights.h5"):
        file = read(tmp_path / f"a{ending}")
        assert file.model == re.sub("_ns|_ap", "", model)
        assert file.preprocessing.image_size == (48 if ending == ".keras" else model_preprocessing(model).image_size)
        expected = [(np.mean(moment),) for moment in moments] if in_chans == 1 else moments
        np.testing.assert_allclose((file.preprocessing.mean, file.preprocessing.std), expected, rtol=1e-7)
        _same(_fitted(file, num_classes, in_chans)[1], arrays)
    logits = _logits(plan, arrays, pictures, file.preprocessing)
    ours = np.asarray(jax.nn.softmax(logits)) if num_classes else logits
    for outputs in np.load(tmp_path / "outputs.npz").values():
        np.testing.assert_allclose(outputs, ours, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("path", "model", "options", "message"),
    [
        ("a.h5", "tf_mobilenetv2_100", {}, r"name it \*.keras or \*.weights.h5"),
        ("a.keras", "mobilenetv2_100", {}, "has no mobilenetv2_100"),
        ("a.keras", "tf_efficientnet_b8", {}, "has no tf_efficientnet_b8"),
        ("a.keras", "tf_mobilenetv2_100", {"global_pool": "max"}, "with pooling 'max'"),
        ("a.keras", "tf_mobilenetv2_100", {"output_stride": 16}, "output stride 16"),
        ("a.keras", "tf_mobilenetv3_small_100", {"num_classes": 0}, "without a classifier"),
        ("a.keras", "tf_mobilenetv2_100", {"preprocessing": Preprocessing()}, "mean and standard deviation 0.5"),
        ("a.weights.h5", "tf_efficientnetv2_s", {}, r"takes pixels with mean \(0.5, 0.5, 0.5\) .*: name it \*.keras"),
        ("a.keras", "tf_efficientnetv2_xl", {}, "EfficientNetV2 but XL"),
        ("a.keras", "tf_efficientnet_b0", {"in_chans": 4}, "does not fit images of 4 channels: give 4 values"),
    ],
)
def test_what_cannot_be_written(path, model, options, message, tmp_path):
    """Which is known before Keras is imported."""
    card = {"num_classes": 5, "in_chans": 3, "preprocessing": model_preprocessing(model), **options}
    card = ModelCard(model, **card)
    arrays = {name: np.zeros(spec.shape, np.float32) for name, spec in array_specs(card.plan()).items()}
    with pytest.raises(EndingError if path == "a.h5" else OutputError, match=message):
        write_checkpoint(tmp_path / path, arrays, card)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TensorFlow's arrays
def test_other_constants_of_efficientnetv2_are_in_a_whole_model(tmp_path):
    """Those of timm's weights are 127.5 / 255, Keras's own 128 / 255."""
    pytest.importorskip("keras")
    name = "tf_efficientnetv2_b0"
    card = ModelCard(name, 5, 3, replace(model_preprocessing(name), image_size=64, mean=HALF[0], std=HALF[1]))
    arrays = start_arrays(card.plan(), 0, np.float32)
    write_checkpoint(tmp_path / "a.keras", arrays, card)
    file = read(tmp_path / "a.keras")
    assert file.model == name and file.preprocessing.image_size == 64
    np.testing.assert_allclose((file.preprocessing.mean, file.preprocessing.std), HALF, rtol=1e-12)
    _same(_fitted(file, num_classes=5)[1], {name: np.asarray(array) for name, array in arrays.items()})


def test_without_keras_the_message_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(OutputError, match=r"pip install keras h5py"):
        write_checkpoint(tmp_path / "a.keras", {}, ModelCard("tf_efficientnet_b0", 5, 3, Preprocessing()))
