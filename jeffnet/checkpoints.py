"""Models to files, from any backend: jeffnet's own format, or what a module system's own tools read.

    from jeffnet.checkpoints import save_checkpoint

    save_checkpoint("b0.safetensors", model, "pt_efficientnet_b0")

Every `create_model(..., pretrained=...)` and `from_pretrained` reads all of them.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jeffnet.arch.plan import OUTPUT_STRIDES, Plan
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.zoo import model_plan, model_preprocessing, resolve_name
from jeffnet.backends import FORMS, load_backend, to_start
from jeffnet.errors import OutputError, WeightsError
from jeffnet.weights import store
from jeffnet.weights.fit import fit
from jeffnet.weights.start import Start
from jeffnet.weights.store import ModelCard


def save_checkpoint(
    path: str | os.PathLike,
    model: Any,
    name: str,
    *,
    form: str = "jeffnet",
    classes: Sequence[str] = (),
    preprocessing: Preprocessing | None = None,
) -> ModelCard:
    """Write a model.

    Args:
      path: to write to; see `write_checkpoint`.
      model: what any backend's `create_model` returns.
      name: of the model in the zoo, which the arrays must fit.
      form: one of `jeffnet.backends.FORMS`.
      classes: names of the classes in the order of the logits.
      preprocessing: what the model expects of pictures; None takes the zoo's.

    Returns:
      What the file, if in jeffnet's own format, says of the model.

    Raises:
      UnknownModelError: no such model.
      WeightsError: the model is not one of this name, or the form cannot hold it.
      OutputError: the path exists or cannot be written.
    """
    start = to_start(model)
    card = ModelCard(
        model=resolve_name(name),
        num_classes=start.plan.classifier.out_features if start.plan.classifier else 0,
        in_chans=start.plan.in_chans,
        preprocessing=preprocessing or model_preprocessing(name),
        classes=tuple(classes),
        global_pool=start.plan.global_pool,
        output_stride=_output_stride(start.plan, name),
    )
    if classes and len(classes) != card.num_classes:
        raise WeightsError(f"{len(classes)} names of classes do not fit a model of {card.num_classes}")
    arrays = fit(
        {key: np.asarray(array) for key, array in start.arrays.items()}, card.plan(), source="model", model=name
    )
    write_checkpoint(path, arrays, card, form)
    return card


def write_checkpoint(
    path: str | os.PathLike, arrays: Mapping[str, np.ndarray], card: ModelCard, form: str = "jeffnet"
) -> None:
    """Write a model's arrays; under the name there is never half a checkpoint.

    Args:
      path: a file, for 'nnx' a folder. Must not exist; its own folder must.
      arrays: by canonical name.
      card: of the model. Only jeffnet's own format keeps it.
      form: 'jeffnet' (safetensors with the card); 'linen' (MessagePack of the variables, for
        `flax.serialization.from_bytes`); 'nnx' (the state, for `orbax.checkpoint.StandardCheckpointer`); 'objax' (npz,
        for `objax.io.load_var_collection`).

    Raises:
      WeightsError: the form cannot hold the arrays.
      OutputError: the path exists, or cannot be written.
    """
    if form not in FORMS:
        raise OutputError(f"form {form!r} is not one of {', '.join(FORMS)}")
    path = Path(path)
    if path.exists():
        raise OutputError(f"{str(path)!r} exists: remove it, or give another name")
    if form == "jeffnet":
        store.save_model(path, arrays, card)
        return
    try:
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            _WRITERS[form](folder / "checkpoint", Start(card.plan(), arrays))
            os.rename(folder / "checkpoint", path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r}: {error.strerror or error}") from error


def _write_linen(path: Path, start: Start) -> None:
    from flax.serialization import to_bytes

    _, variables = load_backend("linen").build(start)
    path.write_bytes(to_bytes(variables))


def _write_nnx(path: Path, start: Start) -> None:
    import orbax.checkpoint as ocp
    from flax import nnx

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), nnx.state(load_backend("nnx").build(start)))


def _write_objax(path: Path, start: Start) -> None:
    # npz would store what NumPy itself does not know as bytes without a type.
    foreign = {str(array.dtype) for array in start.arrays.values() if array.dtype.kind != "f"}
    if foreign:
        raise WeightsError(f"Objax's npz files cannot hold {', '.join(sorted(foreign))}: write another form")
    model = load_backend("objax").build(start)
    from jeffnet._objax_compat import objax

    with open(path, "wb") as file:
        objax.io.save_var_collection(file, model.vars())  # pyright: ignore[reportArgumentType]


_WRITERS: dict[str, Callable[[Path, Start], None]] = {
    "linen": _write_linen,
    "nnx": _write_nnx,
    "objax": _write_objax,
}


def _output_stride(plan: Plan, name: str) -> int:
    """With which `output_stride` a plan was lowered, told by the strides of its maps."""
    strides = [feature.stride for feature in plan.features]
    for output_stride in reversed(OUTPUT_STRIDES):
        if [feature.stride for feature in model_plan(name, output_stride=output_stride).features] == strides:
            return output_stride
    raise WeightsError(f"the model is not a {name}: its maps have the strides {strides}")
