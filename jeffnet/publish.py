"""Publishing trained models with their descriptions, in a folder or in a repository of the hub.

    from jeffnet.publish import push_to_hub

    push_to_hub("me/flowers", model, "efficientnet_b0", classes=("daisy", "rose"), scores={"top-1": 97.2})

`from_pretrained("hf:me/flowers")` of every backend loads it; so does `from_pretrained` with a folder's path.
"""

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jeffnet.arch.imagenet import class_titles
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.spec import ModelSpec
from jeffnet.arch.summary import count_macs, count_parameters
from jeffnet.arch.zoo import ModelLike
from jeffnet.checkpoints import save_checkpoint
from jeffnet.errors import OutputError, one_line
from jeffnet.system.files import write_file
from jeffnet.system.network import is_offline
from jeffnet.text.names import markdown, portable, printable, shell_word
from jeffnet.weights.card import ModelCard
from jeffnet.weights.load import MODEL_FILE

_README = "README.md"


def save_pretrained(
    folder: str | os.PathLike,
    model: Any,
    name: ModelLike | ModelCard,
    *,
    classes: Sequence[str] = (),
    preprocessing: Preprocessing | None = None,
    scores: Mapping[str, float] | None = None,
    dataset: str = "",
    license: str = "",
    source: str = "",
) -> ModelCard:
    """Write a model and its README into a folder, which `from_pretrained` of every backend loads.

    Args:
      folder: created if necessary; must not have a model or a README.
      model: what any backend's `create_model` returns.
      name: of the model, its architecture, or the card that `from_pretrained` gave with it, see
        `jeffnet.checkpoints.save_checkpoint`.
      classes: names of the classes in the order of the logits; by default the card's.
      preprocessing: what the model expects of pictures; the card's or the zoo's by default.
      scores: in per cent, by name: `{"top-1": 77.7}`.
      dataset: on whose held-out pictures the scores were measured; of an absolute path its last folder is named.
      license: of the weights, by its identifier on the hub (`apache-2.0`).
      source: of the weights in the README's examples; the folder by default, of an absolute path its name alone.

    Returns:
      What the file says of the model.

    Raises:
      UnknownModelError: no such model.
      WeightsError: the model is not the one of this name.
      OutputError: the folder has a model already, or cannot be written.
    """
    folder = Path(folder)
    for file in (MODEL_FILE, _README):
        if (folder / file).exists():
            raise OutputError(f"{str(folder / file)!r} exists: remove it, or give another folder")
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            card = save_checkpoint(folder / MODEL_FILE, model, name, classes=classes, preprocessing=preprocessing)
            text = readme(card, source or portable(str(folder)), scores or {}, dataset, license)
            write_file(folder / _README, text)
        except BaseException:
            for file in (MODEL_FILE, _README):
                (folder / file).unlink(missing_ok=True)
            if is_new:
                shutil.rmtree(folder, ignore_errors=True)
            raise
    except OSError as error:
        raise OutputError(f"cannot write {str(folder)!r}: {error.strerror or error}") from error
    return card


def push_to_hub(
    repository: str,
    model: Any,
    name: ModelLike | ModelCard,
    *,
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    message: str = "Model and description",
    **description: Any,
) -> str:
    """Upload a model and its README to a repository of the hub, which is created if necessary.

    Args:
      repository: `owner/name`.
      model: what any backend's `create_model` returns.
      name: as of `save_pretrained`.
      private: whether to create a private repository.
      token: of the hub; by default the one of `hf auth login` or HF_TOKEN.
      revision: a branch; by default the main one.
      message: of the commit.
      **description: `classes`, `preprocessing`, `scores`, `dataset` and `license` of `save_pretrained`.

    Returns:
      The address of the commit.

    Raises:
      UnknownModelError, WeightsError: as `save_pretrained`; nothing is uploaded.
      OutputError: the hub cannot be reached or refuses.
    """
    if is_offline():
        raise OutputError(f"cannot push to {repository!r}: JEFFNET_OFFLINE or HF_HUB_OFFLINE is set")
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(folder, model, name, source=f"hf:{repository}", **description)
        try:
            api = HfApi(token=token)
            api.create_repo(repository, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repository, folder_path=folder, revision=revision, commit_message=message
            )
        except Exception as error:  # the hub's own, its HTTP client's, and OSError
            reason = one_line(error) + (f" ({one_line(error.__cause__)})" if error.__cause__ else "")
            raise OutputError(
                f"cannot push to {repository!r}: {reason}; check the name, and that `hf auth login` or "
                "HF_TOKEN has a token that may write"
            ) from error
    return str(commit.commit_url)


def readme(card: ModelCard, source: str, scores: Mapping[str, float], dataset: str = "", license: str = "") -> str:
    """The README of a model, which begins with the hub's metadata.

    Args:
      card: of the model.
      source: how `from_pretrained` is told which model it is.
      scores: in per cent, by name.
      dataset: on which they were measured.
      license: the hub's identifier.

    Returns:
      Markdown.
    """
    from huggingface_hub import EvalResult, ModelCardData

    title, dataset = (
        printable(source.rpartition("/")[2].removeprefix("hf:") or card.model),
        printable(portable(dataset)),
    )
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=dataset or "unknown",
            dataset_name=dataset or "held-out pictures",
            metric_type="accuracy" if metric.startswith("top-") else metric,
            metric_name=metric,
            metric_value=float(value),  # the hub reads no scalars of NumPy
        )
        for metric, value in scores.items()
    ]
    data = ModelCardData(
        license=license or None,
        library_name="jeffnet",
        tags=["image-classification", "jax", "jeffnet"],
        pipeline_tag="image-classification",
        model_name=title if results else None,
        eval_results=results or None,
    )
    pre, plan, measured_on = card.preprocessing, card.plan(), f" on {markdown(dataset)}" if dataset else ""
    trained = f" (in training {pre.train_size})" if pre.train_size not in (None, pre.image_size) else ""
    crop = f"crop {pre.crop_pct}" + (f" ({pre.crop_mode})" if pre.crop_mode != "center" else "")
    rows = [
        ("architecture", f"`{card.model}`"),
        *([("stages", _stages(card.spec))] if card.spec else []),
        ("parameters", f"{count_parameters(plan):,}"),
        ("multiply-accumulates", f"{count_macs(plan, pre.image_size):,} at {pre.image_size} px"),
        ("classes", f"{card.num_classes}" + (f": {_shown(class_titles(card.classes))}" if card.classes else "")),
        ("pictures", f"{pre.image_size} px{trained}, {card.in_chans} channels, {crop}, {pre.interpolation}"),
        ("mean, std", f"{tuple(pre.mean)}, {tuple(pre.std)}, of pixels in [0, 1]"),
        *((metric, f"{value:g} %{measured_on}") for metric, value in scores.items()),
    ]
    table = "\n".join(f"| {left} | {right} |" for left, right in rows)
    shape = f"(1, {pre.image_size}, {pre.image_size}, {card.in_chans})"
    return f"""---
{data.to_yaml()}
---

# {markdown(title)}

An image classifier for JAX, made with jeffnet.

| | |
|---|---|
{table}

## Use

On the command line:

```sh
jeffnet predict photo.jpg --weights {shell_word(source)}
```

In Python, with Flax Linen (`jeffnet.nnx`, `jeffnet.objax` and `jeffnet.functional` have the same function):

```python
import jax
import jax.numpy as jnp
from jeffnet.linen import from_pretrained

model, variables, card = from_pretrained({source!r})
images = jnp.zeros({shape})  # (pixels / 255 - card.preprocessing.mean) / card.preprocessing.std
logits = jax.jit(model.apply)(variables, images)  # (1, {card.num_classes}), in the order of card.classes
```
"""


def _stages(spec: ModelSpec) -> str:
    return "; ".join(f"`{' '.join(stage)}`" for stage in spec.stages)


def _shown(classes: Sequence[str], most: int = 20) -> str:
    return ", ".join(map(markdown, classes[:most])) + (", ..." if len(classes) > most else "")
