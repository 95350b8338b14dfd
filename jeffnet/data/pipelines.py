"""The three evaluation pipelines under one call."""

from jeffnet.data.batches import WHOLE, EvalLoader, OnBadImage, Shard
from jeffnet.data.choices import LOADERS
from jeffnet.data.columns import USUAL, Columns
from jeffnet.data.preprocess import EvalTransform
from jeffnet.errors import ConfigError, check_choice


def open_pipeline(
    loader: str,
    data: str,
    split: str,
    transform: EvalTransform,
    batch_size: int,
    *,
    channels: int = 3,
    columns: Columns = USUAL,
    data_dir: str | None = None,
    workers: int | None = None,
    shard: Shard = WHOLE,
    on_bad_image: OnBadImage = "error",
    num_examples: int | None = None,
    tf_resize: str = "legacy",
) -> EvalLoader:
    """One pass over a data set, for evaluation.

    The loader 'grain' reads with Grain, and neither TensorFlow nor PyTorch; 'tf' with TensorFlow, as the authors of the
    papers evaluated; 'pt' with PyTorch's DataLoader, as timm does. 'grain' and 'pt' give the same pixels. `workers` are
    processes for 'grain' (None or 0: threads) and 'pt' (None: one for each processor), threads for 'tf'. Other options
    are those of `jeffnet.data.tensorflow.eval_loader`, `tf_resize` is its `resize`; see `open_source` for `data`.

    Raises:
      ConfigError: no such loader, or a setting outside its range.
      DatasetError: the data set cannot be read.
    """
    check_choice("loader", loader, LOADERS)
    if loader == "tf":
        if columns != USUAL:
            raise ConfigError("the loader 'tf' reads tables by the usual names of their columns only: take 'grain'")
        from jeffnet.data.tensorflow import eval_loader

        return eval_loader(
            data,
            split,
            transform,
            batch_size,
            channels=channels,
            data_dir=data_dir,
            threads=workers,
            shard=shard,
            on_bad_image=on_bad_image,
            num_examples=num_examples,
            resize=tf_resize,
        )
    from jeffnet.data.open import open_source
    from jeffnet.data.sources import First

    source = open_source(data, split, channels, data_dir=data_dir, columns=columns)
    if num_examples is not None and num_examples < len(source):
        source = First(source, num_examples)
    if loader == "pt":
        from jeffnet.data.pytorch import eval_loader

        return eval_loader(source, transform, batch_size, workers=workers, shard=shard, on_bad_image=on_bad_image)
    from jeffnet.data.loaders import eval_loader

    return eval_loader(source, transform, batch_size, workers=workers or 0, shard=shard, on_bad_image=on_bad_image)
