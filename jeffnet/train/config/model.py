"""Configuration of the model and of its pictures."""

from jeffnet.arch.preprocessing import CROP_MODES
from jeffnet.arch.spec import ModelSpec
from jeffnet.arch.tasks import TASKS
from jeffnet.arch.zoo import check_own_name
from jeffnet.backends import BACKENDS, DTYPES
from jeffnet.data.batches import OnBadImage
from jeffnet.data.choices import SAMPLINGS
from jeffnet.data.columns import Columns
from jeffnet.errors import ArchitectureError, ConfigError
from jeffnet.train.config.entries import check_range, choice, part


@part("model")
class ModelConfig:
    """The model; see `jeffnet.weights.start.ModelOptions`.

    Attributes:
      name: the model's name; None takes it from `pretrained`.
      spec: the architecture of a model that is not of the zoo: a `jeffnet.arch.spec.ModelSpec`, its attributes, or its
        stages of block strings. None takes that of `name`; a run keeps it, so that it can be resumed where the name is
        not registered.
      backend: 'linen', 'nnx', 'objax' or 'functional', whose layers are trained. All write the same files.
      in_chans: channels of the pictures, 3 or 1.
      drop_rate: dropout before the classifier; None as in the paper.
      drop_path_rate: stochastic depth; None as in the paper.
      global_pool: 'avg', 'max' or 'avgmax'; None as in `pretrained`, else 'avg'.
      output_stride: 32, 16 or 8; None as in `pretrained`, else 32.
      bn_momentum: share of the old running statistics that a step keeps: 0.9 is PyTorch's and timm's momentum of 0.1.
        None as in the paper, which suits long runs.
      bn_devices: how many neighbouring devices normalise their shares of a batch together. 1 needs no communication;
        None takes all devices, which gives the result of a single one. Running statistics move by the mean over the
        groups.
      dtype: dtype of the computation: 'float32', 'bfloat16' or 'float16'. Parameters stay float32; with 'float16' the
        loss is scaled dynamically.
      remat: compute blocks again in the backward pass instead of keeping their values.
      pretrained: weights to start from: the name of a model with published weights, a path, `hf:owner/name` or a URL.
        The classifier is new where the classes differ, by name if the weights name them.
      freeze: patterns of canonical names (`conv_stem*`, `blocks.[0-2].*`) that are not trained. Frozen norms keep their
        running statistics and normalise by them.
    """

    name: str | None = None
    spec: ModelSpec | None = None
    backend: str = choice(BACKENDS, "linen")
    in_chans: int = 3
    drop_rate: float | None = None
    drop_path_rate: float | None = None
    global_pool: str | None = choice(("avg", "max", "avgmax"))
    output_stride: int | None = None
    bn_momentum: float | None = None
    bn_devices: int | None = None
    dtype: str = choice(DTYPES, "float32")
    remat: bool = False
    pretrained: str | None = None
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_range("model.bn_devices", self.bn_devices, 1)
        if self.spec is not None and self.name is not None:
            try:
                check_own_name(self.name)
            except ArchitectureError as error:
                raise ConfigError(f"model.spec is the architecture of a model of one's own: {error}") from error

    @property
    def architecture(self) -> str | ModelSpec | None:
        """What the functions of `jeffnet.arch.zoo` take for the model; None where only `pretrained` says it."""
        return self.name if self.spec is None else self.spec

    @property
    def known_architecture(self) -> str | ModelSpec:
        """The same.

        Raises:
          ConfigError: it is None.
        """
        if self.architecture is None:
            raise ConfigError("give model.name, or a model.pretrained whose weights say of which model they are")
        return self.architecture


@part("data")
class DataConfig:
    """The pictures.

    Attributes:
      path: any data set that `jeffnet validate` reads: an image folder with `train/<class>/` and `val/<class>/`,
        `tfds:name`, `hf:name`, ..., or `digits`.
        A table lists pictures and labels: `.csv`, `.tsv`, `.jsonl`, `.parquet` or COCO's `.json`; `{split}` in its name
        stands for the split. The next entries are for tables.
      path_column: column of the pictures' paths; None finds path, file_name, filename, file or image; to be given for
        `.parquet`.
      task: what a picture has: 'single_label', one of the classes; 'multi_label', any number of them; 'regression',
        numbers. The last two are for tables.
      label_columns: column of the label; none finds label, labels or class. Several columns are one class each, 0 or 1,
        or one number each in regression.
      label_separator: between the labels in a cell, such as `;`; not needed for lists.
      split_column: column that says train or val; None finds split, if there is one.
      image_folder: folder that paths are relative to, in which `{split}` stands for the split; None takes the table's.
      group_column: column that says which pictures belong together, such as those of a patient or a film, for
        `validation_share` and `folds`: a group is trained on or validated as a whole.
      validation_share: share of every class that is taken from the training split, or from a data set without splits,
        for validation in place of `val_split`; drawn by `seed` and kept in the run's `split.csv`. None takes none.
      folds: parts of equal size that the pictures are divided into, one of which is validated, for cross-validation:
        `jeffnet train --folds` sets this and `fold`.
      fold: number of the part that is validated, from 1.
      train_split: split to train on.
      val_split: split to validate on.
      image_size: side of the pictures in validation, and in training unless `train_size` is given; None takes the sizes
        of `model.pretrained`, else the model's, which may be smaller in training.
      train_size: side of the pictures in training, if it differs.
      crop_pct: share of a resized picture that validation keeps; None takes the weights', else the model's.
      interpolation: 'bicubic' or 'bilinear'; None takes the weights', else the model's.
      mean: mean of the pixels in [0, 1], by channel; None takes the weights', else the model's.
      std: standard deviation of the pixels, by channel; None takes the weights', else the model's.
      crop_mode: how validation crops, 'center', 'squash' or 'border'; None takes the weights', else the model's.
      sampling: how often classes are drawn in training: 'natural', as often as they have pictures; 'balanced', all
        alike; 'square_root', in proportion to the square root of their pictures. Epochs keep their length
        (arXiv:1910.09217).
      threads: how many decode and augment pictures.
      workers: how many processes do that instead of the threads.
      on_bad_image: at a picture that cannot be decoded, 'error' stops; 'skip' logs it, trains on another picture
        instead, and skips it in validation.
    """

    path: str
    path_column: str | None = None
    task: str = choice(TASKS, "single_label")
    label_separator: str | None = None
    label_columns: tuple[str, ...] = ()
    split_column: str | None = None
    image_folder: str | None = None
    group_column: str | None = None
    validation_share: float | None = None
    folds: int | None = None
    fold: int | None = None
    train_split: str = "train"
    val_split: str = "val"
    image_size: int | None = None
    train_size: int | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_mode: str | None = choice(CROP_MODES)
    sampling: str = choice(SAMPLINGS, "natural")
    threads: int = 4
    workers: int = 0
    on_bad_image: OnBadImage = "error"

    def __post_init__(self) -> None:
        if self.std is not None and not (self.std and min(self.std) > 0):
            raise ConfigError(f"data.std {self.std} must be positive")
        if self.validation_share is not None and not 0 < self.validation_share < 1:
            raise ConfigError(f"data.validation_share {self.validation_share} is outside (0, 1)")
        check_range("data.folds", self.folds, 2)
        if (self.folds is None) != (self.fold is None) or (self.folds and self.validation_share is not None):
            raise ConfigError(
                "data.folds and data.fold belong together, without data.validation_share: use --folds (train_folds in "
                "Python)"
            )
        check_range("data.fold", self.fold, 1, self.folds or 1)
        if self.group_column is not None and not self.is_divided:
            raise ConfigError("data.group_column is for data.validation_share and folds: give one of them")

    @property
    def is_divided(self) -> bool:
        """Whether pictures of the training split are validated."""
        return self.validation_share is not None or self.folds is not None

    @property
    def columns(self) -> Columns:
        """What the columns of a table say."""
        return Columns(
            self.path_column,
            self.label_columns,
            self.split_column,
            self.label_separator,
            self.image_folder,
            self.task,
            self.group_column,
        )
