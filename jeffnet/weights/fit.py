"""Fitting the arrays of a source to a model, with everything that does not fit in one message."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jeffnet.arch.plan import Plan
from jeffnet.arch.summary import ArraySpec, array_specs
from jeffnet.errors import WeightsError
from jeffnet.text.names import listed
from jeffnet.weights.naming import CLASSIFIER
from jeffnet.weights.stored import Stored

_log = logging.getLogger("jeffnet")


def fit(
    arrays: Mapping[str, np.ndarray | Stored],
    plan: Plan,
    *,
    source: str,
    model: str,
    initial: Mapping[str, np.ndarray] | None = None,
    put: Callable[[ArraySpec, np.ndarray], Any] = lambda spec, array: array,
) -> dict[str, Any]:
    """The arrays of a model from those of a source.

    Names, shapes and dtypes are checked before values are read, array by array.

    Args:
      arrays: by canonical name; layouts as in `ArraySpec`. Names that the model does not have are an error.
      plan: the model.
      source: what to call the source in messages.
      model: what to call the model in messages.
      initial: a new classifier, see `jeffnet.ops.init.new_classifier`, where the source may be adapted: it replaces one
        of other classes, and the first convolution's kernel is summed over the input channels (for one channel) or
        repeated (for more). None adapts nothing.
      put: called with every array as soon as it is read, for instance to move it to a device.

    Returns:
      One array, or what `put` made of it, per name of `array_specs(plan)`, in that order.

    Raises:
      WeightsError: names are missing or left over, shapes differ, or values are not finite floats.
    """
    specs = array_specs(plan)
    fitted = dict(arrays)
    if initial is not None:
        _adapt(fitted, plan, specs, initial, source)
    missing = [name for name in specs if name not in fitted]
    left_over = [name for name in fitted if name not in specs]
    misshapen = [
        f"{name} is {shape}, the model has {spec.shape}{_remedy(name, shape, spec.shape, plan)}"
        for name, spec in specs.items()
        if name in fitted and (shape := fitted[name].shape) != spec.shape
    ]
    if missing or left_over or misshapen:
        raise WeightsError(
            f"weights {source!r} do not fit {model}:\n"
            f"  missing    {_listed(missing)}\n  left over  {_listed(left_over)}\n  misshapen  {_listed(misshapen)}"
        )
    if kinds := [f"{name} ({fitted[name].dtype})" for name in specs if not _is_float(fitted[name].dtype)]:
        raise WeightsError(f"weights {source!r}: not floating point: {_listed(kinds)}")
    read, broken = {}, []
    for name, spec in specs.items():
        array = np.asarray(fitted[name])
        if not np.isfinite(array).all():
            broken.append(name)
        elif not broken:
            read[name] = put(spec, array)
    if broken:
        raise WeightsError(f"weights {source!r} have NaN or infinite values: {_listed(broken)}")
    return read


def _adapt(
    arrays: dict[str, np.ndarray | Stored],
    plan: Plan,
    specs: Mapping[str, ArraySpec],
    initial: Mapping[str, np.ndarray],
    source: str,
) -> None:
    kernel, bias = CLASSIFIER
    if plan.classifier is None:
        arrays.pop(kernel, None)
        arrays.pop(bias, None)
    elif kernel not in arrays or arrays[kernel].shape != specs[kernel].shape:
        was = f"{arrays[kernel].shape[-1]} classes" if kernel in arrays else "none"
        _log.info("%s: new classifier of %d classes (the file has %s)", source, plan.classifier.out_features, was)
        arrays[kernel], arrays[bias] = initial[kernel], initial[bias]
    stem = f"{plan.stem.name}.kernel"
    if stem in arrays and arrays[stem].ndim == 4 and (channels := arrays[stem].shape[2]) != plan.in_chans:
        _log.warning("%s: first convolution adapted from %d to %d input channels", source, channels, plan.in_chans)
        arrays[stem] = adapt_input_channels(np.asarray(arrays[stem]), plan.in_chans)


def adapt_input_channels(kernel: np.ndarray, in_chans: int) -> np.ndarray:
    """The first convolution's kernel `(height, width, C, features)` for another number of input channels.

    For 1 it is the sum over `C`. Otherwise the channels repeat in order, scaled so that a picture with equal channels
    gives the same response.
    """
    channels = kernel.shape[2]
    if in_chans == 1:
        return kernel.sum(2, keepdims=True)
    repeated = np.concatenate([kernel] * -(-in_chans // channels), axis=2)[:, :, :in_chans]
    return repeated * np.asarray(channels / in_chans, kernel.dtype)


def _is_float(dtype: np.dtype) -> bool:
    return np.issubdtype(dtype, np.floating) or dtype.name == "bfloat16"


def _remedy(name: str, shape: tuple[int, ...], wanted: tuple[int, ...], plan: Plan) -> str:
    """What to do if only the number of classes or of input channels differs; nothing for another architecture."""
    other = [axis for axis in range(len(wanted)) if len(shape) != len(wanted) or shape[axis] != wanted[axis]]
    if name == "classifier.kernel" and other == [1]:
        return f": pass num_classes={shape[1]} to keep the file's classes, or adapt=True to start a new classifier"
    if name == f"{plan.stem.name}.kernel" and other == [2]:
        return f": pass in_chans={shape[2]} to keep the file's input channels, or adapt=True to sum or repeat them"
    return ""


def _listed(names: list[str]) -> str:
    return f"({len(names)}): {listed(names)}" if names else "(0)"
