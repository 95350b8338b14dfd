"""Pictures of a configuration before training: the learning rate, and augmented pictures."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jeffnet.arch.imagenet import class_titles
from jeffnet.data.augment.sheet import draw_sheet
from jeffnet.data.loaders import Examples, steps_per_epoch
from jeffnet.errors import DatasetError
from jeffnet.text.names import counted, wrapped
from jeffnet.train.augment import augment_batch
from jeffnet.train.config import Config
from jeffnet.train.data_sets import training_set
from jeffnet.train.pretrained import settled
from jeffnet.train.reports.curves import Course, draw_schedule
from jeffnet.train.schedule import make_schedule
from jeffnet.train.setup import make_setup, train_transform

# Training pictures of ImageNet-1k, for a schedule without data.
_EXAMPLES = 1_281_167
_PICTURES, _VIEWS = 6, 6
_LABEL = 20  # characters in a line
# Pictures of a smaller side are hard to see.
_SIDE = 160


def plot_schedule(config: Config, path: str) -> str:
    """Draw the learning rate over the whole run, for as many pictures as ImageNet has if the data set is missing.

    Returns:
      A description of the picture, in one line.
    """
    try:
        epoch_steps = steps_per_epoch(training_set(config), config.batch_size, config.min_epoch_steps)
        of_what = config.data.path
    except DatasetError:
        epoch_steps = round(_EXAMPLES / config.batch_size)
        of_what = f"{_EXAMPLES} pictures, as ImageNet has, since {config.data.path!r} cannot be read"
    steps = config.epochs * epoch_steps
    schedule = make_schedule(config.schedule, config.optimizer.learning_rate, steps, epoch_steps)
    title = f"learning rate: {config.schedule.name.replace('_', ' ')}, {counted(config.epochs, 'epoch')}"
    draw_schedule(Course(schedule, steps, epoch_steps), path, title)
    return f"{path}: {counted(steps, 'step')} in {counted(config.epochs, 'epoch')} of {of_what}"


def plot_augment(config: Config, path: str) -> str:
    """Draw training pictures as the steps of the first phase see them, several times.

    Returns:
      A description of the picture, in one line.
    """
    setup = make_setup(settled(config))
    phase = setup.phases[0]
    transform = train_transform(phase, setup.network.preprocessing)
    # Spread over the data set, which may be sorted by class.
    numbers = np.unique(np.linspace(0, len(setup.train_set) - 1, _PICTURES).round().astype(int)).tolist()
    examples = Examples(setup.train_set, config.data.on_bad_image)
    pictures = [examples[number] for number in numbers]
    labels = jnp.array([picture.label for picture in pictures])
    views = []
    for view in range(_VIEWS):
        rngs = [np.random.default_rng((config.seed, view, number)) for number in range(len(pictures))]
        images = [transform(picture.image, rng) for picture, rng in zip(pictures, rngs, strict=True)]
        key = jax.random.fold_in(jax.random.key(config.seed), view)
        pixels, _ = augment_batch(jnp.asarray(np.stack(images)), labels, key, phase.config, setup.network)
        views.append(np.clip(np.rint(np.asarray(pixels)), 0, 255).astype(np.uint8))
    rows, titles = [], class_titles(setup.train_set.classes)
    for number, picture in enumerate(pictures):
        shown = [(f"view {view}", _visible(pixels[number])) for view, pixels in enumerate(views, 1)]
        rows.append((wrapped(titles[picture.label], _LABEL), shown))
    draw_sheet(rows, Path(path))
    return f"{path}: {counted(len(rows), 'training picture')}, {_VIEWS} times each: {phase.description}"


def _visible(pixels: np.ndarray) -> np.ndarray:
    """A picture, or its views side by side; the pixels of a small one become squares."""
    flat = np.concatenate(list(pixels), axis=1) if pixels.ndim == 4 else pixels
    scale = max(1, round(_SIDE / flat.shape[0]))
    return flat.repeat(scale, axis=0).repeat(scale, axis=1)
