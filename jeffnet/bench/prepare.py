"""Prepares a model for all contenders: weights, pictures, labels, and reference answers."""

import dataclasses
import functools
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from jeffnet.arch.plan import Plan
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.spec import as_spec
from jeffnet.arch.summary import array_specs, count_macs, count_parameters
from jeffnet.arch.zoo import model_preprocessing, own_spec, register_model
from jeffnet.bench.child import Channel
from jeffnet.bench.program import COMPARED, pictures_file, reference_file
from jeffnet.weights.card import ModelCard, card_json
from jeffnet.weights.formats.safetensors import save_model

# Pixels and pictures from which random weights get their BatchNorm statistics.
_CALIBRATION = (8, 96)
# Factor on the last scales of a residual block, those of a norm or LayerScale: with larger ones a deep network doubles
# every error many times.
_RESIDUAL_SCALE = 0.3


def prepare(arguments: dict[str, Any], channel: Channel) -> None:
    """Write a model's folder.

    It has `model.safetensors`, `card.json`, `labels.npy`, `pictures_<size>.npy`, and of each case
    `reference_<task>_<size>_<batch>.npy`: the float32 logits of the first pictures, or the loss of the first step, as
    our functions and XLA's own convolutions compute them on the processor.

    Args:
      arguments: `folder`; `model` or None; `weights`, their source, or None for random ones; `image_sizes`, where none
        takes the model's own; `batch_sizes`; `tasks`; `registered`: architecture and preprocessing of a model that the
        caller registered, or None.
      channel: gets `model`, `parameters` and `macs`, the last by size.
    """
    folder = Path(arguments["folder"])
    if own := arguments["registered"]:
        register_model(arguments["model"], as_spec(own["spec"]), Preprocessing(**own["preprocessing"]))
    card, arrays = _model(arguments["model"], arguments["weights"])
    plan = card.plan()
    save_model(folder / "model.safetensors", arrays, card)
    (folder / "card.json").write_text(card_json(card), encoding="utf-8")
    most = max(*arguments["batch_sizes"], COMPARED)
    labels = _random("labels").integers(0, max(plan.num_classes, 1), most).astype(np.int32)
    np.save(folder / "labels.npy", labels)
    sizes = arguments["image_sizes"] or [card.preprocessing.image_size]
    for size in sizes:
        pictures = _random("pictures").standard_normal((most, size, size, card.in_chans), np.float32)
        np.save(pictures_file(folder, size), pictures)
        if "inference" in arguments["tasks"]:
            logits = _logits(card, arrays, pictures[:COMPARED])
            np.save(reference_file(folder, "inference", size, 0), logits)
        if "training" in arguments["tasks"]:
            for batch in arguments["batch_sizes"]:
                loss = _loss(card, arrays, pictures[:batch], labels[:batch])
                np.save(reference_file(folder, "training", size, batch), loss)
    channel.send(
        {
            "model": card.model,
            "parameters": count_parameters(plan),
            "macs": {str(size): count_macs(plan, size) for size in sizes},
        }
    )


def training_plan(card: ModelCard) -> Plan:
    """The model without dropout and drop path, so that all contenders compute the same."""
    return card.plan(drop_rate=0.0, drop_path_rate=0.0)


def random_arrays(card: ModelCard) -> dict[str, np.ndarray]:
    """Random weights whose logits depend on the picture at any depth, without amplifying errors.

    Every array differs from a constant, so that a contender that swaps or forgets one is found. BatchNorm has the
    statistics that the random weights before it lead to, but for a random part.
    """
    plan = card.plan()
    specs = array_specs(plan)
    scales = {
        block.name: [name for name in specs if name.startswith(f"{block.name}.") and name.endswith(".scale")]
        for block in plan.blocks
        if block.residual
    }
    last = {names[-1] for names in scales.values() if names}
    arrays: dict[str, np.ndarray] = {}
    for name, spec in specs.items():
        random = _random(name)
        if spec.leaf == "kernel":
            fan_in = np.prod(spec.shape[:-1])
            values = random.standard_normal(spec.shape) * np.sqrt(2 / fan_in)
        elif spec.leaf == "bias":
            values = 0.1 * random.standard_normal(spec.shape)
        elif spec.leaf == "scale":
            values = random.uniform(0.5, 1.5, spec.shape) * (_RESIDUAL_SCALE if name in last else 1)
        else:
            values = np.ones(spec.shape) if spec.leaf == "var" else np.zeros(spec.shape)
        arrays[name] = values.astype(np.float32)
    return arrays | _statistics(card, arrays)


def _statistics(card: ModelCard, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    number, size = _CALIBRATION
    pictures = _random("calibration").standard_normal((number, size, size, card.in_chans), np.float32)
    # The running statistics after a step that forgets the old ones are the batch's.
    _, variables = _training_pass(dataclasses.replace(training_plan(card), bn_momentum=0.0), arrays, pictures)
    batch = {name: np.asarray(value) for name, value in variables["batch_stats"].items()}
    moved = {}
    for name, value in batch.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "var":
            moved[name] = (value * _random(name).uniform(0.8, 1.3, value.shape)).astype(np.float32)
        else:
            deviation = np.sqrt(batch[f"{module}.var"])
            moved[name] = (value + 0.1 * deviation * _random(name).standard_normal(value.shape)).astype(np.float32)
    return moved


def _model(name: str | None, weights: str | None) -> tuple[ModelCard, dict[str, np.ndarray]]:
    from jeffnet.weights.load import open_weights

    if weights is not None:
        card, arrays = open_weights(weights, name)
        return card, {key: np.asarray(array, np.float32) for key, array in arrays.items()}
    assert name is not None
    card = ModelCard(name, 1000, 3, model_preprocessing(name), spec=own_spec(name))
    return card, random_arrays(card)


def _logits(card: ModelCard, arrays: dict[str, np.ndarray], pictures: np.ndarray) -> np.ndarray:
    import jax

    from jeffnet.functional import ImageClassifier, to_variables

    model = ImageClassifier(card.plan(), execution=card.execution)
    return np.asarray(jax.jit(model.apply)(to_variables(arrays), pictures))


def _loss(card: ModelCard, arrays: dict[str, np.ndarray], pictures: np.ndarray, labels: np.ndarray) -> np.ndarray:
    import jax.numpy as jnp

    from jeffnet.ops.loss import cross_entropy

    logits, _ = _training_pass(training_plan(card), arrays, pictures)
    return np.asarray(cross_entropy(logits, jnp.asarray(labels)).mean())


def _training_pass(plan: Plan, arrays: dict[str, np.ndarray], pictures: np.ndarray) -> tuple[Any, Any]:
    """Logits, and the variables after the pass."""
    import jax

    from jeffnet.functional import ImageClassifier, to_variables

    apply = jax.jit(functools.partial(ImageClassifier(plan).apply, train=True))
    return apply(to_variables(arrays), pictures)


def _random(name: str) -> np.random.Generator:
    """A generator seeded by a name."""
    return np.random.default_rng(zlib.crc32(name.encode()))
