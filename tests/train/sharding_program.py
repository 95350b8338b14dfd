"""Training steps on eight virtual devices and on one, in float64; prints how far apart they are, by case, as JSON.

python sharding_program.py CASE ...
"""

import collections
import contextlib
import dataclasses
import gc
import json
import os
import re
import sys
import tempfile
import threading
from pathlib import Path

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0 --xla_force_host_platform_device_count=8"
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_ENABLE_X64"] = "1"

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import jeffnet.parallel.mesh
from jeffnet.arch import zoo
from jeffnet.arch.execution import Execution
from jeffnet.arch.lower import lower
from jeffnet.arch.model import Model
from jeffnet.arch.plan import without_training_options
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.spec import ModelSpec
from jeffnet.ops.init import initial_arrays
from jeffnet.parallel.mesh import make_layout
from jeffnet.train.checkpoint import Checkpoints
from jeffnet.train.config import (
    AugmentConfig,
    Config,
    DataConfig,
    EmaConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
)
from jeffnet.train.distillation import Lesson
from jeffnet.train.estimate import make_estimate
from jeffnet.train.network import Network
from jeffnet.train.optim import make_optimizer
from jeffnet.train.setup import make_setup
from jeffnet.train.state import initial_state
from jeffnet.train.step import make_train_step
from jeffnet.train.teacher import network_teacher
from jeffnet.weights.card import ModelCard
from jeffnet.weights.formats.safetensors import save_model
from jeffnet.weights.start import Start, start_arrays, statistics

jeffnet.parallel.mesh._LEAST_SPLIT = 16  # the arrays of the small network count as large

CLASSES, SIZE, BATCH, DEVICES, STEPS = 5, 16, 32, 8, 2
SPEC = ModelSpec(stages=(("ds_r1_k3_s1_c8_se0.25",), ("ir_r1_k5_s2_e3_c16",)), stem=8, features=32, drop_path_rate=0.1)
TEACHER_SPEC = dataclasses.replace(SPEC, features=256)
PREPROCESSING = Preprocessing(SIZE, 1.0)

# Overrides of the configuration, the mesh, and further options of `Case`.
CASES: dict[str, dict] = {
    "global": {},
    "fsdp": {"mesh": "data=2,fsdp=4"},
    "everything": {
        "accumulate": 2,
        "ema": EmaConfig(decay=0.9),
        "augment": AugmentConfig(mixup=0.4, cutmix=1.0, erase_prob=0.5, erase_mode="pixel", mix_mode="elem"),
        "optimizer": OptimizerConfig(name="rmsproptf", learning_rate=0.01, clip_norm=1.0, weight_decay=1e-4),
        "mesh": "data=4,fsdp=2",
        "scaled": True,
    },
    "views": {"augment": AugmentConfig(splits=2, erase_prob=0.5), "loss": LossConfig(name="jsd"), "sam_rho": 0.05},
    "teacher": {
        "loss": LossConfig(distillation=0.5, feature_distillation=2.0, features=("pre_logits", "-1")),
        "teacher": True,
        "mesh": "data=1,fsdp=8",
    },
    "lars": {"optimizer": OptimizerConfig(name="lars", learning_rate=0.5, weight_decay=1e-4), "mesh": "data=2,fsdp=4"},
    **{f"groups-{backend}": {"backend": backend, "bn_devices": 2} for backend in ("linen", "nnx", "objax")},
    "groups-functional": {"bn_devices": 4, "accumulate": 2, "mesh": "data=4,fsdp=2"},
}


def network_of(backend: str, groups: int, spec: ModelSpec = SPEC) -> Network:
    plan, dtype = lower(spec, num_classes=CLASSES, in_chans=3), jnp.dtype("float64")
    execution = Execution(norm_groups=groups)
    return Network(Start(plan, {}, dtype, dtype, execution=execution), PREPROCESSING, backend)


def arrays_of(seed: int, spec: ModelSpec = SPEC) -> dict[str, jax.Array]:
    """Random norms too: with those of the start, scales of 1 and biases of 0, many mistakes would not show."""
    rng = np.random.default_rng(seed)
    arrays = start_arrays(network_of("functional", 1, spec).plan, seed, jnp.float64)
    return {
        name: jnp.asarray(array * rng.uniform(0.5, 1.5, array.shape) + rng.uniform(0, 0.2, array.shape))
        if array.ndim == 1
        else array
        for name, array in arrays.items()
    }


class Case:
    """One configuration, run on any layout."""

    def __init__(
        self,
        mesh: str = "auto",
        backend: str = "functional",
        bn_devices: int = DEVICES,
        teacher=False,
        scaled=False,
        **entries,
    ) -> None:
        config = Config(
            model=ModelConfig(name="efficientnet_b0"),  # not used: the network is given
            data=DataConfig(path="none"),
            batch_size=BATCH,
            **({"optimizer": OptimizerConfig(learning_rate=0.1)} | entries),
        )
        self.config, self.mesh, self.scaled = config, mesh, scaled
        self.network = network_of(backend, DEVICES // bn_devices)
        self.arrays = arrays_of(0)
        self.teacher = None
        if teacher:
            network, arrays = network_of("functional", 1, TEACHER_SPEC), arrays_of(1, TEACHER_SPEC)
            self.teacher = network_teacher(network, arrays, config.loss.features)
            widths = {"pre_logits": (SPEC.features, TEACHER_SPEC.features), "-1": (16, 16)}
            projections = Lesson(self.teacher, widths, "").projections(0, jnp.float64)
            self.arrays |= {name: jnp.asarray(array) for name, array in projections.items()}

    def run(self, layout):
        """All arrays of the state after some steps, and the losses."""
        stats = statistics(self.arrays)
        trained = {name: array for name, array in self.arrays.items() if name not in stats}
        optimizer = make_optimizer(
            self.config.optimizer, lambda step: self.config.optimizer.learning_rate, trained, frozenset()
        )
        copies = jax.tree.map(jnp.array, self.arrays)
        state = initial_state(copies, optimizer, averaged=self.config.ema.is_on, scaled=self.scaled)
        teacher = self.teacher
        if layout is not None:
            state = layout.place(state)
            split = [leaf for leaf in jax.tree.leaves(state) if not leaf.is_fully_replicated]
            assert len(split) > 20 if layout.fsdp > 1 else not split, len(split)
            if teacher:
                teacher = dataclasses.replace(teacher, arrays=layout.place(teacher.arrays))
        step = make_train_step(self.network, optimizer, self.config, teacher=teacher, layout=layout)
        losses = []
        for number in range(STEPS):
            batch = batch_of(number, self.config.augment.splits)
            before = layout and jax.tree.map(lambda leaf: leaf.sharding, state)
            state, metrics = step(state, layout.place_batch(batch) if layout else batch)
            assert before is None or jax.tree.map(lambda leaf: leaf.sharding, state) == before
            losses.append(float(metrics["loss"]))
        return [np.asarray(leaf) for leaf in jax.tree.leaves(state)] + [np.array(losses)]


def batch_of(number: int, splits: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(number)
    views = (splits,) if splits > 1 else ()
    images = rng.integers(0, 256, (BATCH, *views, SIZE, SIZE, 3)).astype(np.uint8)
    return {"image": images, "label": rng.integers(0, CLASSES, BATCH).astype(np.int32)}


def distance(found, expected) -> float:
    """The largest difference of any two arrays, relative to the largest value of the expected one.

    Arrays below 1e-5 are gradients that cancel, of which rounding is all that is left.
    """
    apart = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        apart = max(apart, float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-5)))
    return apart


def on_devices_and_alone(name: str) -> float:
    case = Case(**CASES[name])
    return distance(case.run(make_layout(case.mesh)), case.run(None))


def by_groups(devices: int) -> float:
    """Logits, gradients and statistics of groups of devices, and those of a network for each group, one by one."""
    groups, layout = DEVICES // devices, make_layout()
    arrays = arrays_of(0)
    batch, key = batch_of(0), jax.random.key(0)
    shares = np.split(batch["image"], groups), np.split(batch["label"], groups)

    def loss(network, arrays, images, labels):
        plan = dataclasses.replace(without_training_options(network.plan), bn_momentum=network.plan.bn_momentum)
        logits, stats = network.with_plan(plan).train(arrays, images, key)
        return -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels].mean(), (logits, stats)

    def gradient(network):
        return jax.jit(jax.grad(lambda *given: loss(network, *given), has_aux=True))

    placed = layout.place_batch(batch)
    sharded, (logits, stats) = gradient(network_of("functional", groups))(
        layout.place(arrays), placed["image"], placed["label"]
    )
    alone = gradient(network_of("functional", 1))
    each = [alone(arrays, images, labels) for images, labels in zip(*shares, strict=True)]
    expected = {name: np.mean([gradients[name] for gradients, _ in each], 0) for name in sharded}
    expected_stats = {name: np.mean([own[name] for _, (_, own) in each], 0) for name in stats}
    names = [name for name in arrays if name not in stats]
    found = [logits, *(sharded[name] for name in names), *(stats[name] for name in stats)]
    wanted = [np.concatenate([own for _, (own, _) in each])]
    wanted += [*(expected[name] for name in names), *(expected_stats[name] for name in stats)]
    return distance(found, wanted)


def estimated() -> float:
    """Running statistics estimated anew, on devices and on one."""
    network, layout = network_of("functional", 1), make_layout("data=2,fsdp=4")
    arrays = arrays_of(0)
    make = make_estimate(network)
    batches = [batch_of(number) for number in range(2)]
    (found,) = make([layout.place(arrays)], map(layout.place_batch, batches))
    (expected,) = make([arrays], batches)
    return distance([found[name] for name in arrays], [expected[name] for name in arrays])


def sent_kinds() -> list[str]:
    """The kinds of communication in a step on eight devices that mixes pictures."""
    case, layout = Case(augment=AugmentConfig(mixup=0.4)), make_layout()
    optimizer = make_optimizer(
        case.config.optimizer,
        lambda step: 0.1,
        {name: array for name, array in case.arrays.items() if name not in statistics(case.arrays)},
        frozenset(),
    )
    state = layout.place(initial_state(case.arrays, optimizer))
    step = make_train_step(case.network, optimizer, case.config, layout=layout)
    text = step.func.lower(*step.args, state, layout.place_batch(batch_of(0))).compile().as_text()
    return re.findall(r" (all-gather|all-to-all|reduce-scatter|collective-permute|all-reduce)(?:-start)?\(", text)


class Peak:
    """The most bytes that a device got within the `with` statement, as seen every few milliseconds and at its end."""

    def __init__(self) -> None:
        self.bytes = 0
        self._before = bytes_on_devices(jax.live_arrays())
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._end.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._end.wait(0.002):
            with contextlib.suppress(RuntimeError):  # one was deleted meanwhile
                self._look()

    def _look(self) -> None:
        now = bytes_on_devices(jax.live_arrays())
        self.bytes = max([self.bytes, *(size - self._before[device] for device, size in now.items())])


def bytes_on_devices(arrays) -> collections.Counter:
    found = {}  # arrays may share memory
    for array in arrays:
        if not array.is_deleted():
            for shard in array.addressable_shards:
                place = shard.device, shard.data.unsafe_buffer_pointer()
                found[place] = max(shard.data.nbytes, found.get(place, 0))
    total: collections.Counter = collections.Counter()
    for (device, _), size in found.items():
        total[device] += size
    return total


def painted(root: Path) -> None:
    for number in range(12):
        path = root / ("train" if number < 8 else "val") / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(batch_of(number)["image"][0]).save(path)


def started(kind: str, mesh: str) -> dict[str, float]:
    """How a run starts, and starts again from a checkpoint, on a mesh.

    Returns:
      Peaks on a device over what its share of the state and one array take, and whether the arrays are those with which
      it would start on one device, to the bit.
    """
    zoo.MODELS["small"] = Model(dataclasses.replace(SPEC, features=256), PREPROCESSING)
    with tempfile.TemporaryDirectory() as folder:
        painted(Path(folder))
        weights = os.path.join(folder, "weights.safetensors")
        card = ModelCard("small", 2, 3, PREPROCESSING, classes=("a", "b"))
        save_model(weights, initial_arrays(card.plan(), 5), card)
        config = Config(
            model=ModelConfig(name="small", pretrained=weights if kind == "pretrained" else None),
            data=DataConfig(path=folder),
            loss=LossConfig(distillation=0.5, teacher=weights) if kind == "taught" else LossConfig(),
            optimizer=OptimizerConfig(name="adamw", learning_rate=0.1),
            ema=EmaConfig(decay=0.9),
            batch_size=8,
            epochs=1,
            mesh=mesh,
        )
        return start_on(config, Path(folder, "checkpoints"))


def start_on(config: Config, folder: Path) -> dict[str, float]:
    alone = make_setup(dataclasses.replace(config, mesh="data=1"))
    expected = [
        np.array(leaf) for leaf in jax.tree.leaves((alone.start(), alone.lesson and alone.lesson.teacher.arrays))
    ]
    del alone
    gc.collect()
    with Peak() as peak:
        setup = make_setup(config)
        state = setup.start()
    leaves = jax.tree.leaves((state, setup.lesson and setup.lesson.teacher.arrays))
    share, one = max(bytes_on_devices(leaves).values()), max(leaf.nbytes for leaf in leaves)
    same = all(np.array_equal(own, other) for own, other in zip(map(np.asarray, leaves), expected, strict=True))
    checkpoints = Checkpoints(folder, 1)
    checkpoints.save(state.replace(step=state.step + 1), {})
    checkpoints.wait()
    del state, leaves
    gc.collect()
    with Peak() as restored:
        again = checkpoints.restore(setup.template())
    assert again
    checkpoints.close()
    return {"start": peak.bytes / (share + one), "restore": restored.bytes / (share + one), "same": same}


OTHERS = {
    "start": lambda: started("drawn", "data=4,fsdp=2"),
    "start-8": lambda: started("drawn", "data=1,fsdp=8"),
    "start-pretrained": lambda: started("pretrained", "data=4,fsdp=2"),
    "start-taught": lambda: started("taught", "data=2,fsdp=4"),
    **{f"by-{devices}": lambda devices=devices: by_groups(devices) for devices in (1, 2, 4)},
    "estimate": estimated,
    "collectives": sent_kinds,
}

if __name__ == "__main__":
    known = {**{name: lambda name=name: on_devices_and_alone(name) for name in CASES}, **OTHERS}
    print(json.dumps({name: known[name]() for name in sys.argv[1:] or known}))
