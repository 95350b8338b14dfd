"""Validation: models by name or from files, a data set through any of three pipelines, one pass for several models."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jeffnet
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.zoo import find_model, model_preprocessing
from jeffnet.backends import load_backend
from jeffnet.data.batches import EvalLoader, Shard
from jeffnet.data.images import image_from_array
from jeffnet.data.labels import label_table, read_label_map, read_real_labels, real_index, subset_mask
from jeffnet.data.pipelines import open_pipeline
from jeffnet.data.preprocess import EvalTransform
from jeffnet.errors import ConfigError, JeffnetError
from jeffnet.export.run import content_hash, open_exported
from jeffnet.inference.forward import Forward, check_classifies, exported_forward, make_forward
from jeffnet.inference.fused_forward import BY_FUSED, FusedForward, computed_by
from jeffnet.ops.image import normalize
from jeffnet.parallel.mesh import make_layout
from jeffnet.validation.answers import IN_FLIGHT, Answers, Mistake, answer
from jeffnet.validation.batch_size import BatchSize, picture_bytes
from jeffnet.validation.candidates import Candidate
from jeffnet.validation.metrics import METRICS, Predictions, score, score_task
from jeffnet.validation.settings import OF_TABLES, Settings
from jeffnet.weights.card import ModelCard
from jeffnet.weights.start import Start, start_pretrained, with_test_pooling

IMAGENET_VALIDATION_EXAMPLES = 50_000
# Models that share a pass over the data are in the device's memory together.
MOST_TOGETHER = 8


@dataclass(frozen=True)
class Outcome:
    """One model's validation.

    Attributes:
      row: scores and everything needed to reproduce them, as JSON can hold it.
      answers: the model's predictions.
      classes: names of the model's classes, in the order of the logits; numbers if they have no names.
      name: returns the name of a picture, given its number in the data set.
      thresholds: of several labels, the probability of each class above which it counts as predicted: those of the
        weights, or if they have none those of the best F1 scores on these pictures.
    """

    row: dict[str, Any]
    answers: Answers
    classes: tuple[str, ...]
    name: Callable[[int], str]
    thresholds: tuple[float, ...] = ()


def validate(
    candidates: Sequence[Candidate],
    settings: Settings,
    progress: bool = False,
    keep_going: bool = False,
    check: bool = False,
) -> Iterator[Outcome | tuple[Candidate, JeffnetError]]:
    """Validate models. Models with the same preprocessing share a pass over the data.

    Args:
      candidates: the models.
      settings: everything else.
      progress: show on standard error how far it is.
      keep_going: if a model cannot be loaded, yield it with its error instead of raising the error.
      check: raise a ConfigError before the pass where a model has no published score on these data.

    Yields:
      The outcome of every model as soon as it is known.

    Raises:
      JeffnetError: the data are invalid, or a model cannot be loaded.

    Example:
      from jeffnet.validation.candidates import Candidate
      from jeffnet.validation.validate import Settings

      for outcome in validate([Candidate(None, "runs/first/model.safetensors")], Settings(data="pictures")):
          print(outcome.row["top1"])
    """
    real = read_real_labels(settings.real_labels) if settings.real_labels else None
    keys = [_pixels(candidate, settings) for candidate in candidates]
    for places in _grouped(keys, MOST_TOGETHER):
        models = []
        for place in places:
            try:
                models.append(_open_model(candidates[place], settings))
            except JeffnetError as error:
                if not keep_going:
                    raise
                yield candidates[place], error
        # A weights file may state another preprocessing than the zoo has: its model then needs a separate pass.
        for group in _grouped([model.needs for model in models], MOST_TOGETHER):
            yield from _pass([models[place] for place in group], settings, real, progress, check)


@dataclass(frozen=True)
class _Model:
    candidate: Candidate
    card: ModelCard
    forward: Forward
    variables: Any
    transform: EvalTransform
    resize: str | None
    row: dict[str, Any] = field(default_factory=dict)  # entries that are not the settings'
    start: Start | None = None  # where the model is to be explained

    @property
    def needs(self) -> tuple:
        """What models that share a pass over the data must have in common."""
        card = self.card
        return _shared_part(self.transform), self.resize, card.in_chans, card.num_classes, card.classes, card.task


def _pixels(candidate: Candidate, settings: Settings) -> Any:
    """What a model's pixels depend on, as far as it is known before its weights are read."""
    if candidate.name is None or candidate.file:
        return None
    return _shared_part(_transform(model_preprocessing(candidate.name), settings)), _resize(candidate.name, settings)


def _resize(name: str, settings: Settings) -> str | None:
    """How TensorFlow resizes for a model; None if another loader reads the pictures."""
    if settings.loader != "tf":
        return None
    return settings.tf_resize or ("legacy" if name.startswith("tf_") else "pillow")


def _transform(preprocessing: Preprocessing, settings: Settings) -> EvalTransform:
    height, width = settings.size or (None, None)
    preprocessing = preprocessing.changed(
        crop_pct=settings.crop_pct,
        interpolation=settings.interpolation,
        image_size=height if height == width else None,
    )
    return EvalTransform(preprocessing, None if height == width else settings.size, settings.crop_mode, settings.exif)


def _shared_part(transform: EvalTransform) -> EvalTransform:
    """Without the normalisation, which is not part of the pixels, unless the mean colours a border around them."""
    if transform.crop_mode == "border":
        return transform
    channels = len(transform.preprocessing.mean)
    blank = transform.preprocessing.changed(mean=(0.0,) * channels, std=(1.0,) * channels)
    return replace(transform, preprocessing=blank)


def _open_model(candidate: Candidate, settings: Settings) -> _Model:
    if candidate.file:
        return _open_file(candidate.file, candidate, settings)
    source = candidate.found or candidate.weights or True
    start, card = candidate.opened or start_pretrained(source, candidate.name, dtype=jnp.dtype(settings.dtype))
    transform = _transform(card.preprocessing, settings)
    _check_classes(candidate, card, settings)
    if settings.test_pool:
        trained = card.preprocessing.train_size or card.preprocessing.image_size
        if min(transform.shape) <= trained:
            raise ConfigError(f"test-time pooling of {card.model} needs pictures larger than its {trained} px")
        start = with_test_pooling(start, trained)
    devices = make_layout(settings.mesh).devices
    how = computed_by(settings.backend, start.dtype, fused=settings.fused, jit=settings.jit, devices=devices)
    resize, row = _resize(card.model, settings), {"computed_by": how}
    kept = start if settings.explain else None
    if how == BY_FUSED:
        return _Model(candidate, card, FusedForward(start, transform.preprocessing), {}, transform, resize, row, kept)
    backend = load_backend(settings.backend)
    model = backend.build(start)
    apply, variables = backend.inference(*(model if isinstance(model, tuple) else (model,)))
    forward = make_forward(apply, transform.preprocessing, settings.jit)
    return _Model(candidate, card, forward, variables, transform, resize, row, kept)


def _open_file(path: str, candidate: Candidate, settings: Settings) -> _Model:
    """The model of an exported file, whose runtime computes on the host, outside of JAX."""
    if settings.explain:
        raise ConfigError(f"{path!r} has no derivatives to explain it by: validate the weights")
    if jax.process_count() > 1:
        raise ConfigError(f"{path!r} runs in one process: validate it without several")
    exported = open_exported(path, candidate.name)
    if settings.size not in (None, exported.image_size):
        height, width = exported.image_size
        raise ConfigError(f"{path!r} takes pictures of {height}x{width} pixels alone: give no other size")
    card = exported.card
    _check_classes(candidate, card, settings)
    transform = _transform(card.preprocessing, replace(settings, size=exported.image_size))
    runtime = exported.runner.runtime
    row = {"backend": runtime, "dtype": exported.dtype, "computed_by": runtime, "sha256": content_hash(path)}
    return _Model(candidate, card, exported_forward(exported), {}, transform, _resize(card.model, settings), row)


def _check_classes(candidate: Candidate, card: ModelCard, settings: Settings) -> None:
    check_classifies(card, candidate.source)
    if settings.num_classes not in (None, card.num_classes):
        what = f"weights {candidate.source or candidate.name!r}"
        raise ConfigError(f"{what} have {card.num_classes} classes, not num_classes {settings.num_classes}")


def _pass(
    models: Sequence[_Model],
    settings: Settings,
    real: list[frozenset[int]] | None,
    progress: bool,
    check: bool,
) -> Iterator[Outcome]:
    """One pass over the data, for models whose `needs` are equal."""
    card = models[0].card
    mapping = read_label_map(settings.label_map, card.classes) if settings.label_map else None
    batch_size = BatchSize(settings.batch_size)
    batch_size.fit(max(picture_bytes(model.card.plan(), *model.transform.shape) for model in models))
    layout = make_layout(settings.mesh)

    if card.task != "single_label":
        _check_vector(card, settings, check)

    def work(size: int) -> tuple[EvalLoader, np.ndarray, list[Answers]]:
        loader = open_pipeline(
            settings.loader,
            settings.data,
            settings.split,
            _shared_part(models[0].transform),
            size,
            channels=card.in_chans,
            columns=replace(settings.columns, task=card.task),
            data_dir=settings.data_dir,
            workers=settings.workers,
            shard=Shard(jax.process_index(), jax.process_count()),
            on_bad_image=settings.on_bad_image,
            num_examples=settings.num_examples,
            tf_resize=models[0].resize or "legacy",
        )
        if real is not None:
            _real_of(loader, 0, real)  # fails before the pass if the pictures have no such labels
        table = label_table(loader.classes, card.num_classes, card.classes, mapping)
        if check:
            check_published({model.card.model: _published(model, settings, loader, table)[0] for model in models})
        mask = subset_mask(settings.subset, card.num_classes, table) if settings.subset else None
        pairs = [(model.forward, model.variables) for model in models]
        in_flight = 0 if any(model.candidate.file for model in models) else IN_FLIGHT
        answers = answer(
            pairs,
            loader,
            task=card.task,
            labels=table if card.task == "single_label" else np.eye(card.num_classes, dtype=np.float32)[table],
            mask=mask,
            mistakes=settings.mistakes,
            progress=progress,
            layout=layout,
            in_flight=in_flight,
        )
        return loader, table, answers

    loader, table, every = batch_size.run(work)
    for model, answers in zip(models, every, strict=True):
        yield _outcome(model, settings, batch_size.value, loader, table, answers, real)


def _check_vector(card: ModelCard, settings: Settings, check: bool) -> None:
    """Raises ConfigError where settings have no meaning for several labels or numbers."""
    options = {"--real-labels": settings.real_labels, "--subset": settings.subset, "--check": check}
    options["--loader"] = settings.loader != "grain" and settings.loader
    for name, value in options.items():
        if value:
            raise ConfigError(f"{name} is not for a model of task {card.task!r}: leave it out")


def _outcome(
    model: _Model,
    settings: Settings,
    batch_size: int,
    loader: EvalLoader,
    table: np.ndarray,
    answers: Answers,
    real: list[frozenset[int]] | None,
) -> Outcome:
    predictions, transform = answers.predictions, model.transform
    if real is not None and isinstance(predictions, Predictions):
        scores = score(predictions, [_real_of(loader, index, real) for index in predictions.index.tolist()])
        thresholds = ()
    else:
        scores, thresholds = score_task(model.card.task, predictions, model.card.thresholds or None)
    height, width = transform.shape
    preprocessing = {
        "image_size": height if height == width else [height, width],
        "crop_pct": transform.preprocessing.crop_pct,
        "crop_mode": transform.crop_mode,
        "interpolation": transform.preprocessing.interpolation,
        "mean": list(transform.preprocessing.mean),
        "std": list(transform.preprocessing.std),
        "exif": transform.exif,
        **({"resize": model.resize} if model.resize else {}),
    }
    top1, top5 = _published(model, settings, loader, table)
    row = {
        "model": model.card.model,
        "weights": _weights(model.candidate),
        **{name: getattr(settings, name) for name in ("data", "split", "loader", "backend", "dtype")},
        **model.row,
        **{name: getattr(scores, name) for name in METRICS},
        **({"thresholds": list(thresholds)} if thresholds else {}),
        "num_examples": scores.examples,
        "skipped": len(answers.skipped),
        "images_per_second": round(answers.images_per_second, 1),
        "preprocessing": preprocessing,
        "published_top1": top1,
        "published_top5": top5,
        "top1_difference": None if top1 is None or scores.top1 is None else round(scores.top1 - top1, 3),
        "batch_size": batch_size,
        "settings": stated_settings(model.candidate, settings),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": {"jeffnet": jeffnet.__version__, "jax": jax.__version__},
    }
    answers = replace(answers, mistakes=_explained(model, settings, answers.mistakes))
    names = model.card.classes or tuple(str(number) for number in range(model.card.num_classes))
    return Outcome(row, answers, names, loader.name, thresholds)


def _weights(candidate: Candidate) -> str | None:
    """The source of what was validated; of published weights their name with its tag, which is a source too."""
    if candidate.source or candidate.opened or candidate.name is None:
        return candidate.source
    return find_model(candidate.name).timm


def _explained(model: _Model, settings: Settings, mistakes: list[Mistake]) -> list[Mistake]:
    """The mistakes with what the model looked at when it guessed, where that is wanted."""
    if model.start is None or settings.explain is None or not mistakes:
        return mistakes
    from jeffnet.inference.explain import Explainer, overlay

    explainer, preprocessing, found = Explainer(model.start, settings.explain), model.transform.preprocessing, []
    for each in mistakes:
        image = normalize(each.pixels[None], preprocessing.mean, preprocessing.std)
        shown = overlay(image_from_array(each.pixels, each.pixels.shape[-1]), explainer(image, [each.guess])[0])
        found.append(replace(each, explained=np.asarray(shown)))
    return found


def _published(
    model: _Model, settings: Settings, loader: EvalLoader, table: np.ndarray
) -> tuple[float | None, float | None]:
    """The published top-1 and top-5 of a model on these data, where there are any."""
    is_scored = (
        model.candidate.weights is model.candidate.opened is model.card.spec is None
        and _is_imagenet_validation(settings, loader, table)
    )
    published = find_model(model.card.model).weights if is_scored else None
    return (published.top1, published.top5) if published else (None, None)


def check_published(scores: Mapping[str, float | None]) -> None:
    """Refuse `--check` where there is nothing to compare with.

    Args:
      scores: published top-1 by the model's name; None where there is none.

    Raises:
      ConfigError: a model has none.
    """
    if unknown := [name for name, top1 in scores.items() if top1 is None]:
        raise ConfigError(
            "--check compares published weights on the whole validation set of ImageNet-1k: nothing to compare for "
            f"{', '.join(unknown)}"
        )


def stated_settings(candidate: Candidate, settings: Settings) -> dict[str, Any]:
    """The settings of a row of results; an exported file has a runtime and a dtype of its own.

    Args:
      candidate: what was validated.
      settings: with which it was.

    Returns:
      Those that decided about the row, by name.
    """
    unstated = {name for name in OF_TABLES if not getattr(settings, name)}
    unstated |= {"backend", "dtype"} if candidate.file else set()
    return {name: value for name, value in asdict(settings).items() if name not in unstated}


def _real_of(loader: EvalLoader, index: int, real: list[frozenset[int]]) -> frozenset[int]:
    return real[real_index(loader.name(index), index, loader.num_examples, len(real))]


def _is_imagenet_validation(settings: Settings, loader: EvalLoader, table: np.ndarray) -> bool:
    return (
        loader.num_examples == IMAGENET_VALIDATION_EXAMPLES
        and len(set(table.tolist())) == 1000
        and not settings.split.startswith("train")
        and settings.subset is None
        and settings.real_labels is None
    )


def _grouped(keys: Sequence[Any], most: int) -> Iterator[list[int]]:
    """Positions of equal keys, at most `most` at a time, in order of first appearance."""
    groups: dict[Any, list[int]] = {}
    for place, key in enumerate(keys):
        groups.setdefault(key, []).append(place)
    for places in groups.values():
        for start in range(0, len(places), most):
            yield places[start : start + most]
