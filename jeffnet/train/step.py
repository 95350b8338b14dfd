"""One training step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from jeffnet.ops.average import update_average
from jeffnet.ops.loss import (
    asymmetric_loss,
    binary_cross_entropy,
    in_top,
    jensen_shannon_divergence,
    regression_loss,
    soft_cross_entropy,
)
from jeffnet.ops.network import Outputs
from jeffnet.parallel.mesh import Layout
from jeffnet.system.processor import remat_options
from jeffnet.train.augment import augment_batch
from jeffnet.train.balance import EVEN, Balance
from jeffnet.train.config import Config, LossConfig
from jeffnet.train.distillation import losses_with_teacher
from jeffnet.train.network import Network
from jeffnet.train.state import Arrays, TrainState, of_model
from jeffnet.train.teacher import Teacher, TeacherOutputs, compared_features, map_numbers

Metrics = dict[str, Array]
TrainStep = Callable[[TrainState, Mapping[str, Any]], tuple[TrainState, Metrics]]


def make_train_step(
    network: Network,
    optimizer: optax.GradientTransformation,
    config: Config,
    *,
    teacher: Teacher | None = None,
    balance: Balance = EVEN,
    average_from: int = 0,
    layout: Layout | None = None,
) -> TrainStep:
    """A compiled training step.

    Random numbers depend on `config.seed` and on the number of the step alone, so that a resumed run draws the same as
    one that was not interrupted.

    Args:
      network: the model.
      optimizer: of its parameters.
      config: of the run; augmentation on the device, loss, accumulation and averaging count.
      teacher: for distillation.
      balance: what the loss does about unequal classes.
      average_from: the step before which the moving average is the model itself.
      layout: placement of states and batches on devices; None for a single device.

    Returns:
      A function from the state and a batch (`image` uint8 `(N, H, W, C)`, or `(N, splits, H, W, C)`; `label` `(N,)`,
      or `(N, classes)` of several labels or numbers) to the next state and metrics: `loss`, `top1` in per cent where
      there is one label, `grad_norm`, `skipped`, which is 1 if the gradients were not finite, and with a teacher
      `distillation_loss` and `feature_loss` as far as they count and `teacher_finite`, which is below 1 if its outputs
      were not finite. The old state's buffers are donated. With `requests` in the batch, bool `(devices, k)`, the
      metrics have `requests` `(k,)`: what any device asks for.
    """
    work = _Work(network, optimizer, config, teacher.apply if teacher else None, balance, average_from, layout)
    # A step that is run again to locate a NaN needs its old state.
    donated = () if config.debug_nans else 2
    step = jax.jit(work.step, donate_argnums=donated, compiler_options=remat_options() if network.start.remat else None)
    # Arguments, so that neither the key nor the teacher's arrays are constants of the program.
    return partial(step, jax.random.key(config.seed), teacher.arrays if teacher else {})


class _Part(NamedTuple):
    """The examples of one backward pass."""

    pixels: Array
    labels: Array
    targets: Array
    key: Array


@dataclass(frozen=True)
class _Work:
    """The parts of a step; none of its methods changes anything."""

    network: Network
    optimizer: optax.GradientTransformation
    config: Config
    teacher: Callable[[Any, Array], TeacherOutputs] | None
    balance: Balance
    average_from: int
    layout: Layout | None

    def step(
        self, root: Array, teacher_arrays: Any, state: TrainState, batch: Mapping[str, Any]
    ) -> tuple[TrainState, Metrics]:
        """The next state, and metrics."""
        key = jax.random.fold_in(root, state.step)
        parts = self._parts(batch, key)
        gradients, batch_stats, metrics = self._gradients(state, state.params, parts, teacher_arrays)
        norm = optax.tree.norm(gradients)
        if self.config.sam_rho is not None:
            ascended = _ascended(state.params, gradients, norm, self.config.sam_rho)
            gradients, _, _ = self._gradients(state, ascended, parts, teacher_arrays)
            norm = optax.tree.norm(gradients)
        metrics |= {"grad_norm": norm}
        updates, opt_state = self.optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        after = state.replace(params=params, batch_stats=batch_stats, opt_state=opt_state)  # pyright: ignore[reportAttributeAccessIssue]
        after = self._averaged(after)
        if "requests" in batch:
            metrics |= {"requests": batch["requests"].any(0)}
        return self._laid_out(*self._guarded(state, after, metrics))

    def _parts(self, batch: Mapping[str, Any], key: Array) -> _Part:
        """The batch, augmented and cut into parts along a new first axis."""
        count = self.config.accumulate
        drop_key, augment_key = jax.random.split(key)
        labels = jnp.asarray(batch["label"])
        pixels, targets = augment_batch(jnp.asarray(batch["image"]), labels, augment_key, self.config, self.network)

        def cut(array: Array) -> Array:
            # Every count-th example: repeats of a picture, which are neighbours, are spread over the parts.
            return jnp.moveaxis(array.reshape(-1, count, *array.shape[1:]), 1, 0)

        pixels, labels, targets = (self._split(cut(array), axis=1) for array in (pixels, labels, targets))
        return _Part(pixels, labels, targets, jax.random.split(drop_key, count))

    def _split(self, array: Array, axis: int = 0) -> Array:
        """The array, split over the devices along its axis of examples."""
        if self.layout is None:
            return array
        spec = PartitionSpec(*[None] * axis, *self.layout.batch.spec)
        return jax.lax.with_sharding_constraint(array, NamedSharding(self.layout.mesh, spec))

    def _whole(self, arrays: Any) -> Any:
        """Parameters as layers take them: gathered, so that devices exchange parameters and not feature maps."""
        if self.layout is None or self.layout.fsdp == 1:
            return arrays
        return jax.lax.with_sharding_constraint(arrays, self.layout.whole)

    def _laid_out(self, state: TrainState, metrics: Metrics) -> tuple[TrainState, Metrics]:
        """State and metrics, placed as they came, so that the next step needs no other program."""
        if self.layout is None:
            return state, metrics
        state = jax.lax.with_sharding_constraint(state, self.layout.shardings(state))
        return state, jax.lax.with_sharding_constraint(metrics, self.layout.whole)

    def _gradients(
        self, state: TrainState, params: Arrays, parts: _Part, teacher_arrays: Any
    ) -> tuple[Arrays, Arrays, Metrics]:
        """Mean gradients over the parts, the running statistics after them, and mean metrics."""
        scale = state.loss_scale.scale if state.loss_scale else None

        def loss_of(params: Arrays, stats: Arrays, part: _Part) -> tuple[Array, tuple[Arrays, Metrics]]:
            loss, metrics, stats = self._loss({**state.frozen, **params, **stats}, part, teacher_arrays)
            return loss if scale is None else loss * scale, (stats, metrics)

        gradient = jax.grad(loss_of, has_aux=True)
        if self.config.accumulate == 1:
            part = jax.tree.map(lambda array: array[0], parts)
            gradients, (stats, metrics) = gradient(params, state.batch_stats, part)
        else:

            def add(carry: tuple[Arrays, Arrays], part: _Part) -> tuple[tuple[Arrays, Arrays], Metrics]:
                total, stats = carry
                gradients, (stats, metrics) = gradient(params, stats, part)
                return (jax.tree.map(jnp.add, total, gradients), stats), metrics

            zeros = jax.tree.map(jnp.zeros_like, params)
            (total, stats), metrics = jax.lax.scan(add, (zeros, state.batch_stats), parts)
            gradients = jax.tree.map(lambda array: array / self.config.accumulate, total)
            metrics = jax.tree.map(jnp.mean, metrics)
        if scale is not None:
            gradients = jax.tree.map(lambda array: array / scale, gradients)
        return gradients, stats, metrics

    def _loss(self, arrays: Arrays, part: _Part, teacher_arrays: Any) -> tuple[Array, Metrics, Arrays]:
        """Mean loss, metrics with top-1 in per cent where there is one label, and updated statistics."""
        config, splits = self.config.loss, self.config.augment.splits
        pixels = part.pixels if splits == 1 else part.pixels.reshape(-1, *part.pixels.shape[2:])
        arrays = self._whole(arrays)
        outputs, stats = self._forward(of_model(arrays), self._split(pixels), part.key)
        # The views of a picture are neighbours, on one device.
        views = outputs.logits.reshape(-1, splits, *outputs.logits.shape[1:])
        first = jax.tree.map(lambda array: array.reshape(-1, splits, *array.shape[1:])[:, 0], outputs)
        losses = _losses(config, self.balance, first.logits, part.targets, self.config.data.task)
        if splits > 1:
            losses = losses + config.jsd_weight * jensen_shannon_divergence(jnp.moveaxis(views, 1, 0))
        metrics = {}
        if self.teacher is not None:
            seen = part.pixels if splits == 1 else part.pixels[:, 0]
            seen = seen.astype(self.network.compute_dtype)
            answers = jax.lax.stop_gradient(self.teacher(self._whole(teacher_arrays), seen))
            losses, metrics = losses_with_teacher(config, losses, first, answers, arrays)
        metrics = {"loss": losses.mean(), **metrics}
        if part.labels.ndim == 1:
            metrics |= {"top1": 100 * in_top(first.logits, part.labels, 1).mean()}
        return metrics["loss"], metrics, stats

    def _forward(self, arrays: Arrays, pixels: Array, key: Array) -> tuple[Outputs, Arrays]:
        """What the loss needs of the model, and updated statistics."""
        if features := compared_features(self.config.loss):
            return self.network.train_outputs(arrays, pixels, key, map_numbers(features))
        logits, stats = self.network.train(arrays, pixels, key)
        return Outputs(logits, logits, ()), stats

    def _averaged(self, state: TrainState) -> TrainState:
        ema = self.config.ema
        if state.average is None:
            return state
        value = {**of_model(state.params), **state.batch_stats}
        step = state.step + 1
        begun = step > self.average_from

        def update(average: Arrays) -> Arrays:
            moved = update_average(
                average, value, state.average_updates, form=ema.form, decay=ema.decay or 0.0, warmup=ema.warmup
            )
            # Before it begins, the average is the model itself.
            return jax.tree.map(lambda new, current: jnp.where(begun, new, current), moved, value)

        if ema.every == 1:
            average, updates = update(state.average), state.average_updates + begun.astype(jnp.int32)
        else:
            due = step % ema.every == 0
            average = jax.lax.cond(due, update, lambda average: average, state.average)
            updates = state.average_updates + (due & begun).astype(jnp.int32)
        return state.replace(average=average, average_updates=updates)  # pyright: ignore[reportAttributeAccessIssue]

    def _guarded(self, before: TrainState, after: TrainState, metrics: Metrics) -> tuple[TrainState, Metrics]:
        """The state after the step, or, if gradients are not finite and such steps are skipped, the one before it."""
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        if before.loss_scale is not None or self.config.on_nan == "skip":
            after = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, before)
        changes: dict[str, Any] = {"step": before.step + 1, "skipped": jnp.where(finite, 0, before.skipped + 1)}
        if before.loss_scale is not None:
            changes["loss_scale"] = before.loss_scale.after(finite)
            metrics |= {"loss_scale": before.loss_scale.scale}
        metrics |= {"skipped": jnp.where(finite, 0, 1)}
        return after.replace(**changes), metrics  # pyright: ignore[reportAttributeAccessIssue]


def _losses(config: LossConfig, balance: Balance, logits: Array, targets: Array, task: str = "single_label") -> Array:
    if task == "regression":
        return regression_loss(logits, targets, config.name, config.huber_delta)
    if task == "multi_label":
        return _losses_of_labels(config, balance, logits, targets)
    if config.name == "bce":
        losses = binary_cross_entropy(logits, targets, config.bce_threshold, config.bce_sum)
        return losses if balance.weights is None else losses * (targets @ balance.weights)
    if balance.offsets is not None:
        logits = logits + balance.offsets
    # The cross entropy is linear in the targets.
    return soft_cross_entropy(logits, targets if balance.weights is None else targets * balance.weights)


def _losses_of_labels(config: LossConfig, balance: Balance, logits: Array, targets: Array) -> Array:
    exponents = {
        "bce": {"positive": 0.0, "negative": 0.0},
        "focal": {"positive": config.gamma, "negative": config.gamma},
        "asymmetric": {"positive": config.gamma_positive, "negative": config.gamma_negative, "clip": config.clip},
    }
    if config.bce_threshold is not None:
        targets = (targets > config.bce_threshold).astype(targets.dtype)
    weights = 1.0 if balance.weights is None else balance.weights
    options = exponents[config.name]
    return asymmetric_loss(logits, targets, **options, positive_weights=weights, sum_classes=config.bce_sum)


def _ascended(params: Arrays, gradients: Arrays, norm: Array, rho: float) -> Arrays:
    """The parameters within the radius that have the highest loss, to first order (arXiv:2010.01412, equation 2)."""
    factor = rho / (norm + 1e-12)
    return jax.tree.map(lambda array, gradient: array + factor * gradient, params, gradients)
