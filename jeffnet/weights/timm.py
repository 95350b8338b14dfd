"""timm's names and layouts for the arrays of a model.

Modules have the same names as ours; torch keeps convolution kernels as `(out, in, height, width)` and dense ones as
`(out, in)`. Source: huggingface/pytorch-image-models.
"""

from collections.abc import Mapping

import numpy as np

from jeffnet.arch.plan import Plan
from jeffnet.arch.summary import ArraySpec, array_specs
from jeffnet.weights.fit import fit

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def timm_name(spec: ArraySpec) -> str:
    """timm's name of an array: `blocks.0.0.bn1.mean` is `blocks.0.0.bn1.running_mean`."""
    return f"{spec.name.rpartition('.')[0]}.{_LEAVES[spec.leaf]}"


def timm_shape(spec: ArraySpec) -> tuple[int, ...]:
    """torch's shape of an array."""
    if spec.leaf != "kernel":
        return spec.shape
    return (*spec.shape[:-3:-1], *spec.shape[:-2])


def is_timm(names: Mapping[str, object]) -> bool:
    """Whether a file with these names is a state dict of one of timm's EfficientNets or MobileNets."""
    return "conv_stem.weight" in names


def from_timm(
    state: Mapping[str, np.ndarray],
    plan: Plan,
    *,
    source: str = "state dict",
    model: str = "the model",
    initial: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Arrays by canonical name from a timm state dict.

    Args:
      state: by timm's names; anything that `numpy.asarray` takes, such as torch tensors on the CPU. The counters
        `num_batches_tracked`, which nothing here needs, are left out.
      plan: the model.
      source: what to call the state dict in messages.
      model: what to call the model in messages.
      initial: see `jeffnet.weights.fit.fit`.

    Raises:
      WeightsError: see `jeffnet.weights.fit.fit`; names in the message are canonical where there is one, else timm's.
    """
    names = {timm_name(spec): spec for spec in array_specs(plan).values()}
    # A classifier that the model does not have is an excess under our name, not a foreign array.
    names |= {f"classifier.{leaf}": ArraySpec(f"classifier.{ours}", ()) for leaf, ours in _CLASSIFIER.items()}
    arrays = {}
    for name, value in state.items():
        if name.endswith(".num_batches_tracked"):
            continue
        spec = names.get(name)
        array = np.asarray(value)
        arrays[spec.name if spec else name] = _from_torch_layout(array) if spec and spec.leaf == "kernel" else array
    return fit(arrays, plan, source=source, model=model, initial=initial)


_CLASSIFIER = {"weight": "kernel", "bias": "bias"}


def _from_torch_layout(array: np.ndarray) -> np.ndarray:
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    return array.T if array.ndim == 2 else array
