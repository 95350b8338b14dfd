"""What models answer on labelled pictures, and their scores: each picture counted exactly once."""

import functools
import heapq
import io
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from tqdm import tqdm

from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.data.batches import EvalBatch, EvalLoader
from jeffnet.ops.image import normalize
from jeffnet.ops.loss import cross_entropy, in_top
from jeffnet.parallel.distributed import gathered_bytes
from jeffnet.parallel.mesh import Layout, local_rows, make_layout

Forward = Callable[[Any, Array], Array]

# Batches that the device may have before it: enough that it never waits for us to read a result.
_IN_FLIGHT = 2
_TOP = 5


@dataclass(frozen=True)
class Scores:
    """Means over a data set.

    Attributes:
      examples: how many pictures were counted.
      loss: cross entropy.
      top1: per cent of pictures whose first guess is right.
      top5: per cent of pictures with the right class among the first five.
    """

    examples: int
    loss: float
    top1: float
    top5: float


@dataclass(frozen=True)
class Predictions:
    """What a model answered, in the order of the data set.

    Attributes:
      index: int32 `(N,)`, the example in the data set.
      label: int32 `(N,)`, its class.
      classes: int32 `(N, K)`, the most probable classes, the most probable first; K is 5 or the number of classes.
      probabilities: float32 `(N, K)`, theirs.
      loss: float32 `(N,)`, cross entropy.
      right1: bool `(N,)`, whether the first is the label; never where a logit is NaN.
      right5: bool `(N,)`, whether the label is among the first five.
    """

    index: np.ndarray
    label: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray
    loss: np.ndarray
    right1: np.ndarray
    right5: np.ndarray


@dataclass(frozen=True)
class Mistake:
    """A picture that was taken for something else: its pixels as the model saw them, before normalisation."""

    confidence: float
    index: int
    label: int
    guess: int
    pixels: np.ndarray


@dataclass
class Answers:
    """All that is known of one model after a pass over the data.

    Attributes:
      predictions: of every example that could be decoded.
      mistakes: the most confident ones, the most confident first.
      skipped: sorted numbers of the examples that could not be decoded.
      seconds: from the second batch on, or of the only one: what is compiled is not counted.
      images: how many pictures these seconds took.
    """

    predictions: Predictions
    mistakes: list[Mistake] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    seconds: float = 0.0
    images: int = 0

    @property
    def images_per_second(self) -> float:
        """How fast the pass was; 0 where nothing was read."""
        return self.images / self.seconds if self.seconds else 0.0


def make_forward(apply: Forward, preprocessing: Preprocessing, jit: bool = True) -> Forward:
    """A compiled function from variables and pictures `(N, H, W, C)`, 0 to 255, to float32 logits `(N, classes)`.

    Args:
      apply: a pure function from variables and normalised images to logits, as every backend's `inference` gives it.
      preprocessing: mean and standard deviation of the pictures.
      jit: compile it; otherwise operations run one by one.
    """

    def forward(variables: Any, images: Array) -> Array:
        logits = apply(variables, normalize(images, preprocessing.mean, preprocessing.std))
        return jnp.asarray(logits, jnp.float32)

    return jax.jit(forward) if jit else forward


def evaluate(forward: Forward, variables: Any, batches: EvalLoader, progress: bool = False) -> Scores:
    """Score a model.

    Args:
      forward: as `make_forward` makes it.
      variables: of the model.
      batches: one pass over the data set; rows outside a batch's `mask` do not count.
      progress: show a bar where standard error is a terminal.
    """
    (answers,) = answer([(forward, variables)], batches, progress=None if progress else False)
    return score(answers.predictions)


def answer(
    models: Sequence[tuple[Forward, Any]],
    batches: EvalLoader,
    *,
    labels: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    mistakes: int = 0,
    progress: bool | None = False,
    layout: Layout | None = None,
) -> list[Answers]:
    """What several models answer, in one pass over the data.

    The next batch is read and sent while the device computes. Several devices share each batch; several hosts read
    each its own shard, and all return the same.

    Args:
      models: functions as `make_forward` makes them, with their variables.
      batches: one pass over the data set.
      labels: int `(L,)`, the model's class for each label of the data set; None takes these as they are.
      mask: bool `(classes,)`, the classes that may be chosen; None for all.
      mistakes: how many of the most confident mistakes to keep, of those that this host saw.
      progress: show a bar with the scores of the first model; None does where standard error is a terminal.
      layout: on which devices; None takes all there are, those of other hosts included.

    Returns:
      One for each model.
    """
    tallies = [_Tally(mistakes) for _ in models]
    skipped: list[int] = []
    clock = _Clock()
    layout = layout or make_layout()
    place, shared = _placement(layout, [variables for _, variables in models])
    answers_of = _make_answers(layout)
    allowed = None if mask is None else jnp.asarray(mask)
    with _bar(batches, len(models), progress) as bar:
        waiting: deque[tuple[EvalBatch, np.ndarray, list[Any]]] = deque()

        def collect() -> None:
            batch, own, outputs = waiting.popleft()
            for tally, output in zip(tallies, outputs, strict=True):
                tally.add(batch, own, output)
            counted = int(batch["mask"].sum())
            clock.tick(counted)
            bar.update(counted)
            bar.set_postfix(tallies[0].running(), refresh=False)

        for batch in batches:
            own = batch["label"] if labels is None else labels[batch["label"]]
            skipped += batch["index"][~batch["mask"] & (batch["index"] >= 0)].tolist()
            images, targets = place(batch["image"]), place(own)
            outputs = [
                answers_of(forward(variables, images), targets, allowed)
                for (forward, _), variables in zip(models, shared, strict=True)
            ]
            waiting.append((batch, own, outputs))
            if len(waiting) > _IN_FLIGHT:
                collect()
        while waiting:
            collect()
    if jax.process_count() > 1:
        skipped = _of_all_hosts({"index": np.array(skipped, np.int32)})["index"].tolist()
    return [
        Answers(tally.predictions(), tally.mistakes(), sorted(skipped), clock.seconds, clock.images)
        for tally in tallies
    ]


def score(predictions: Predictions, real_labels: Sequence[frozenset[int]] | None = None) -> Scores:
    """The means of what a model answered.

    Args:
      predictions: of the model.
      real_labels: for each of them all classes that are right; those with none do not count. None takes the labels.
    """
    right1, right5, counted = predictions.right1, predictions.right5, np.ones(len(predictions.index), np.bool_)
    if real_labels is not None:
        counted = np.array([bool(right) for right in real_labels], np.bool_)
        rows = list(zip(real_labels, predictions.classes.tolist(), strict=True))
        right1 = np.array([row[0] in right for right, row in rows], np.bool_)
        right5 = np.array([not right.isdisjoint(row) for right, row in rows], np.bool_)
    if not counted.any():
        return Scores(0, 0.0, 0.0, 0.0)
    return Scores(
        int(counted.sum()),
        float(predictions.loss[counted].mean(dtype=np.float64)),
        float(100 * right1[counted].mean()),
        float(100 * right5[counted].mean()),
    )


def _answers(logits: Array, labels: Array, mask: Array | None) -> dict[str, Array]:
    if mask is not None:
        # Minus infinity would do as well, but for its products with zero, which are NaN.
        logits = jnp.where(mask, logits, -1e30)
    probabilities, classes = jax.lax.top_k(jax.nn.softmax(logits), min(_TOP, logits.shape[-1]))
    return {
        "classes": classes,
        "probabilities": probabilities,
        "loss": cross_entropy(logits, labels),
        "right1": in_top(logits, labels, 1),
        "right5": in_top(logits, labels, _TOP),
    }


@functools.cache  # a function anew would be compiled anew in every epoch
def _make_answers(layout: Layout) -> Callable[[Array, Array, Array | None], dict[str, Array]]:
    """`_answers` of a batch that devices share, each its own rows. Left to itself, XLA gathers all to sort them.

    Programs of several models are under way at once: in none of them may devices wait for one another.
    """
    if layout.devices == 1:
        return jax.jit(_answers)
    rows, whole = layout.batch.spec, layout.whole.spec
    return jax.jit(jax.shard_map(_answers, mesh=layout.mesh, in_specs=(rows, rows, whole), out_specs=rows))


class _Tally:
    """What one model answered so far."""

    def __init__(self, mistakes: int) -> None:
        self._rows: dict[str, list[np.ndarray]] = {name: [] for name in Predictions.__dataclass_fields__}
        self._kept: list[tuple[float, int, Mistake]] = []
        self._most = mistakes
        self._count = self._right1 = self._right5 = 0

    def add(self, batch: EvalBatch, labels: np.ndarray, output: dict[str, Array]) -> None:
        """Read a batch's results, for which the device is waited for."""
        mask = batch["mask"]
        rows = {name: local_rows(values)[: len(mask)][mask] for name, values in output.items()}
        rows |= {"index": batch["index"][mask], "label": np.asarray(labels, np.int32)[mask]}
        for name, values in rows.items():
            self._rows[name].append(values)
        self._count += len(rows["index"])
        self._right1 += int(rows["right1"].sum())
        self._right5 += int(rows["right5"].sum())
        if self._most:
            self._keep(rows, batch["image"][mask])

    def running(self) -> dict[str, str]:
        """The scores so far, for the progress bar."""
        count = max(self._count, 1)
        return {"top1": f"{100 * self._right1 / count:.2f}", "top5": f"{100 * self._right5 / count:.2f}"}

    def predictions(self) -> Predictions:
        """Those of all hosts, in the order of the data set."""
        rows = {name: np.concatenate(parts) if parts else np.zeros(0) for name, parts in self._rows.items()}
        if jax.process_count() > 1:
            rows = _of_all_hosts(rows)
        order = np.argsort(rows["index"], kind="stable")
        return Predictions(**{name: values[order] for name, values in rows.items()})

    def mistakes(self) -> list[Mistake]:
        """The most confident ones, the most confident first."""
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
    """Time from the first batch's results to the last's, since the first wait for compilation; of the only one, all."""

    def __init__(self) -> None:
        self.seconds, self.images = 0.0, 0
        self._started, self._batches = time.monotonic(), 0

    def tick(self, images: int) -> None:
        """The results of a batch of so many pictures are there."""
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
    """How a batch gets to the devices, and the variables where they are needed."""
    if layout.devices == 1:
        return jnp.asarray, variables

    def place(rows: np.ndarray) -> Array:
        # What is added so that all have as much to do counts for nothing.
        added = layout.padded_rows(len(rows)) - len(rows)
        return layout.place_batch(np.pad(rows, [(0, added), *[(0, 0)] * (rows.ndim - 1)]))

    return place, [layout.gather(layout.place(each)) for each in variables]


def _bar(batches: EvalLoader, models: int, progress: bool | None) -> tqdm:
    what = "validating" if models == 1 else f"validating {models} models"
    disable = None if progress is None else not progress
    total = batches.num_examples if jax.process_count() == 1 else None
    return tqdm(total=total, desc=what, unit="image", leave=False, disable=disable, mininterval=0.2)


def grouped(keys: Sequence[Any], most: int) -> Iterator[list[int]]:
    """Places of equal keys, at most so many together, in the order of their first."""
    groups: dict[Any, list[int]] = {}
    for place, key in enumerate(keys):
        groups.setdefault(key, []).append(place)
    for places in groups.values():
        for start in range(0, len(places), most):
            yield places[start : start + most]
