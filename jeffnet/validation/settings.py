"""What a validation depends on besides the model."""

from dataclasses import dataclass

from jeffnet.backends import RUNNING_BACKEND
from jeffnet.data.batches import OnBadImage
from jeffnet.data.columns import Columns
from jeffnet.errors import ConfigError, check_choice
from jeffnet.inference.choices import EXPLANATIONS

# Only what is given of these is stated in results.
OF_TABLES = ("path_column", "label_columns", "label_separator", "split_column", "image_folder")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a validation depends on besides the model; None uses the model's value.

    Attributes:
      data: see `jeffnet.data.open.open_source`; for the loader 'tf' see `jeffnet.data.tensorflow.eval_loader`.
      split: of the data set; 'val' also finds validation and test.
      path_column: see `jeffnet.data.columns.Columns`, as the next four, for data sets that are tables.
      label_columns: column of the label.
      label_separator: between several labels in a cell.
      split_column: column of the split.
      image_folder: folder that a table's paths are relative to.
      data_dir: where TensorFlow Datasets are prepared.
      num_classes: number of classes that the models must have; None allows any.
      loader: 'grain', 'tf' or 'pt'.
      backend: one of `jeffnet.backends.BACKENDS`.
      dtype: of the layers' arithmetic.
      batch_size: pictures of a batch on this host, over all its devices; 'auto' starts with what is likely to fit and,
        on a single host, halves it when memory runs out.
      mesh: how devices share the work, see `jeffnet.parallel.mesh.make_layout`.
      size: height and width of the pictures.
      crop_pct: share of the resized picture that is kept.
      crop_mode: 'center', 'squash' or 'border'.
      interpolation: 'bicubic' or 'bilinear'.
      tf_resize: how the loader 'tf' resizes, see `jeffnet.data.tensorflow.eval_loader`; None uses 'legacy' for `tf_`
        models, as their authors did, and 'pillow' for the others, which were trained with Pillow.
      num_examples: use only the first N pictures.
      label_map: file for `jeffnet.data.labels.read_label_map`.
      real_labels: file for `jeffnet.data.labels.read_real_labels`.
      subset: one of `jeffnet.data.labels.SUBSETS`, whose classes are the only ones that can be predicted.
      test_pool: `jeffnet.weights.start.with_test_pooling`, for pictures larger than in training.
      jit: compile the model.
      fused: run the fused model where `jeffnet.inference.fused_forward.computed_by` says that it can stand for the
        backend's layers; False always runs these.
      on_bad_image: for pictures that cannot be decoded: 'error' stops, 'skip' ignores and reports them.
      workers: processes that read pictures; None uses threads for 'grain', and a process per processor for 'pt'.
      exif: rotate pictures by their EXIF orientation, which timm and TensorFlow do not.
      mistakes: number of the most confident mistakes to keep with their pixels.
      explain: one of `jeffnet.inference.choices.EXPLANATIONS`, by which each of these mistakes also has a picture of
        what the model looked at; None for none.

    Raises:
      ConfigError: a setting is outside its range, whatever the data and the models are.
    """

    data: str
    split: str = "val"
    path_column: str | None = None
    label_columns: tuple[str, ...] = ()
    label_separator: str | None = None
    split_column: str | None = None
    image_folder: str | None = None
    data_dir: str | None = None
    num_classes: int | None = None
    loader: str = "grain"
    backend: str = RUNNING_BACKEND
    dtype: str = "float32"
    batch_size: int | str = "auto"
    mesh: str = "auto"
    size: tuple[int, int] | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None
    interpolation: str | None = None
    tf_resize: str | None = None
    num_examples: int | None = None
    label_map: str | None = None
    real_labels: str | None = None
    subset: str | None = None
    test_pool: bool = False
    jit: bool = True
    fused: bool = True
    on_bad_image: OnBadImage = "error"
    workers: int | None = None
    exif: bool = False
    mistakes: int = 0
    explain: str | None = None

    def __post_init__(self) -> None:
        if self.batch_size != "auto" and (not isinstance(self.batch_size, int) or self.batch_size < 1):
            raise ConfigError(f"batch_size {self.batch_size!r} is neither a number of pictures nor 'auto'")
        if self.mesh != Settings.mesh:
            from jeffnet.parallel.mesh import check_mesh  # JAX, for which mistakes need not wait

            check_mesh(self.mesh)
        if self.num_examples is not None and self.num_examples < 1:
            raise ConfigError(f"num_examples {self.num_examples} is not a number of pictures: give 1 or more")
        if self.explain is not None:
            check_choice("explain", self.explain, EXPLANATIONS)
        if self.test_pool and self.size is None:
            raise ConfigError(
                "test-time pooling is for pictures larger than in training: give their size too (--img-size; size in "
                "Python)"
            )

    @property
    def columns(self) -> Columns:
        """What the columns of a table say."""
        return Columns(self.path_column, self.label_columns, self.split_column, self.label_separator, self.image_folder)
