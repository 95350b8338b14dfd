"""Learning from a teacher's features: the loss, the projections, the teachers, and what is refused in one line."""

import functools
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from jeffnet.arch.lower import lower
from jeffnet.arch.model import Model
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.spec import ModelSpec
from jeffnet.arch.summary import array_specs
from jeffnet.arch.zoo import MODELS
from jeffnet.backends import BACKENDS
from jeffnet.cli.main import main
from jeffnet.errors import ConfigError, JeffnetError, TrainingError
from jeffnet.ops.init import initial_arrays
from jeffnet.ops.network import Outputs
from jeffnet.parallel.mesh import Layout
from jeffnet.train.config import Config, DataConfig, EmaConfig, LossConfig, ModelConfig, OptimizerConfig, QuantizeConfig
from jeffnet.train.distillation import Lesson, losses_with_teacher, make_lesson
from jeffnet.train.dry_run import rehearse
from jeffnet.train.folds import train_folds
from jeffnet.train.loop import resume, train
from jeffnet.train.network import Network
from jeffnet.train.param_groups import treatments
from jeffnet.train.range_test import find_learning_rate
from jeffnet.train.reports.steps import StepMetrics
from jeffnet.train.run import create_run
from jeffnet.train.seeds import train_or_resume, train_seeds
from jeffnet.train.setup import Setup, make_setup
from jeffnet.train.state import initial_state
from jeffnet.train.step import make_train_step
from jeffnet.train.teacher import Teacher, TeacherOutputs, network_teacher
from jeffnet.weights.card import ModelCard
from jeffnet.weights.formats.safetensors import save_model
from jeffnet.weights.start import Start, start_arrays, statistics

RNG = np.random.default_rng(0)
CLASSES = ("blue", "green", "red")
BATCH = {"image": RNG.integers(0, 256, (4, 16, 16, 3), np.uint8), "label": np.array([0, 1, 2, 1], np.int32)}
# Compiled in no time; of `FEATURES` the widths of two differ, and the size of the third.
STUDENT = ModelSpec(stages=(("cn_r1_k1_s1_c8",), ("cn_r1_k1_s2_c8",)), stem=8, features=16)
TEACHER = ModelSpec(stages=(("cn_r1_k1_s2_c16",), ("cn_r1_k1_s2_c8",)), stem=8, features=24)
FEATURES = ("pre_logits", "1", "-1")
PREPROCESSING = Preprocessing(16, 1.0)
OTHER_PREPROCESSING = replace(PREPROCESSING, mean=(0.5, 0.4, 0.3), std=(0.3, 0.2, 0.1))


def network_of(spec, classes=3, backend="functional", preprocessing=PREPROCESSING, dtype=jnp.float64):
    plan = lower(spec, num_classes=classes, in_chans=3, drop_rate=0.0)
    return Network(Start(plan, {}, dtype, dtype), preprocessing, backend)


def teacher_of(classes=5, dtype=jnp.float64):
    network = network_of(TEACHER, classes, preprocessing=OTHER_PREPROCESSING, dtype=dtype)
    return network, network_teacher(network, start_arrays(network.plan, 7, dtype), FEATURES)


def configured(loss, **entries):
    entries = {"model": ModelConfig(name="efficientnet_b0"), "data": DataConfig(path="-"), "batch_size": 4} | entries
    return Config(loss=loss, **entries)


def lesson_of(loss, own=None, student=STUDENT, classes=CLASSES, sizes=(16,), devices=1, **entries):
    plan = lower(student, num_classes=len(classes), in_chans=3)
    layout = Layout.of(jax.devices()[:1] * devices)
    return make_lesson(configured(loss, **entries), plan, classes, sizes, layout, own)


ALONE = LossConfig(distillation=0, feature_distillation=2.0, features=FEATURES)


def test_the_loss_of_pooled_features_is_timms(timm, x64):
    """Of `FeatureDistillationTask`, with its gradients to the projection and to the student."""
    import torch
    from timm.task import FeatureDistillationTask

    class Fake(torch.nn.Module):
        """A model whose features are a product of its input."""

        num_classes, in_chans, pretrained_cfg = 3, 3, {"mean": (0.5,) * 3, "std": (0.5,) * 3}

        def __init__(self, width):
            super().__init__()
            self.num_features = width
            self.features, self.head = (torch.nn.Linear(*shape).double() for shape in ((9, width), (width, 3)))

        def forward_features(self, x):
            return self.features(x)

        def forward_head(self, x, pre_logits=False):
            return x if pre_logits else self.head(x)

    pixels, labels = RNG.normal(size=(6, 9)), np.array([0, 1, 2, 1, 0, 2])
    student, teacher = Fake(7), Fake(5)
    task = FeatureDistillationTask(
        student, teacher, torch.nn.CrossEntropyLoss(), distill_loss_weight=3.0, dtype=torch.float64, verbose=False
    )
    expected = task(torch.tensor(pixels), torch.tensor(labels))
    expected["loss"].backward()
    layer, linear = task.trainable_module.projection, student.features
    arrays = {"projection.pre_logits.kernel": layer.weight.T, "projection.pre_logits.bias": layer.bias}
    arrays |= {"kernel": linear.weight.T, "bias": linear.bias, "head": student.head.weight.T, "rest": student.head.bias}
    arrays = {name: jnp.asarray(array.detach().numpy()) for name, array in arrays.items()}
    answers = TeacherOutputs(pre_logits=jnp.asarray(teacher.features(torch.tensor(pixels)).detach().numpy()))

    def loss_of(arrays):
        features = pixels @ arrays["kernel"] + arrays["bias"]
        logits = features @ arrays["head"] + arrays["rest"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels))
        config = LossConfig(distillation=0, feature_distillation=3.0)
        losses, metrics = losses_with_teacher(config, losses, Outputs(logits, features, ()), answers, arrays)
        return losses.mean(), metrics

    (loss, metrics), gradients = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(arrays)
    np.testing.assert_allclose(loss, expected["loss"].item(), rtol=1e-12)
    np.testing.assert_allclose(metrics["feature_loss"], expected["kd_loss"].item(), rtol=1e-12)
    for name, gradient in (("projection.pre_logits.kernel", layer.weight.grad.T), ("kernel", linear.weight.grad.T)):
        np.testing.assert_allclose(gradients[name], gradient.numpy(), rtol=1e-10, atol=1e-14)


def stepped(backend="functional", **entries):
    """The state and metrics of one step of the student, its state before, and the lesson."""
    _, teacher = teacher_of()
    lesson = lesson_of(ALONE, teacher)
    network = network_of(STUDENT, backend=backend)
    arrays = start_arrays(network.plan, 0, jnp.float64)
    arrays |= {name: jnp.asarray(array) for name, array in lesson.projections(0, jnp.float64).items()}
    optimizer = optax.sgd(0.1)
    state = initial_state(jax.tree.map(jnp.array, arrays), optimizer, averaged=True)
    config = configured(ALONE, ema=EmaConfig(decay=0.9), **entries)
    step = make_train_step(network, optimizer, config, teacher=lesson.teacher)
    with jax.numpy_rank_promotion("raise"):
        return *step(state, BATCH), arrays, lesson


@functools.cache
def expected_losses():
    """The distance of the features and the whole loss before that step, by the definition."""
    _, _, arrays, lesson = stepped()

    @jax.jit
    def losses(arrays, teacher_arrays, pixels):
        own, _ = network_of(STUDENT).train_outputs(arrays, pixels, jax.random.key(0), (1, -1))
        answers = lesson.teacher.apply(teacher_arrays, pixels)
        # The teacher's last map has half the height and width.
        last = jax.image.resize(answers.features[-1], own.features[1].shape, "linear")
        pooled, first = (
            x @ arrays[f"projection.{name}.kernel"] + arrays[f"projection.{name}.bias"]
            for name, x in (("pre_logits", own.pre_logits), ("1", own.features[0]))
        )
        pairs = (pooled, answers.pre_logits), (first, answers.features[1]), (own.features[1], last)
        distance = sum(((one - other) ** 2).mean() for one, other in pairs) / 3
        plain = optax.softmax_cross_entropy_with_integer_labels(own.logits, BATCH["label"]).mean()
        return distance, plain + 2 * distance

    return losses(arrays, lesson.teacher.arrays, jnp.asarray(BATCH["image"], jnp.float64))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_learns_features_in_every_backend(backend, x64):
    """The student moves, and the projections of the two features whose widths differ."""
    if backend == "objax":
        pytest.importorskip("objax")
    state, metrics, arrays, lesson = stepped(backend)
    assert lesson.widths == {"pre_logits": (16, 24), "1": (8, 16), "-1": (8, 8)}
    projections = {name.split(".")[1] for name in arrays if name.startswith("projection.")}
    assert projections == {"pre_logits", "1"}
    np.testing.assert_allclose((metrics["feature_loss"], metrics["loss"]), expected_losses(), rtol=1e-10)
    assert "distillation_loss" not in metrics
    after = {**state.params, **state.batch_stats}
    assert not [name for name in arrays if (after[name] == arrays[name]).all()]
    assert state.arrays.keys() == state.average.keys() == array_specs(network_of(STUDENT).plan).keys()


def test_a_teacher_normalises_by_its_own_mean(x64):
    network, teacher = teacher_of()
    pixels = jnp.asarray(BATCH["image"], jnp.float64)
    expected = network.evaluate(teacher.arrays, pixels)
    np.testing.assert_allclose(teacher.apply(teacher.arrays, pixels).logits, expected, rtol=1e-10)
    other = replace(network, preprocessing=PREPROCESSING).evaluate(teacher.arrays, pixels)
    assert (np.abs(expected - other) > 1e-3).any()


def test_projections_learn_as_the_classifier_does():
    """As the last layer of `layer_decay`, with weight decay of their kernels."""
    lesson = Lesson(Teacher(lambda *_: TeacherOutputs()), {"pre_logits": (16, 24), "1": (8, 12), "0": (8, 8)}, "")
    projections = lesson.projections(0, jnp.float32)
    assert {name: array.shape for name, array in projections.items()} == {
        "projection.pre_logits.kernel": (16, 24),
        "projection.pre_logits.bias": (24,),
        "projection.1.kernel": (8, 12),
        "projection.1.bias": (12,),
    }
    params = {**initial_arrays(network_of(STUDENT).plan, 0), **projections}
    params = {name: array for name, array in params.items() if name not in statistics(params)}
    treated = treatments(OptimizerConfig(name="adamw", layer_decay=0.5, weight_decay=0.1), params)
    for leaf in ("kernel", "bias"):
        assert treated[f"projection.1.{leaf}"] == treated[f"classifier.{leaf}"]
    assert treated["blocks.1.0.conv.kernel"].rate == 0.5


@pytest.fixture
def teacher_file(tmp_path, monkeypatch):
    """Writes weights of the teacher, whose architecture is registered, with these classes."""

    def write(*classes, **card):
        monkeypatch.setitem(MODELS, "teacher_of_the_tests", Model(TEACHER, OTHER_PREPROCESSING))
        about = replace(ModelCard("teacher_of_the_tests", len(classes), 3, OTHER_PREPROCESSING, classes), **card)
        path = tmp_path / "teacher.safetensors"
        save_model(path, initial_arrays(about.plan(), 5), about)
        return str(path)

    return write


@pytest.mark.runs
def test_a_run_resumes_to_the_bit_and_its_models_have_no_projection(
    config, teacher_file, undrawn, tmp_path, rows, crash_after, assert_same_run
):
    """From a teacher of other classes, to a student of every kind of array."""
    loss = LossConfig(
        teacher=teacher_file("a", "b"), distillation=0, feature_distillation=0.5, features=("pre_logits", "0")
    )
    taught = replace(config, loss=loss, epochs=2)
    train(taught, tmp_path / "whole", progress=False)
    with crash_after(6):
        train(taught, tmp_path / "half", progress=False)
    resume(tmp_path / "half", progress=False)
    assert_same_run(tmp_path / "half", tmp_path / "whole")
    logged = [row for row in rows(tmp_path / "whole") if "train_loss" in row]
    assert all(row["train_feature_loss"] > 0 and "train_distillation_loss" not in row for row in logged)
    setup = make_setup(taught)
    assert "projected to 24" in setup.lesson.description
    assert "projection.pre_logits.kernel" in setup.template().params
    for name in ("model.safetensors", "model_ema.safetensors"):
        assert load_file(tmp_path / "whole" / name).keys() == array_specs(setup.network.plan).keys()


@pytest.mark.runs
def test_a_teacher_of_ones_own_is_needed_to_go_on(config, undrawn, tmp_path, crash_after):
    own = Teacher(lambda scale, pixels: TeacherOutputs(pixels.mean((1, 2)) * scale), arrays=jnp.float32(0.1))
    with crash_after(4):
        train(replace(config, epochs=1), tmp_path / "run", progress=False, teacher=own)
    with pytest.raises(ConfigError, match="begun with a teacher of your own: continue it from Python, with teacher="):
        resume(tmp_path / "run", progress=False)


def test_a_teacher_of_ones_own_puts_its_classes_in_order():
    pixels = jnp.arange(2 * 3.0).reshape(2, 1, 1, 3)
    own = Teacher(lambda _, pixels: TeacherOutputs(pixels.mean((1, 2))), classes=("red", "blue", "green"))
    lesson = lesson_of(LossConfig(), own)
    np.testing.assert_array_equal(lesson.teacher.apply((), pixels).logits, pixels[:, 0, 0, jnp.array([1, 2, 0])])


def _exported(teacher_file, tmp_path, ending, classes=CLASSES):
    path = str(tmp_path / f"teacher{ending}")
    assert main(["export", teacher_file(*classes), "--output", path, "--no-check"]) == 0
    return path


@pytest.mark.parametrize(("ending", "package"), [(".onnx", "onnxruntime"), (".stablehlo", "flatbuffers")])
def test_an_exported_file_teaches_what_its_weights_do(ending, package, teacher_file, tmp_path):
    """With its classes in another order than the data's; any number of pictures."""
    pytest.importorskip(package)
    path = _exported(teacher_file, tmp_path, ending, CLASSES[::-1])
    pixels = jnp.asarray(BATCH["image"], jnp.float32)
    found = [lesson_of(LossConfig(teacher=source)).teacher for source in (path, str(tmp_path / "teacher.safetensors"))]
    logits, expected = (jax.jit(teacher.apply)(teacher.arrays, pixels).logits for teacher in found)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    if ending == ".onnx":
        with pytest.raises(ConfigError, match="runs outside JAX, which is for one device, not 2: export it as StableH"):
            lesson_of(LossConfig(teacher=path), devices=2)
    with pytest.raises(ConfigError, match="takes pictures of 16x16, the training has 24x24: export it with"):
        lesson_of(LossConfig(teacher=path), sizes=(16, 24))
    with pytest.raises(ConfigError, match=r"has logits alone: set loss.feature_distillation 0, or give the weights"):
        lesson_of(LossConfig(teacher=path, feature_distillation=1.0))
    with pytest.raises(ConfigError, match=r"has other classes than the data: .*give a teacher that was trained on"):
        lesson_of(LossConfig(teacher=path), classes=("blue", "green", "rot"))


def test_a_runtime_that_is_missing_is_named(teacher_file, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    path = _exported(teacher_file, tmp_path, ".onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(JeffnetError, match="running ONNX files needs onnxruntime: pip install onnx onnxruntime"):
        lesson_of(LossConfig(teacher=path))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"feature_distillation": -1.0}, "loss.feature_distillation -1.0 must be at least 0"),
        ({"feature_distillation": 1.0, "features": ("layer4",)}, "loss.features 'layer4' is unknown: take pre_logits"),
        ({"feature_distillation": 1.0, "features": ()}, "loss.features is empty"),
        ({"feature_distillation": 1.0, "features": ("1", "1")}, "one is there twice"),
        ({"features": ("1",)}, "has no effect: set its weight, loss.feature_distillation"),
    ],
)
def test_entries_that_will_not_do_are_one_line(entries, message):
    with pytest.raises(ConfigError, match=message) as caught:
        LossConfig(**entries)
    assert "\n" not in str(caught.value)


def _gives(**outputs):
    """A teacher of one's own that gives zeros of these shapes after the first axis."""

    def apply(_, pixels):
        zeros = {name: jax.tree.map(lambda shape: jnp.zeros((len(pixels), *shape)), shape, is_leaf=_is_shape)
                 for name, shape in outputs.items()}  # fmt: skip
        return TeacherOutputs(**zeros)

    return Teacher(apply)


def _is_shape(value):
    return isinstance(value, tuple)


POOLED = LossConfig(distillation=0, feature_distillation=1.0)
MAPS = replace(POOLED, features=("1", "pre_logits"))


@pytest.mark.parametrize(
    ("loss", "own", "message"),
    [
        (POOLED, None, r"loss.feature_distillation 1 needs a teacher: set loss.teacher, or, also to continue"),
        (LossConfig(teacher="b0"), _gives(logits=(3,)), "'b0' and teacher= are two teachers: leave one out"),
        (LossConfig(), _gives(pre_logits=(9,)), "gives no logits: set loss.distillation 0"),
        (LossConfig(), _gives(logits=(5,)), "has 5 classes, the data 3: .* or compare features alone"),
        (LossConfig(), _gives(logits=(2, 2, 3)), r"gives logits of \(2, 2, 2, 3\), not \(N, classes\)"),
        (POOLED, _gives(logits=(5,)), "loss.features pre_logits: teacher of your own gives no pre_logits"),
        (POOLED, _gives(pre_logits=(2, 2, 9)), r"gives pre_logits of \(2, 2, 2, 9\), not \(N, F\)"),
        (MAPS, _gives(pre_logits=(9,), features={0: (4, 4, 9)}), r"gives no features\[1\]"),
        (MAPS, _gives(features={1: (9,)}), r"gives features\[1\] of \(2, 9\), not \(N, H, W, C\)"),
        (replace(MAPS, features=("2",)), _gives(), "loss.features 2: the model has 2 maps of features, 0 to 1"),
        (POOLED, Teacher(lambda _, pixels: pixels), "returns .*: return TeacherOutputs"),
        (POOLED, _gives(pre_logits=[(9,)]), "gives pre_logits as list: give one array"),
        (LossConfig(), _gives(logits={"a": (3,)}), "gives logits as dict: give one array"),
        (MAPS, _gives(pre_logits=(9,), features=[(4, 4, 9)]), r"gives features as list: give a dictionary of maps by"),
        (LossConfig(), "b0", r"teacher 'b0' is no function: give .*Teacher\(function, arrays\), or set loss.teacher"),
        (LossConfig(), Teacher("b0"), "is no function: give"),
        (
            LossConfig(),
            replace(_gives(logits=(3,)), classes="abc"),
            "classes 'abc' of teacher .*: give the name of each",
        ),
        (LossConfig(), replace(_gives(logits=(3,)), classes=(1, 2, 3)), r"classes \(1, 2, 3\) of teacher"),
        (LossConfig(), replace(_gives(logits=(3,)), arrays={"a": ["b0"]}), r"arrays\['a'\]\[0\] of .* is str, not an"),
        (
            LossConfig(),
            replace(_gives(logits=(3,)), arrays=object()),
            "arrays of teacher of your own is object, not an",
        ),
        (POOLED, Teacher(lambda _, pixels: pixels @ pixels), r"fails on pixels of shape \(2, 16, 16, 3\): "),
    ],
)
def test_a_teacher_that_will_not_do_is_one_line(loss, own, message):
    with pytest.raises(ConfigError, match=message) as caught:
        lesson_of(loss, own)
    assert "\n" not in str(caught.value)


def test_weights_without_a_map_or_without_pooling_are_refused(teacher_file):
    student = replace(STUDENT, stages=(*STUDENT.stages, ("cn_r1_k1_s2_c8",), ("cn_r1_k1_s2_c8",)))
    loss = LossConfig(teacher=teacher_file(*CLASSES), distillation=0, feature_distillation=1.0, features=("3",))
    with pytest.raises(ConfigError, match=r"loss.features 3: loss.teacher .* has 3 maps of features, 0 to 2"):
        lesson_of(loss, student=student)
    unpooled = teacher_file(*CLASSES, global_pool="none")
    with pytest.raises(ConfigError, match="logits for every place of its last map: pool them"):
        lesson_of(replace(POOLED, teacher=unpooled))
    assert lesson_of(replace(POOLED, teacher=unpooled, features=("0",))).widths == {"0": (8, 8)}


def test_teachers_that_cannot_work_are_refused_before_the_run():
    one = Teacher(lambda _, pixels: TeacherOutputs(jnp.zeros((1, 3)), jnp.zeros((1, 7))))
    with pytest.raises(ConfigError, match=r"gives logits of \(1, 3\), not \(N, classes\) with N of 2"):
        lesson_of(LossConfig(), one)
    for own, shape in ((one, r"\(1, 7\)"), (_gives(pre_logits=(0,)), r"\(2, 0\)")):
        with pytest.raises(ConfigError, match=rf"gives pre_logits of {shape}, not \(N, F\) with N of 2"):
            lesson_of(replace(POOLED, teacher=None), own)
    with pytest.raises(ConfigError, match=r"teacher of your own has no effect: set loss.distillation"):
        lesson_of(LossConfig(distillation=0.0), _gives(logits=(3,)))
    with pytest.raises(ConfigError, match=r"loss.feature_distillation inf must be finite, and at least 0"):
        replace(POOLED, feature_distillation=float("inf"))


@pytest.mark.parametrize(
    ("loss", "logits", "features", "finite"),
    [
        (LossConfig(), np.nan, 0.0, False),
        (LossConfig(hard=True), np.nan, 0.0, False),
        (LossConfig(hard=True), -np.inf, 0.0, True),  # a class that the teacher rules out
        (LossConfig(), 0.0, np.nan, True),  # which are not compared
        (POOLED, np.nan, 0.0, True),
        (POOLED, 0.0, np.inf, False),
    ],
)
def test_what_is_compared_of_a_teacher_is_known_to_be_finite_or_not(loss, logits, features, finite):
    answers = TeacherOutputs(jnp.array([[0.0, logits], [0.0, 1.0]]), jnp.array([[features], [0.0]]))
    student = Outputs(jnp.zeros((2, 2)), jnp.zeros((2, 1)), ())
    losses, metrics = losses_with_teacher(loss, jnp.zeros(2), student, answers, {})
    assert metrics["teacher_finite"] == finite
    assert np.isfinite(losses).tolist() == [finite, True]


def test_a_teacher_that_is_not_finite_is_named(config, undrawn, tmp_path, monkeypatch):
    """Instead of the learning rate: in training, the rehearsal and the range test."""
    own, nan = Teacher(lambda _, pixels: TeacherOutputs(pixels.mean((1, 2)) * jnp.nan)), jnp.float32(jnp.nan)
    metrics = {"loss": nan, "grad_norm": nan, "teacher_finite": jnp.float32(0.5), "skipped": jnp.int32(1)}
    monkeypatch.setattr(Setup, "step", lambda setup, phase: lambda state, batch: (state, metrics))
    named = "teacher of your own gives numbers that are not finite: check its weights"
    with pytest.raises(TrainingError, match=rf"^the loss of the first steps is nan: {named}"):
        rehearse(config, teacher=own)
    monkeypatch.setattr("jeffnet.train.range_test.compile_together", lambda *_: None)
    with pytest.raises(TrainingError, match=f"^{named}"):
        find_learning_rate(config, teacher=own)
    assert cause(metrics, lesson_of(LossConfig(), own)).startswith(
        f"loss nan with gradients of norm nan at step 4: {named}"
    )


def cause(metrics, lesson=None, steps=4):
    """What training says where the metrics of the last of some steps are these."""
    setup = SimpleNamespace(lesson=lesson, config=configured(LossConfig()))
    run = SimpleNamespace(checkpoints=SimpleNamespace(steps=()), folder="run")
    collected = StepMetrics(run, setup, None, SimpleNamespace(note=lambda _: None), None)
    good = {"loss": 1.0, "grad_norm": 1.0, "skipped": 0}
    for row in [good] * (steps - 1) + [metrics] + [good]:
        collected.add(row)
    with pytest.raises(TrainingError) as caught:
        collected.read(steps + 1)
    return str(caught.value)


def test_a_loss_that_is_no_number_is_the_learning_rates_fault_after_a_step_alone():
    row = {"loss": np.nan, "grad_norm": np.nan, "skipped": 1}
    assert "at step 2: lower optimizer.learning_rate" in cause(row, steps=2)
    first = cause(row, steps=1)
    assert "at step 1: nothing was learnt before" in first and "lower" not in first
    assert "lower optimizer.learning_rate" in cause(row | {"loss": 1.0}, steps=1)  # of the gradients clipping may help


def test_seeds_and_folds_take_a_teacher(config, tmp_path):
    data = replace(config.data, path=f"{config.data.path}/train")
    (tmp_path / "begun").mkdir()
    create_run(tmp_path / "begun", config, None)
    for begin in (
        lambda: train_seeds(config, tmp_path / "seeds", [0], teacher="b0"),
        lambda: train_folds(replace(config, data=data), tmp_path / "folds", 2, teacher="b0"),
        lambda: train_or_resume(config, tmp_path / "begun", False, "b0"),
    ):
        with pytest.raises(ConfigError, match="teacher 'b0' is no function"):
            begin()


def test_other_tasks_compare_features_alone():
    """The classes of the teacher then mean nothing."""
    labels = DataConfig(path="-", task="multi_label")
    several = replace(POOLED, teacher="b0", name="bce")
    assert configured(several, data=labels).loss == several
    own, loss = _gives(logits=(3,), pre_logits=(9,)), replace(several, teacher=None)
    assert lesson_of(loss, own, data=labels).widths == {"pre_logits": (16, 9)}
    with pytest.raises(ConfigError, match=r"loss.distillation 0.5 is not for data.task 'multi_label': set it to 0"):
        lesson_of(replace(loss, distillation=0.5), own, data=labels)
    with pytest.raises(ConfigError, match=r"loss.feature_distillation 1.0 is not for training with quantize.to"):
        configured(POOLED, quantize=QuantizeConfig(to="int8"))


def test_features_are_set_on_the_command_line(tmp_path, capsys):
    options = ["--data.path", "-", "--loss.features", "pre_logits,3,-1", "--loss.feature_distillation", "2"]
    assert main(["train", "--config", "fine_tune", *options, "--print-config"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"]["features"] == ["pre_logits", "3", "-1"]
