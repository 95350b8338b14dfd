"""Vectors of data sets: what files hold, what an interruption leaves, and what the vectors show."""

import io

import numpy as np
import pytest
from PIL import Image

import jeffnet
from jeffnet.cli.main import main
from jeffnet.data.sources import ImageFolder
from jeffnet.errors import ConfigError, DatasetError, OutputError
from jeffnet.inference import embed
from jeffnet.inference.probe import nearest, probe, project
from jeffnet.inference.vectors import Vectors, read_vectors

CLASSES = ("bird", "cat", "dog")
ENDINGS = (".npz", ".npy", ".parquet")


@pytest.fixture(scope="module")
def classifier(tiny_model):
    return jeffnet.Classifier(jeffnet.create_model("tiny_flat", num_classes=3, rng=1), name="tiny_flat")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Eleven pictures for each of two splits; colours depend on the class, more than on the picture."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split in ("train", "val"):
        for label, (name, count) in enumerate(zip(CLASSES, (4, 4, 3), strict=True)):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 90, (30, 40, 3), np.uint8)
                pixels[..., label] += 120
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(embed, "_BLOCK", 4)


def _needs(ending):
    if ending == ".parquet":
        pytest.importorskip("pyarrow")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_has_the_vectors_names_and_labels_of_all_pictures(classifier, pictures, tmp_path, small_blocks, ending):
    _needs(ending)
    path = tmp_path / f"vectors{ending}"
    found = classifier.embed_data(pictures, path, batch_size=4, progress=False)
    source = ImageFolder(pictures, "val")
    expected = classifier.embed([source[index].image for index in range(11)])
    assert found.vectors.dtype == np.float32 and found.classes == CLASSES
    np.testing.assert_allclose(found.vectors, expected, rtol=1e-5, atol=1e-6)
    assert found.names == source.names and found.labels.tolist() == source.labels.tolist()
    assert found.index.tolist() == list(range(11))
    half = classifier.embed_data(pictures, tmp_path / f"half{ending}", batch_size=4, dtype="float16", progress=False)
    assert half.vectors.dtype == np.float16
    np.testing.assert_array_equal(half.vectors, found.vectors.astype(np.float16))
    beside = {".npy": {"vectors.labels.csv", "half.labels.csv"}}.get(ending, set())
    assert {each.name for each in tmp_path.iterdir()} == {f"vectors{ending}", f"half{ending}"} | beside


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_interrupted_run_goes_on_and_gives_the_same_file(
    classifier, pictures, tmp_path, small_blocks, monkeypatch, ending
):
    _needs(ending)
    whole, path = tmp_path / f"whole{ending}", tmp_path / f"vectors{ending}"
    run = {"batch_size": 2, "layer": "blocks.0", "progress": False}
    classifier.embed_data(pictures, whole, **run)
    network, batches = embed._network, []

    def stopping(*arguments):
        apply = network(*arguments)

        def stopped(batch):
            batches.append(batch["index"])
            if len(batches) == 4:
                raise KeyboardInterrupt
            return apply(batch)

        return stopped

    monkeypatch.setattr(embed, "_network", stopping)
    with pytest.raises(KeyboardInterrupt):
        classifier.embed_data(pictures, path, **run)
    assert not path.exists() and len(batches) == 4
    with pytest.raises(OutputError, match=r"interrupted run with another layer: remove it"):
        classifier.embed_data(pictures, path, batch_size=2, progress=False)
    batches += [None]
    classifier.embed_data(pictures, path, **run)
    # The first block, of two batches, was kept, and the third batch was lost.
    assert len(batches) == 5 + 4 and path.read_bytes() == whole.read_bytes()
    assert not path.with_name(f"{path.name}.blocks").exists()
    if ending != ".npy":  # which does not say its run
        assert len(classifier.embed_data(pictures, path, **run)) == 11 and len(batches) == 9
    with pytest.raises(OutputError, match="exists"):
        classifier.embed_data(pictures, path, batch_size=3, progress=False)
    assert path.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("what", ["images", "labels"])
def test_vectors_of_other_pictures_or_labels_are_not_taken_for_those_of_this_run(classifier, tmp_path, what):
    data, path = tmp_path / "data.npz", tmp_path / "vectors.npz"
    arrays = {"images": np.zeros((3, 32, 32, 3), np.uint8), "labels": np.array([0, 1, 2])}
    np.savez(data, **arrays)
    for _ in range(2):
        classifier.embed_data(data, path, progress=False)
    arrays[what] = arrays[what][[1, 2, 0]] + arrays[what].dtype.type(what == "images")
    np.savez(data, **arrays)
    with pytest.raises(OutputError, match="exists"):
        classifier.embed_data(data, path, progress=False)


def test_maps_are_averaged_and_pictures_that_cannot_be_decoded_left_out(classifier, pictures, tmp_path, small_blocks):
    import shutil

    data = tmp_path / "data"
    shutil.copytree(pictures / "val", data)
    (data / "cat" / "1.png").write_bytes(b"no picture")
    source = ImageFolder(data, "val")
    found = classifier.embed_data(
        data, tmp_path / "maps.npz", layer="blocks.0", batch_size=3, on_bad_image="skip", progress=False
    )
    assert found.run["skipped"] == [5] and found.index.tolist() == [*range(5), *range(6, 11)]
    assert "cat/1.png" not in found.names and len(found) == 10
    place = [info.name for info in classifier.feature_info].index("blocks.0")
    maps = classifier.features([source[index].image for index in found.index.tolist()], indices=(place,))[0]
    np.testing.assert_allclose(found.vectors, maps.mean(axis=(1, 2)), rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match=r"layer 'top' is not one of pre_logits, .*blocks\.0"):
        classifier.embed_data(data, tmp_path / "top.npz", layer="top", progress=False)
    large = classifier.embed_data(pictures, tmp_path / "large.npz", progress=False).vectors * 1e6
    with pytest.raises(ConfigError, match="exceed float16: store float32"):
        embed._stored(large, "float16")


def _vectors(seed, labels, classes=CLASSES, width=7):
    rng, labels = np.random.default_rng(seed), np.asarray(labels, np.int32)
    centres = np.random.default_rng(9).normal(size=(len(CLASSES), width))
    rows = centres[[CLASSES.index(classes[label]) for label in labels]]
    names = tuple(f"{index}.png" for index in range(len(labels)))
    noisy = (rows + rng.normal(size=rows.shape)).astype(np.float32)
    return Vectors(noisy, labels, np.arange(len(labels)), names, classes)


def test_scores_are_those_of_scikit_learn_and_classes_are_matched_by_name():
    pytest.importorskip("sklearn")
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(3)
    train = _vectors(0, rng.integers(0, 3, 90))
    test = _vectors(1, rng.integers(0, 2, 50), classes=("dog", "bird"))
    names = [test.classes[label] for label in test.labels]
    known = [train.classes[label] for label in train.labels]
    knn = KNeighborsClassifier(5, metric="cosine").fit(train.vectors, known).score(test.vectors, names)
    scaler = StandardScaler().fit(train.vectors)
    linear = LogisticRegression(max_iter=1000).fit(scaler.transform(train.vectors), known)
    found = probe(train, test, neighbours=5)
    assert found.knn == 100 * knn and found.linear == 100 * linear.score(scaler.transform(test.vectors), names)
    assert 40 < found.knn < 100
    with pytest.raises(DatasetError, match="no vectors to learn these classes from: eel"):
        probe(train, Vectors(test.vectors, test.labels, test.index, test.names, ("dog", "eel")))
    with pytest.raises(ConfigError, match="7 and 5 numbers are of different models"):
        probe(train, _vectors(0, [0, 1], width=5))


def test_neighbours_are_the_nearest_by_angle_and_never_the_picture_itself():
    pytest.importorskip("sklearn")
    vectors = _vectors(0, [0, 1, 2] * 4)
    vectors.vectors[3] = 5 * vectors.vectors[0]  # the same direction: at no distance, like the picture itself
    unit = vectors.vectors / np.linalg.norm(vectors.vectors, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -2)
    found = nearest(vectors, [0, 3, 7], 4)
    np.testing.assert_array_equal(found, np.argsort(-cosine, axis=1)[[0, 3, 7], :4])
    assert nearest(vectors, [2], 99).shape == (1, 11)
    for method in ("pca", "tsne"):
        assert project(vectors.vectors, method).shape == (12, 2)


def test_the_command_scores_and_draws(classifier, pictures, tmp_path, capsys):
    pytest.importorskip("sklearn")
    weights = tmp_path / "tiny.safetensors"
    classifier.save(weights)

    def run(*arguments):
        status = main(["embed", str(pictures), "--weights", str(weights), *map(str, arguments)])
        return status, *capsys.readouterr()

    assert run("--split", "train", "--output", tmp_path / "train.npz")[0] == 0
    options = ("--output", tmp_path / "val.npz", "--probe", tmp_path / "train.npz", "--plot", "pca", "--neighbours")
    status, out, err = run(*options, "--vector-dtype", "float16")
    assert status == 0, err
    scores = probe(read_vectors(tmp_path / "train.npz"), read_vectors(tmp_path / "val.npz"))
    assert f"10 nearest neighbours {scores.knn:.2f} %, linear probe {scores.linear:.2f} %" in out
    for name, form in {"val.neighbours.jpg": "JPEG", "val.pca.png": "PNG"}.items():
        assert Image.open(io.BytesIO((tmp_path / name).read_bytes())).format == form
    (tmp_path / "other.npz").write_bytes((tmp_path / "train.npz").read_bytes()[:500])
    (tmp_path / "full.npz.blocks").mkdir()
    (tmp_path / "full.npz.blocks" / "mine.txt").write_text("mine")
    for options, message in (
        (("--output", tmp_path / "v.txt"), "give a name that ends in .parquet, .npz or .npy"),
        (("--output", tmp_path / "v.npz", "--layer", "top"), "layer 'top' is not one of pre_logits"),
        (("--output", tmp_path / "v.npz", "--probe", tmp_path / "none.npz"), "does not exist: `jeffnet embed` writes"),
        (("--output", tmp_path / "v.npz", "--probe", tmp_path / "other.npz"), "is no file of vectors"),
        (("--output", tmp_path / "v.npz", "--probe", weights), "is no file of vectors: these end in"),
        (("--output", tmp_path / "full.npz"), "it has other files, remove it"),
    ):
        status, out, err = run(*options)
        assert status in (1, 2) and err.startswith("error: ") and err.count("\n") == 1, err
        assert message in err and not out
    assert not (tmp_path / "v.npz").exists() and (tmp_path / "full.npz.blocks" / "mine.txt").exists()
