"""What a run consists of, made from its configuration before anything is written."""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.quantization import Quantization
from jeffnet.arch.zoo import model_preprocessing, own_spec, resolve_name
from jeffnet.data.batches import EvalLoader, Shard
from jeffnet.data.division import Division
from jeffnet.data.loaders import LoaderState, TrainLoader, eval_loader, steps_per_epoch, train_loader
from jeffnet.data.preprocess import EvalTransform, TrainTransform
from jeffnet.data.sampling import class_counts, class_draws, source_labels
from jeffnet.data.sources import Labelled, Source, evenly_spread
from jeffnet.errors import ConfigError
from jeffnet.inference.plain_norms import folded_arrays, folded_plan, with_plain_norms
from jeffnet.inference.quantized import PASSES, calibrate, normalized_batches
from jeffnet.parallel.mesh import Layout, make_layout
from jeffnet.system.progress import progress_bar
from jeffnet.text.names import counted
from jeffnet.train.balance import Balance, make_balance
from jeffnet.train.config import Config
from jeffnet.train.data_sets import open_data_sets
from jeffnet.train.distillation import Lesson, make_lesson
from jeffnet.train.network import Network, make_network, untrained_parameters
from jeffnet.train.optim import make_optimizer
from jeffnet.train.phases import Phase, make_phases
from jeffnet.train.pretrained import OF_PICTURES
from jeffnet.train.reports.boards import check_boards
from jeffnet.train.schedule import Schedule, make_schedule
from jeffnet.train.state import TrainState, initial_state
from jeffnet.train.step import TrainStep, make_train_step
from jeffnet.train.teacher import Teacher
from jeffnet.weights.card import ModelCard
from jeffnet.weights.start import start_arrays, statistics


@dataclass(frozen=True)
class Setup:
    """The parts of a run; nothing of it changes while it runs.

    Attributes:
      config: what to do.
      network: the model, as it is validated.
      card: describes the model in its files.
      train_set: the training pictures.
      division: text of `split.csv`, where the run divides its pictures.
      class_counts: int64 `(classes,)`, how many training pictures each class has; None where that is not known.
      val_batches: the validation pictures.
      steps_per_epoch: how many steps an epoch has.
      schedule: of the learning rate.
      optimizer: of the parameters that are not frozen.
      phases: parts of the run in which every step is the same.
      balance: what the loss does about unequal classes.
      lesson: what is learnt from a teacher, or None; its arrays lie as `layout` says.
      layout: where states and batches lie.
    """

    config: Config
    network: Network
    card: ModelCard
    train_set: Source
    division: str | None
    class_counts: np.ndarray | None
    val_batches: EvalLoader
    steps_per_epoch: int
    schedule: Schedule
    optimizer: optax.GradientTransformation
    phases: list[Phase]
    balance: Balance
    lesson: Lesson | None
    layout: Layout

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.config.epochs * self.steps_per_epoch

    @property
    def description(self) -> str:
        """In one line."""
        card, config = self.card, self.config
        outputs = counted(card.num_classes, "number" if card.task == "regression" else "class")
        return (
            f"{card.model} on {config.data.path}: {len(self.train_set)} training and "
            f"{counted(self.val_batches.num_examples, 'validation picture')} of {outputs}, "
            f"{_sizes(card.preprocessing)}, {counted(config.epochs, 'epoch')} of "
            f"{counted(self.steps_per_epoch, 'step')}"
            + (f", on {self.layout.devices} devices ({self.layout})" if self.layout.devices > 1 else "")
        )

    def template(self) -> TrainState:
        """Shapes, dtypes and shardings of the state."""
        shapes = jax.eval_shape(self._initial_state, {**self.network.start.arrays, **self._projections()})
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            self.layout.shardings(shapes),
        )

    def start(self) -> TrainState:
        """The state before the first step, made where it lies: no device ever has more than its part and one array."""
        model = self.config.model
        arrays = start_arrays(
            self.network.plan,
            self.config.seed,
            self.network.compute_dtype,
            model=model.known_architecture,
            pretrained=model.pretrained,
            adapt=True,
            classes=self.card.classes,
            place=self.layout.place,
        )
        if self.config.quantize.to:
            plain = with_plain_norms(self.network.plan, jax.device_get(self.layout.gather(arrays)))
            arrays = {name: self.layout.place(array) for name, array in plain.items()}
        arrays |= {name: self.layout.place(array) for name, array in self._projections().items()}
        shardings = self.layout.shardings(jax.eval_shape(self._initial_state, arrays))
        return jax.jit(self._initial_state, out_shardings=shardings, donate_argnums=0)(arrays)

    def step(self, phase: Phase) -> TrainStep:
        """The step of a phase."""
        plan, drop_rate = self.network.plan, phase.config.model.drop_rate
        return make_train_step(
            self.network.with_plan(plan if drop_rate is None else replace(plan, drop_rate=drop_rate)),
            self.optimizer,
            phase.config,
            teacher=self.lesson and self.lesson.teacher,
            balance=self.balance,
            average_from=round(self.config.ema.start_epoch * self.steps_per_epoch),
            layout=self.layout,
        )

    def batches(self, phase: Phase, position: LoaderState | None = None) -> TrainLoader:
        """The training batches of a phase, from a position on."""
        data = self.config.data
        loader = train_loader(
            self.train_set,
            train_transform(phase, self.network.preprocessing),
            _own_rows(self.config.batch_size),
            self.config.seed,
            data.threads,
            data.workers,
            own_shard(),
            repeats=self.config.augment.repeats,
            on_bad_image=data.on_bad_image,
            sampling=data.sampling,
        )
        if position is not None:
            loader.set_state(position)
        return loader

    def quantized(self, quantization: Quantization) -> "Setup":
        """The same run, rounding to these grids."""
        network, card = (replace(part, quantization=quantization) for part in (self.network, self.card))
        return replace(self, network=network, card=card)

    def calibrated(self, state: TrainState, progress: bool = False) -> "Setup":
        """The same run, rounding to the grids that training pictures show for a state."""
        plan, preprocessing, count = self.network.plan, self.network.preprocessing, len(self.train_set)
        arrays = folded_arrays(plan, jax.device_get(self.layout.gather(state.arrays)))
        places, transform = evenly_spread(count, self.config.quantize.images), EvalTransform(preprocessing)
        pictures = np.stack([transform(self.train_set[place].image) for place in places])
        with progress_bar("calibrating", PASSES * len(pictures), "image", shown=progress) as bar:
            batches = normalized_batches(pictures, preprocessing, bar.update)
            found = calibrate(folded_plan(plan), self.network.start.execution, arrays, batches)
        bits = self.config.quantize.kernel_bits
        return self.quantized(replace(found, method=f"{found.method}, trained with them", kernel_bits=bits))

    def _projections(self) -> dict[str, np.ndarray]:
        return self.lesson.projections(self.config.seed, self.network.compute_dtype) if self.lesson else {}

    def _initial_state(self, arrays: dict) -> TrainState:
        return initial_state(
            arrays,
            self.optimizer,
            frozen=untrained_parameters(self.network.plan, self.config),
            averaged=self.config.ema.is_on,
            scaled=self.config.model.dtype == "float16",
        )


def make_setup(
    config: Config,
    schedule: Schedule | None = None,
    division: Division | None = None,
    teacher: Teacher | None = None,
) -> Setup:
    """The parts of a run; a JeffnetError where the configuration or the data will not do.

    Args:
      config: of the run.
      schedule: of the learning rate, in place of the configuration's.
      division: which pictures the run validates, if it was begun and divides them; None draws them.
      teacher: one that the configuration does not name.
    """
    check_boards(config.log)
    data, preprocessing = config.data, run_preprocessing(config)
    sets = open_data_sets(config, division)
    train_set, val_set = sets.train, sets.val
    counts, balance = _class_balance(config, train_set)
    num_classes = len(train_set.classes)
    epoch_steps = steps_per_epoch(train_set, config.batch_size, config.min_epoch_steps)
    network = make_network(config.model, preprocessing, num_classes)
    layout = make_layout(config.mesh, _state_bytes(config, network))
    _check_shares(config, layout)
    network = network.shared_by(layout.devices, config.model.bn_devices)
    schedule = schedule or make_schedule(
        config.schedule, config.optimizer.learning_rate, config.epochs * epoch_steps, epoch_steps
    )
    frozen = untrained_parameters(network.plan, config)
    untrained = statistics(network.start.arrays).keys() | frozen
    trained = {name: shape for name, shape in network.start.arrays.items() if name not in untrained}
    phases = make_phases(config, preprocessing)
    for phase in phases:  # so that errors in a later one show before the run starts
        train_transform(phase, preprocessing)
    sizes = [phase.image_size for phase in phases]
    lesson = make_lesson(config, network.plan, train_set.classes, sizes, layout, teacher)
    trained |= lesson.projections(config.seed, network.compute_dtype) if lesson else {}
    return Setup(
        config=config,
        network=network,
        card=ModelCard(
            model=_model_name(config),
            num_classes=num_classes,
            in_chans=config.model.in_chans,
            preprocessing=preprocessing,
            classes=train_set.classes,
            global_pool=network.plan.global_pool,
            output_stride=config.model.output_stride or 32,
            spec=own_spec(config.model.known_architecture),
            task=data.task,
        ),
        train_set=train_set,
        division=sets.division,
        class_counts=counts,
        val_batches=eval_loader(
            val_set,
            EvalTransform(preprocessing),
            _own_rows(config.batch_size),
            data.threads,
            data.workers,
            own_shard(),
            on_bad_image=data.on_bad_image,
        ),
        steps_per_epoch=epoch_steps,
        schedule=schedule,
        optimizer=make_optimizer(config.optimizer, schedule, trained, frozen),
        phases=phases,
        balance=balance,
        lesson=lesson,
        layout=layout,
    )


def _class_balance(config: Config, train_set: Source) -> tuple[np.ndarray | None, Balance]:
    """How many pictures each class has, where that is known, and what the loss does about it."""
    loss, classes = config.loss, train_set.classes
    options = {"loss.weighting": loss.weighting, "loss.logit_adjustment": loss.logit_adjustment}
    needed = next((f"{name} {value}" for name, value in options.items() if value), "")
    if config.data.task == "regression" or not (needed or isinstance(train_set, Labelled)):
        return None, make_balance(loss, None, classes)
    counts = class_counts(source_labels(train_set, needed), len(classes))
    if config.data.task == "multi_label":
        return counts, make_balance(loss, counts, classes, len(train_set))
    return counts, make_balance(loss, class_draws(counts, config.data.sampling), classes)


def _model_name(config: Config) -> str:
    """The name of the model in its files; beside an architecture of one's own it need not be registered."""
    name, spec = config.model.name, config.model.spec
    return name if spec and name else resolve_name(config.model.known_architecture)


def own_shard() -> Shard:
    """The share of a data set that this process reads."""
    return Shard(jax.process_index(), jax.process_count())


def _own_rows(batch_size: int) -> int:
    return batch_size // jax.process_count()


def _state_bytes(config: Config, network: Network) -> int:
    """About what a state takes: parameters, their gradients, two arrays of the optimizer, and an average."""
    count = sum(math.prod(shape.shape) for shape in network.start.arrays.values())
    return count * jnp.dtype(network.compute_dtype).itemsize * (4 + config.ema.is_on)


def _check_shares(config: Config, layout: Layout) -> None:
    """Raises ConfigError where devices and parts cannot share a batch evenly."""
    shares = layout.devices * config.accumulate
    if config.batch_size % shares:
        parts = f" in {config.accumulate} parts" if config.accumulate > 1 else ""
        raise ConfigError(
            f"batch_size {config.batch_size} cannot be shared by {counted(layout.devices, 'device')}{parts}: give a "
            f"multiple of {shares}" + ("" if layout.is_shared else ", or fewer devices, such as mesh data=1")
        )


def run_preprocessing(config: Config) -> Preprocessing:
    """The model's preprocessing with what the configuration says instead."""
    chosen = {name: getattr(config.data, name) for name in OF_PICTURES}
    preprocessing = model_preprocessing(config.model.known_architecture)
    if config.data.image_size is not None:
        preprocessing = replace(preprocessing, train_size=None)
    return preprocessing.changed(**chosen)


def _sizes(preprocessing: Preprocessing) -> str:
    tested, trained = preprocessing.image_size, preprocessing.train_size
    return f"{trained} px, validated at {tested} px" if trained not in (None, tested) else f"{tested} px"


def train_transform(phase: Phase, preprocessing: Preprocessing) -> TrainTransform:
    """What is done to the training pictures of a phase on the host."""
    augment = phase.config.augment
    names = ("scale", "ratio", "hflip", "vflip", "color_jitter", "policy", "splits")
    settings = {name: getattr(augment, name) for name in names}
    if augment.interpolation:
        settings["interpolation"] = augment.interpolation
    return TrainTransform.of(preprocessing, phase.image_size, **settings)
