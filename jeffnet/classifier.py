"""A classifier in five lines, from a picture to names.

    import jeffnet

    classifier = jeffnet.Classifier.from_pretrained("tf_efficientnet_lite0")
    for name, probability in classifier("photo.jpg").top(5):
        print(name, probability)

`docs/python.md` shows the rest.
"""

import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, overload

import jax
import numpy as np
from PIL import Image

from jeffnet.arch.imagenet import class_titles
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.zoo import ModelLike
from jeffnet.backends import load_backend, to_start
from jeffnet.backends.common import with_options
from jeffnet.checkpoints import describe_model, save_checkpoint
from jeffnet.data.preprocess import EvalTransform
from jeffnet.errors import ConfigError, WeightsError
from jeffnet.export.targets import has_ending
from jeffnet.inference.classification import Classification, Classifications
from jeffnet.inference.forward import check_classifies, probabilities
from jeffnet.inference.outputs import LOGITS, PRE_LOGITS, compiled_output
from jeffnet.inference.pictures import listed_pictures, load_image, transform_for
from jeffnet.models import DEFAULT_BACKEND
from jeffnet.system.progress import progress_bar, progress_line
from jeffnet.text.names import counted
from jeffnet.weights.card import ModelCard
from jeffnet.weights.load import Source
from jeffnet.weights.start import Pretrained, PretrainedModule, PretrainedOptions, Start, start_pretrained

if TYPE_CHECKING:
    from jeffnet.export import ExportReport
    from jeffnet.export.run import ExportedModel
    from jeffnet.inference.vectors import Vectors
    from jeffnet.validation.metrics import Scores

# What is compiled: batches of these sizes, the least that holds the pictures.
_BATCHES = (1, 4, 16)
# Pictures of one call that its result shows.
_MOST_SHOWN = 64
_SECONDS_WITHOUT_BAR = 1  # a call may be one of many


class Classifier:
    """A model with all that it takes from pictures to names.

    The model is compiled with its norms folded, once for each of a few sizes of batch, when it is first called. A
    classifier can be pickled and copied, for other processes too: the copy has the weights, or the path of the exported
    file, and compiles anew.

    Attributes:
      card: name, preprocessing and classes of the model.
      classes: names of its classes for people, in the order of the probabilities.
    """

    def __init__(
        self,
        *model: Any,
        name: ModelLike | ModelCard | None = None,
        classes: Sequence[str] = (),
        preprocessing: Preprocessing | None = None,
    ) -> None:
        """A classifier of a model of any backend.

        Args:
          model: what `create_model` returns, a pair as two arguments, or the result of `from_pretrained`.
          name: of the model, its architecture, or its card; not needed with the result of `from_pretrained`.
          classes: names in the order of the logits; the card's by default, or ImageNet's if the classifier is that of
            published weights.
          preprocessing: what the model expects of pictures; the card's or the model's by default.

        Raises:
          ConfigError: there is no name.
          WeightsError: the model is not of this name, or its plan does not say what it computes.
        """
        given = model[0] if len(model) == 1 else model
        if name is None:
            if not isinstance(given, Pretrained | PretrainedModule):
                raise ConfigError("a model does not say its name: give name=..., or what from_pretrained returned")
            name = given.card
        start = to_start(given)
        card, _ = describe_model(start, name, classes, preprocessing)
        self._set_up(card, start)

    def _set_up(self, card: ModelCard, start: Start | None, exported: "ExportedModel | None" = None) -> None:
        self.card, self._start, self._exported = card, start, exported
        self.classes = class_titles(card.classes) or tuple(f"class {index}" for index in range(card.num_classes))
        self._compiled: dict[Any, Callable[[Any], Any]] = {}
        self._lock = threading.RLock()
        transform = transform_for(card, exif=True)
        if exported is not None:
            transform = replace(transform, transform=replace(transform.transform, size=exported.image_size))
        self._transform = transform

    @classmethod
    @with_options
    def from_pretrained(
        cls, source: Source, name: ModelLike | None = None, **options: Unpack[PretrainedOptions]
    ) -> "Classifier":
        """A classifier from weights, or from an exported file, which its own runtime runs.

        Args:
          source: the name of a model for its published weights, a path, `hf:owner/name` or a URL; or the path of an
            exported file: `.onnx`, `.tflite`, `.stablehlo`, or the folder of a SavedModel.
          name: of the model, or its architecture; not needed where the weights state it.
          options: see `jeffnet.weights.start.PretrainedOptions`.

        Returns:
          The classifier.

        Raises:
          UnknownModelError: no such model.
          WeightsError: the weights cannot be found or read, do not fit, or state another name.
        """
        classifier = cls.__new__(cls)
        if isinstance(source, str | os.PathLike) and _is_exported(source):
            from jeffnet.export.run import open_exported

            if options:
                raise ConfigError(f"{str(source)!r} is an exported file, which takes no options: {', '.join(options)}")
            exported = open_exported(source, name)
            classifier._set_up(exported.card, None, exported)
        else:
            start, card = start_pretrained(source, name, **options)
            classifier._set_up(card, start)
        return classifier

    def __getstate__(self) -> dict[str, Any]:
        path = None if self._exported is None else os.path.abspath(self._exported.path)
        return {"card": self.card, "start": self._start, "exported": path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        exported = None
        if state["exported"] is not None:
            from jeffnet.export.run import open_exported

            exported = open_exported(state["exported"], state["card"].architecture)
        self._set_up(state["card"], state["start"], exported)

    def __repr__(self) -> str:
        card = self.card
        size = card.preprocessing.image_size
        return f"Classifier({card.model}, {counted(card.num_classes, 'class')}, {size} x {size} x {card.in_chans})"

    @overload
    def __call__(self, pictures: str | os.PathLike | bytes | Image.Image) -> Classification: ...
    @overload
    def __call__(self, pictures: list[Any] | tuple[Any, ...]) -> Classifications: ...
    @overload
    def __call__(self, pictures: Any) -> Any: ...
    def __call__(self, pictures: Any) -> Any:
        """The probabilities of the classes of pictures.

        Pictures are turned upright, as their EXIF orientation says, and prepared as the model expects.

        Args:
          pictures: a path, an http(s) address, the bytes of a file, a picture of Pillow, or an array `(H, W, C)` or
            `(H, W)` of integers from 0 to 255 or floats from 0 to 1; a list or a tuple of these; or an array `(N, H, W,
            C)`.

        Returns:
          A `Classification` of one picture, `Classifications` of several.

        Raises:
          ImageError: a picture cannot be read.
          WeightsError: the model has no classifier.
        """
        check_classifies(self.card, None)
        pixels, single, logits = self._run(LOGITS, pictures)
        answers = Classifications(probabilities(logits, self.card), self.classes, pixels)
        return answers[0] if single else answers

    def embed(self, pictures: Any) -> np.ndarray:
        """The pooled features of pictures, the input of the classifier's last layer.

        Args:
          pictures: as for a call.

        Returns:
          float32 `(F,)` of one picture, `(N, F)` of several.
        """
        _, single, features = self._run(PRE_LOGITS, pictures)
        return features[0] if single else features

    def embed_data(
        self,
        data: str | os.PathLike,
        path: str | os.PathLike,
        split: str = "val",
        *,
        progress: bool = True,
        **settings: Any,
    ) -> "Vectors":
        """The vectors of all pictures of a data set, in a file; see `jeffnet.inference.embed.embed_source`.

        A run that was interrupted goes on where it was. The vectors are those of `embed`.

        Args:
          data: a folder with a folder of pictures for each class, or another data set, see
            `jeffnet.data.open.open_source`.
          path: of the file: `.parquet`, `.npz` or `.npy`.
          split: 'val' (also finds validation and test), 'train' or another.
          progress: show on standard error how far it is.
          **settings: see `jeffnet.inference.embed.EmbedSettings`.

        Returns:
          What the file has, in memory.

        Raises:
          JeffnetError: the data cannot be read, the file cannot be written, or a setting is out of its range.
        """
        from jeffnet.data.open import open_source
        from jeffnet.inference.embed import EmbedSettings, embed_source
        from jeffnet.inference.vectors import read_vectors

        start, transform = self._weights(), self._transform.transform
        assert isinstance(transform, EvalTransform)
        chosen = EmbedSettings(**_known(settings, EmbedSettings))
        source = open_source(os.fspath(data), split, self.card.in_chans)
        embed_source(start, transform, source, path, chosen, progress)
        return read_vectors(path)

    def explain(
        self,
        pictures: Any,
        method: str = "grad-cam",
        classes: Sequence[int] | None = None,
        layer: str | None = None,
    ) -> Any:
        """Pictures with what the model looks at in colour; `jeffnet.inference.explain.explain` gives the numbers.

        Args:
          pictures: as for a call.
          method: 'grad-cam', 'grad-cam++', 'smoothgrad' or 'occlusion'.
          classes: numbers of the classes to explain, one for each picture; None takes the most probable.
          layer: name of a map, see `feature_info`, for the first two methods; None takes the last.

        Returns:
          A picture of Pillow of one picture, a list of several: the part that the model sees, in the picture's own
          resolution, up to 800 pixels.

        Raises:
          ImageError: a picture cannot be read.
          ConfigError: no such method or layer, or the model has no classifier.
          InputError: there is no such class.
        """
        from jeffnet.inference.explain import explained

        start, transform = self._weights(), self._transform.transform
        assert isinstance(transform, EvalTransform)
        listed, single = listed_pictures(pictures)
        images = [load_image(picture, self.card.in_chans) for picture in listed]
        shown = explained(start, images, transform, method, classes, layer)
        return shown[0] if single else shown

    def features(self, pictures: Any, indices: Sequence[int] | None = None) -> tuple[np.ndarray, ...]:
        """Maps of features of pictures, from the finest to the coarsest.

        Args:
          pictures: as for a call.
          indices: which of `feature_info`; None takes all.

        Returns:
          float32 `(H / stride, W / stride, C)` of one picture, `(N, H / stride, W / stride, C)` of several.

        Raises:
          ArchitectureError: no such map.
        """
        _, single, maps = self._run(None if indices is None else tuple(indices), pictures)
        return tuple(each[0] for each in maps) if single else maps

    @property
    def feature_info(self) -> tuple[Any, ...]:
        """Name, channels and stride of each map that `features` can return."""
        return self._weights().plan.features

    def model(self, backend: str = DEFAULT_BACKEND) -> Any:
        """The model in a backend.

        Args:
          backend: 'nnx', 'linen', 'objax' or 'functional'.

        Returns:
          What that backend's `create_model` returns.
        """
        return load_backend(backend).build(self._weights())

    def evaluate(
        self, data: str | os.PathLike, split: str = "val", *, progress: bool = True, **settings: Any
    ) -> "Scores":
        """Accuracy on a set of labelled pictures, as `jeffnet validate` measures it.

        Args:
          data: a folder with a folder of pictures for each class, or another data set, see
            `jeffnet.data.open.open_source`.
          split: 'val' (also finds validation and test), 'train' or another.
          progress: show on standard error how far it is.
          **settings: see `jeffnet.validation.settings.Settings`.

        Returns:
          Scores with `top1`, `top5` (per cent), `loss` and `examples`.

        Raises:
          DatasetError: there is no such data set, or its classes are not the model's.
          ConfigError: a setting outside its range, or no such setting.
        """
        from jeffnet.validation.candidates import Candidate
        from jeffnet.validation.metrics import METRICS, Scores
        from jeffnet.validation.settings import Settings
        from jeffnet.validation.validate import validate

        settings = _known(settings, Settings)
        candidate = Candidate(self.card.model, file=self._exported.path) if self._exported else Candidate(None)
        if self._start is not None:
            candidate = replace(candidate, opened=(self._start, self.card))
        for outcome in validate([candidate], Settings(data=os.fspath(data), split=split, **settings), progress):
            row = outcome.row  # pyright: ignore[reportAttributeAccessIssue]
            return Scores(row["num_examples"], **{name: row[name] for name in METRICS})
        raise AssertionError

    def fine_tune(
        self,
        data: str | os.PathLike,
        /,
        epochs: int = 5,
        *,
        batch_size: int | None = None,
        output: str | os.PathLike | None = None,
        progress: bool = True,
        **entries: Any,
    ) -> "Classifier":
        """Train the model on other pictures; this classifier stays as it is.

        Args:
          data: a folder with `train/<class>/` and `val/<class>/`, or another data set, see
            `jeffnet.data.open.open_source`.
          epochs: passes over the training pictures.
          batch_size: of a step; None takes 32.
          output: a folder for the run: metrics, curves, checkpoints, the weights that it started from; None keeps none
            of them.
          progress: report on standard error.
          **entries: of `jeffnet.train.config.Config`, such as `seed=1` or `data={"image_size": 160}`, in place of those
            of the recipe `fine_tune`.

        Returns:
          A classifier of the classes of `data`, with the best model of the run in validation.

        Raises:
          JeffnetError: the data, an entry or the folder cannot be used, or the loss is not a finite number.
          InterruptedRunError: SIGTERM or SIGINT asked the run to stop.
        """
        from jeffnet.train.fine_tune import fine_tune

        self._weights()
        with tempfile.TemporaryDirectory() as temporary:
            best, _ = fine_tune(
                Path(temporary, "run") if output is None else Path(output),
                self.save,
                os.fspath(data),
                card=self.card,
                epochs=epochs,
                batch_size=batch_size,
                progress=progress,
                entries=entries,
            )
            return Classifier.from_pretrained(best)

    def export(self, path: str | os.PathLike, *, progress: bool = True, **options: Any) -> "ExportReport":
        """Write the model for another runtime, run it there and compare; see `jeffnet.export.export_model`.

        Args:
          path: to write to; its ending chooses the format, such as `.onnx` or `.tflite`.
          progress: show on standard error what is being done.
          **options: of `export_model`, such as `check_with="pictures"` or `include=("softmax",)`.

        Returns:
          What was written, and how far it is from the model.

        Raises:
          JeffnetError: as `export_model`.
        """
        from jeffnet.export import export_model

        with progress_line(progress) as show:
            return export_model(path, self.model("functional"), self.card, progress=show, **options)

    def save(self, path: str | os.PathLike, form: str | None = None) -> ModelCard:
        """Write the model to a file that `from_pretrained` reads; see `jeffnet.checkpoints.save_checkpoint`.

        Args:
          path: to write to; must not exist.
          form: of the file, see `jeffnet.checkpoints.form_of`; jeffnet's own by default.

        Returns:
          The card in the file.

        Raises:
          OutputError: the path exists or cannot be written.
        """
        return save_checkpoint(path, self.model("functional"), self.card, form=form)

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """Upload the model and its README to the hub; see `jeffnet.publish.push_to_hub`.

        Args:
          repository: `owner/name`.
          **options: of `push_to_hub`, such as `private=True` or `scores={"top-1": 77.7}`.

        Returns:
          The address of the commit.

        Raises:
          OutputError: the hub cannot be reached or refuses.
        """
        from jeffnet.publish import push_to_hub

        return push_to_hub(repository, self.model("functional"), self.card, **options)

    def _weights(self) -> Start:
        if self._start is None:
            assert self._exported is not None
            raise WeightsError(f"{self._exported.path!r} is an exported file, which has logits only: use the weights")
        return self._start

    def _run(self, output: Any, pictures: Any) -> tuple[np.ndarray | None, bool, Any]:
        """The pixels of the pictures, where they are few; whether there is only one; and what the model gives."""
        listed, single = listed_pictures(pictures)
        most, results, seen = _BATCHES[-1], [], []
        with progress_bar("", len(listed), "image", shown=len(listed) > most, delay=_SECONDS_WITHOUT_BAR) as bar:
            for first in range(0, max(len(listed), 1), most):
                pixels = self._transform.pixels(listed[first : first + most])
                results.append(self._batch(output, pixels))
                seen += [pixels] if len(listed) <= _MOST_SHOWN else []
                bar.update(len(pixels))
        joined = jax.tree.map(lambda *parts: np.concatenate(parts), *results)
        return np.concatenate(seen) if seen else None, single, joined

    def _batch(self, output: Any, pixels: np.ndarray) -> Any:
        """What the model gives for up to the largest batch, as float32 of NumPy."""
        if self._exported is not None and output == LOGITS:
            return np.asarray(self._exported(pixels), np.float32)
        count = len(pixels)
        size = next(size for size in _BATCHES if size >= count)
        padded = np.zeros((size, *pixels.shape[1:]), np.uint8)
        padded[:count] = pixels
        with self._lock:  # or two threads would compile the same
            if (output, size) not in self._compiled:
                shape = pixels.shape[1], pixels.shape[2]
                self._compiled[output, size] = compiled_output(self._weights(), output, size, shape)
        given = self._compiled[output, size](self._transform.normalized(padded))
        return jax.tree.map(lambda array: np.asarray(array[:count], np.float32), given)


def _known(settings: dict[str, Any], kind: Any) -> dict[str, Any]:
    """Settings, if the dataclass has all of them."""
    if unknown := settings.keys() - kind.__dataclass_fields__.keys():
        raise ConfigError(f"no setting {', '.join(sorted(unknown))}: see {kind.__module__}.{kind.__name__}")
    return settings


def _is_exported(source: str | os.PathLike) -> bool:
    """Whether a source is a path of an exported file, by its ending; weights have others."""
    path = Path(source)
    return has_ending(path) or (path / "saved_model.pb").is_file()
