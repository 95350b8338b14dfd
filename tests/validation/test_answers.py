"""What models answer on a data set: every picture once, whatever the batches, devices and hosts."""

import json
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jeffnet.validation.answers as answers_module
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.data.labels import subset_mask
from jeffnet.inference.forward import make_forward
from jeffnet.validation.answers import answer
from jeffnet.validation.metrics import score

IDENTITY = Preprocessing(1, 1.0, "bicubic", (0.0,), (1.0,))


class Rows:
    """A data set whose pictures are the logits: `(N, 1, 1, classes)` of uint8."""

    def __init__(self, logits: np.ndarray, labels: np.ndarray, batch_size: int, bad: tuple[int, ...] = ()) -> None:
        self.classes = tuple(str(number) for number in range(logits.shape[1]))
        self.num_examples = len(logits)
        self._logits, self._labels, self._size, self._bad = logits, labels, batch_size, bad

    def __len__(self) -> int:
        return -(-len(self._logits) // self._size)

    def __iter__(self):
        for start in range(0, len(self._logits), self._size):
            rows = np.arange(start, start + self._size)
            index = np.where(rows < len(self._logits), rows, -1)
            mask = (index >= 0) & ~np.isin(index, self._bad)
            yield {
                "image": np.where(mask[:, None, None, None], self._logits[index][:, None, None], 0),
                "label": np.where(mask, self._labels[index], 0).astype(np.int32),
                "mask": mask,
                "index": index.astype(np.int32),
            }

    def name(self, index: int) -> str:
        return f"row {index}"


def logits_as_they_are(variables, images):
    return jnp.asarray(images[:, 0, 0], jnp.float32) * variables


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (23, 8), dtype=np.uint8), rng.integers(0, 8, 23)


def expected(logits, labels):
    """By sorting, with NumPy."""
    order = np.argsort(-logits.astype(int), axis=1, kind="stable")
    return 100 * (order[:, 0] == labels).mean(), 100 * (order[:, :5] == labels[:, None]).any(1).mean()


@pytest.mark.parametrize("batch_size", [1, 4, 23, 64])
def test_every_picture_counts_once_whatever_the_batch(table, batch_size):
    logits, labels = table
    (answers,) = answer([(logits_as_they_are, 0.05)], Rows(logits, labels, batch_size))
    predictions, scores = answers.predictions, score(answers.predictions)
    np.testing.assert_array_equal(predictions.index, np.arange(23))
    np.testing.assert_array_equal(predictions.label, labels)
    np.testing.assert_array_equal(predictions.classes, np.argsort(-logits.astype(int), axis=1, kind="stable")[:, :5])
    assert (scores.examples, scores.top1, scores.top5) == (23, *map(pytest.approx, expected(logits, labels)))
    log_softmax = jax.nn.log_softmax(logits.astype(np.float32) * np.float32(0.05))
    np.testing.assert_allclose(predictions.loss, -log_softmax[np.arange(23), labels], rtol=1e-5)
    assert answers.images_per_second > 0 and not answers.skipped


def test_what_cannot_be_decoded_is_counted_and_named(table):
    logits, labels = table
    (answers,) = answer([(logits_as_they_are, 1.0)], Rows(logits, labels, 4, bad=(0, 7, 22)))
    assert answers.skipped == [0, 7, 22]
    kept = np.setdiff1d(np.arange(23), [0, 7, 22])
    np.testing.assert_array_equal(answers.predictions.index, kept)
    assert score(answers.predictions).top1 == pytest.approx(expected(logits[kept], labels[kept])[0])


def test_several_models_share_a_pass_and_answer_as_alone(table):
    logits, labels = table
    models = [(logits_as_they_are, 1.0), (logits_as_they_are, -1.0)]
    passes = []

    class Counted(Rows):
        def __iter__(self):
            passes.append(1)
            return super().__iter__()

    together = answer(models, Counted(logits, labels, 4))
    assert len(passes) == 1
    for model, answers in zip(models, together, strict=True):
        (alone,) = answer([model], Rows(logits, labels, 4))
        for name in ("index", "classes", "probabilities", "loss"):
            np.testing.assert_array_equal(getattr(alone.predictions, name), getattr(answers.predictions, name))


def test_labels_are_mapped_and_only_allowed_classes_chosen():
    logits = np.array([[9, 8, 1, 0], [0, 1, 9, 8]], np.uint8)
    labels, allowed = np.array([3, 1], np.int32), subset_mask("data", 4, np.array([1, 3]))
    (answers,) = answer(
        [(logits_as_they_are, 1.0)], Rows(logits, np.array([1, 0]), 2), labels=labels[::-1], mask=allowed
    )
    predictions = answers.predictions
    np.testing.assert_array_equal(predictions.label, [3, 1])
    np.testing.assert_array_equal(predictions.classes[:, 0], [1, 3])
    np.testing.assert_allclose(predictions.probabilities[0, :2], jax.nn.softmax(jnp.array([8.0, 0.0])), rtol=1e-6)
    np.testing.assert_allclose(predictions.loss, [8.0 + np.log1p(np.exp(-8)), 7.0 + np.log1p(np.exp(-7))], rtol=1e-6)


def test_not_a_number_is_never_right():
    def broken(variables, images):
        return jnp.full((len(images), 3), jnp.nan)

    (answers,) = answer([(broken, None)], Rows(np.zeros((4, 3), np.uint8), np.zeros(4, int), 2))
    assert score(answers.predictions).top1 == score(answers.predictions).top5 == 0


def test_the_most_confident_mistakes_are_kept_with_their_pixels(table):
    logits, labels = table
    (answers,) = answer([(logits_as_they_are, 0.05)], Rows(logits, labels, 4), mistakes=3)
    predictions = answers.predictions
    wrong = np.flatnonzero(~predictions.right1)
    best = wrong[np.argsort(-predictions.probabilities[wrong, 0], kind="stable")][:3]
    assert [mistake.index for mistake in answers.mistakes] == best.tolist()
    for mistake in answers.mistakes:
        np.testing.assert_array_equal(mistake.pixels[0, 0], logits[mistake.index])
        assert (mistake.label, mistake.guess) == (labels[mistake.index], predictions.classes[mistake.index, 0])


def test_reassessed_labels_may_be_several_or_none(table):
    logits, labels = table
    (answers,) = answer([(logits_as_they_are, 1.0)], Rows(logits, labels, 8))
    first = answers.predictions.classes[:, 0].tolist()
    real = [frozenset({guess, 99}) for guess in first]
    real[0], real[1] = frozenset(), frozenset({99})
    scores = score(answers.predictions, real)
    assert scores.examples == 22 and scores.top1 == pytest.approx(100 * 21 / 22)
    assert score(answers.predictions, [frozenset()] * 23).examples == 0


def test_a_forward_without_jit_is_the_same_function():
    images = np.random.default_rng(0).integers(0, 256, (2, 1, 1, 3), dtype=np.uint8)
    calls = []

    def apply(variables, x):
        calls.append(1)
        return x[:, 0, 0] * variables

    preprocessing = Preprocessing(1, 1.0, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    answers = {}
    for jit in (True, False):
        forward = make_forward(apply, preprocessing, jit)
        answers[jit] = [np.asarray(forward(2.0, images)) for _ in range(3)]
    np.testing.assert_allclose(answers[True], answers[False], rtol=1e-6)
    assert len(calls) == 1 + 3


def test_the_next_batches_are_read_before_the_results_of_the_last(table, monkeypatch):
    """So that the device has work while we wait for it; but no more than two ahead, or memory would fill."""
    events = []
    add = answers_module._PassResults.add
    monkeypatch.setattr(answers_module._PassResults, "add", lambda *a: events.append("result") or add(*a))

    class Told(Rows):
        def __iter__(self):
            for batch in super().__iter__():
                events.append("batch")
                yield batch

    answer([(logits_as_they_are, 1.0)], Told(*table, 4))
    assert events == ["batch"] * 3 + ["result", "batch"] * 3 + ["result"] * 3


# A data set in several processes, or on several devices of one: what each prints must be what a single one finds.
PROGRAM = textwrap.dedent("""
    import json, os, sys
    import jax, numpy as np
    count, index, port = map(int, sys.argv[1:])
    if count > 1:
        jax.distributed.initialize(f"localhost:{port}", count, index)
    from PIL import Image
    from jeffnet.arch.preprocessing import Preprocessing
    from jeffnet.data.batches import Shard
    from jeffnet.data.loaders import eval_loader
    from jeffnet.data.preprocess import EvalTransform
    from jeffnet.data.sources import Example
    from jeffnet.errors import ImageError
    from jeffnet.inference.forward import make_forward
    from jeffnet.validation.answers import answer
    from jeffnet.validation.metrics import score

    class Source:
        classes, channels = tuple("abc"), 3
        def __len__(self):
            return 11
        def __getitem__(self, index):
            if index == 7:
                raise ImageError("damaged")
            pixels = np.random.default_rng(index).integers(0, 256, (1, 1, 3), dtype=np.uint8)
            return Example(Image.fromarray(pixels), index % 3, self.name(index))
        def name(self, index):
            return str(index)

    preprocessing = Preprocessing(1, 1.0)
    forward = make_forward(lambda variables, x: x[:, 0, 0] * variables, preprocessing)
    shard = Shard(jax.process_index(), jax.process_count())
    loader = eval_loader(Source(), EvalTransform(preprocessing), 4, 1, shard=shard, on_bad_image="skip")
    (answers,) = answer([(forward, np.float32(1))], loader)
    scores = score(answers.predictions)
    print(json.dumps([scores.examples, scores.top1, scores.loss, answers.predictions.index.tolist(), answers.skipped]))
""")


def run_program(processes: int, devices: int) -> list:
    import socket

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices}"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(processes), str(index), str(port)],
            env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(processes)
    ]
    outputs = [process.communicate(timeout=120) for process in started]
    assert all(process.returncode == 0 for process in started), outputs
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


def test_several_hosts_and_several_devices_find_what_one_finds():
    ((examples, top1, loss, index, skipped),) = run_program(1, 1)
    assert (examples, skipped) == (10, [7]) and index == [0, 1, 2, 3, 4, 5, 6, 8, 9, 10]
    for found in (*run_program(2, 1), *run_program(1, 2)):
        assert found == [examples, top1, pytest.approx(loss, rel=1e-6), index, skipped]
