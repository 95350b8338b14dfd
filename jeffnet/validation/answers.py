"""One pass of several models over labelled pictures: every picture is counted exactly once."""

import contextlib
import functools
import heapq
import io
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jeffnet.data.batches import EvalBatch, EvalLoader
from jeffnet.inference.forward import Forward
from jeffnet.ops.loss import binary_cross_entropy, cross_entropy, in_top, regression_loss
from jeffnet.parallel.distributed import gathered_bytes
from jeffnet.parallel.mesh import Layout, local_rows, make_layout
from jeffnet.system.progress import progress_bar
from jeffnet.validation.metrics import Predictions, VectorPredictions

# Batches queued on the device: enough that it never waits for the host to read a result.
IN_FLIGHT = 2
_TOP = 5


@dataclass(frozen=True)
class Mistake:
    """A misclassified picture, with its pixels as the model saw them, before normalisation.

    `explained` is a picture of what it looked at, uint8 `(H, W, 3)`, where that is wanted.
    """

    confidence: float
    index: int
    label: int
    guess: int
    pixels: np.ndarray
    explained: np.ndarray | None = None


@dataclass
class Answers:
    """Everything that one pass over the data yields for one model.

    Attributes:
      predictions: of every example that could be decoded.
      mistakes: the most confident ones, the most confident first.
      skipped: sorted numbers of the examples that could not be decoded.
      seconds: time from the second batch on, so that compilation does not count; with a single batch, its time.
      images: pictures processed in this time.
    """

    predictions: Predictions | VectorPredictions
    mistakes: list[Mistake] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    seconds: float = 0.0
    images: int = 0

    @property
    def images_per_second(self) -> float:
        """Throughput; 0 if nothing was read."""
        return self.images / self.seconds if self.seconds else 0.0


def answer(
    models: Sequence[tuple[Forward, Any]],
    batches: EvalLoader,
    *,
    task: str = "single_label",
    labels: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    mistakes: int = 0,
    progress: bool = False,
    layout: Layout | None = None,
    before_batch: Callable[[int], None] = lambda number: None,
    in_flight: int = IN_FLIGHT,
) -> list[Answers]:
    """Predictions of several models from one pass over the data, in the order of the models.

    The next batch is read and sent while the device computes. Several devices share each batch. Every host reads its
    shard, and all hosts return the same.

    Args:
      models: functions from `jeffnet.inference.forward.make_forward`, with their variables.
      batches: one pass over the data set.
      task: one of `jeffnet.arch.tasks.TASKS`. But for a single label, `mask` and `mistakes` have no meaning.
      labels: int `(L,)`, the model's class for each label of the data set; None if they are the same. But for a single
        label float `(L, classes)`, 1 where they are the same.
      mask: bool `(classes,)`, the classes that may be chosen; None for all.
      mistakes: number of the most confident mistakes to keep, among the pictures of this host.
      progress: show how far it is, with the scores of the first model.
      layout: devices to use; None uses all of them, including those of other hosts.
      before_batch: called with the number of every batch; it may raise, to stop.
      in_flight: batches queued on the device; 0 for models that compute on the host, whose time would be another's.
    """
    results = [_PassResults(mistakes, task) for _ in models]
    skipped: list[int] = []
    clock = _Clock()
    layout = layout or make_layout()
    place, shared = _placement(layout, [variables for _, variables in models])
    answers_of = _make_answers(layout, task)
    allowed = None if mask is None else jnp.asarray(mask)
    with _bar(batches, len(models), progress) as bar:
        waiting: deque[tuple[EvalBatch, np.ndarray, list[Any]]] = deque()

        def collect() -> None:
            batch, targets, outputs = waiting.popleft()
            for result, output in zip(results, outputs, strict=True):
                result.add(batch, targets, output)
            counted = int(batch["mask"].sum())
            clock.tick(counted)
            bar.update(counted)
            bar.set_postfix(results[0].running(), refresh=False)

        for number, batch in enumerate(batches):
            before_batch(number)
            targets = batch["label"] if labels is None else _mapped(batch["label"], labels)
            skipped += batch["index"][~batch["mask"] & (batch["index"] >= 0)].tolist()
            images, placed = place(batch["image"]), place(targets)
            outputs = [
                answers_of(forward(variables, images), placed, allowed)
                for (forward, _), variables in zip(models, shared, strict=True)
            ]
            waiting.append((batch, targets, outputs))
            if len(waiting) > in_flight:
                collect()
        while waiting:
            collect()
    if jax.process_count() > 1:
        skipped = _of_all_hosts({"index": np.array(skipped, np.int32)})["index"].tolist()
    return [
        Answers(result.predictions(), result.mistakes(), sorted(skipped), clock.seconds, clock.images)
        for result in results
    ]


def _mapped(label: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Labels of a data set as those of the model."""
    return labels[label] if label.ndim == 1 else (label @ labels).astype(np.float32)


def _answers(logits: Array, labels: Array, mask: Array | None) -> dict[str, Array]:
    if mask is not None:
        # Not minus infinity, whose product with zero is NaN.
        logits = jnp.where(mask, logits, -1e30)
    probabilities, classes = jax.lax.top_k(jax.nn.softmax(logits), min(_TOP, logits.shape[-1]))
    return {
        "classes": classes,
        "probabilities": probabilities,
        "loss": cross_entropy(logits, labels),
        "right1": in_top(logits, labels, 1),
        "right5": in_top(logits, labels, _TOP),
    }


def _answers_of_labels(logits: Array, labels: Array, mask: Array | None) -> dict[str, Array]:
    return {"outputs": logits, "loss": binary_cross_entropy(logits, labels)}


def _answers_of_numbers(outputs: Array, labels: Array, mask: Array | None) -> dict[str, Array]:
    return {"outputs": outputs, "loss": regression_loss(outputs, labels, "l2")}


_KINDS = {
    "single_label": (_answers, Predictions),
    "multi_label": (_answers_of_labels, VectorPredictions),
    "regression": (_answers_of_numbers, VectorPredictions),
}


@functools.cache  # a new function would be compiled again in every epoch
def _make_answers(layout: Layout, task: str) -> Callable[[Array, Array, Array | None], dict[str, Array]]:
    """The answers of a task for a batch whose rows are split over the devices.

    By default XLA would gather all rows to sort them. Programs of several models run at the same time, so devices must
    not wait for one another within a program.
    """
    answers, _ = _KINDS[task]
    if layout.devices == 1:
        return jax.jit(answers)
    rows, whole = layout.batch.spec, layout.whole.spec
    return jax.jit(jax.shard_map(answers, mesh=layout.mesh, in_specs=(rows, rows, whole), out_specs=rows))


class _PassResults:
    """The predictions of one model so far."""

    def __init__(self, mistakes: int, task: str) -> None:
        _, self._kind = _KINDS[task]
        self._rows: dict[str, list[np.ndarray]] = {name: [] for name in self._kind.__dataclass_fields__}
        self._kept: list[tuple[float, int, Mistake]] = []
        self._most = mistakes if self._kind is Predictions else 0
        self._count = self._right1 = self._right5 = 0
        self._loss = 0.0

    def add(self, batch: EvalBatch, labels: np.ndarray, output: dict[str, Array]) -> None:
        """Add the results of a batch; waits for the device."""
        mask = batch["mask"]
        rows = {name: local_rows(values)[: len(mask)][mask] for name, values in output.items()}
        rows |= {"index": batch["index"][mask], "label": np.asarray(labels)[mask]}
        for name, values in rows.items():
            self._rows[name].append(values)
        self._count += len(rows["index"])
        self._loss += float(rows["loss"].sum())
        if self._kind is Predictions:
            rows["label"] = rows["label"].astype(np.int32)
            self._right1 += int(rows["right1"].sum())
            self._right5 += int(rows["right5"].sum())
        if self._most:
            self._keep(rows, batch["image"][mask])

    def running(self) -> dict[str, str]:
        """The current scores, for the progress bar."""
        count = max(self._count, 1)
        if self._kind is not Predictions:
            return {"loss": f"{self._loss / count:.4f}"}
        return {"top1": f"{100 * self._right1 / count:.2f}", "top5": f"{100 * self._right5 / count:.2f}"}

    def predictions(self) -> Predictions | VectorPredictions:
        """The predictions of all hosts, in the order of the data set."""
        rows = {name: np.concatenate(parts) if parts else np.zeros(0) for name, parts in self._rows.items()}
        if jax.process_count() > 1:
            rows = _of_all_hosts(rows)
        order = np.argsort(rows["index"], kind="stable")
        return self._kind(**{name: values[order] for name, values in rows.items()})

    def mistakes(self) -> list[Mistake]:
        """The most confident mistakes, the most confident first."""
        return [mistake for _, _, mistake in sorted(self._kept, key=lambda kept: (-kept[0], -kept[1]))]

    def _keep(self, rows: dict[str, np.ndarray], images: np.ndarray) -> None:
        for row in np.flatnonzero(~rows["right1"]):
            confidence, index = float(rows["probabilities"][row, 0]), int(rows["index"][row])
            if len(self._kept) == self._most and (confidence, -index) <= self._kept[0][:2]:
                continue
            # A copy: a view would keep its whole batch in memory.
            pixels = np.clip(np.rint(images[row]), 0, 255).astype(np.uint8)
            mistake = Mistake(confidence, index, int(rows["label"][row]), int(rows["classes"][row, 0]), pixels)
            push = heapq.heappushpop if len(self._kept) == self._most else heapq.heappush
            push(self._kept, (confidence, -index, mistake))


class _Clock:
    """Time from the first batch's results, which wait for compilation, to the last's; for one batch, its time."""

    def __init__(self) -> None:
        self.seconds, self.images = 0.0, 0
        self._started, self._batches = time.monotonic(), 0

    def tick(self, images: int) -> None:
        """The results of a batch of so many pictures have arrived."""
        now = time.monotonic()
        self._batches += 1
        if self._batches == 2:
            self.images, self._started = 0, self._last
        self._last = now
        self.seconds = now - self._started
        self.images += images


def _of_all_hosts(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    file = io.BytesIO()
    np.savez(file, **rows)  # pyright: ignore[reportArgumentType]
    parts = [np.load(io.BytesIO(content)) for content in gathered_bytes(file.getvalue())]
    return {name: np.concatenate([part[name] for part in parts]) for name in rows}


def _placement(layout: Layout, variables: list[Any]) -> tuple[Callable[[np.ndarray], Array], list[Any]]:
    """A function that puts rows of a batch on the devices, and the variables on these devices."""
    if layout.devices == 1:
        return jnp.asarray, variables

    def place(rows: np.ndarray) -> Array:
        # Padding gives every device the same number of rows; its results are dropped.
        added = layout.padded_rows(len(rows)) - len(rows)
        return layout.place_batch(np.pad(rows, [(0, added), *[(0, 0)] * (rows.ndim - 1)]))

    return place, [layout.gather(layout.place(arrays)) for arrays in variables]


def _bar(batches: EvalLoader, models: int, progress: bool) -> contextlib.AbstractContextManager[Any]:
    text = "validating" if models == 1 else f"validating {models} models"
    total = batches.num_examples if jax.process_count() == 1 else None
    return progress_bar(text, total, "image", shown=progress, mininterval=0.2)
