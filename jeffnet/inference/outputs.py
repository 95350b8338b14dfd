"""The outputs of a model as compiled functions: logits, the classifier's input, or maps of features."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax

from jeffnet import functional
from jeffnet.arch.plan import with_classes
from jeffnet.inference.fused import fuse
from jeffnet.weights.start import Start

# Names of outputs; a tuple stands for the maps of these numbers, None for all.
LOGITS, PRE_LOGITS = "logits", "pre_logits"


def compiled_output(
    start: Start, output: str | tuple[int, ...] | None, batch_size: int, image_size: tuple[int, int]
) -> Callable[[Any], Any]:
    """A function from normalised images to an output, compiled for one shape of batch.

    Args:
      start: the model.
      output: 'logits'; 'pre_logits'; or numbers of maps, see `feature_info` of the model, None for all.
      batch_size: images of a call.
      image_size: their height and width.

    Returns:
      A function of `(batch_size, H, W, C)`; its result is `(batch_size, ...)`, a tuple of such for maps.
    """
    if output == PRE_LOGITS:
        arrays = {name: array for name, array in start.arrays.items() if not name.startswith("classifier.")}
        start = replace(start, plan=with_classes(start.plan, 0), arrays=arrays)
    model, variables = functional.build(start)
    if isinstance(output, str):
        return fuse(model, variables, batch_size=batch_size, image_size=image_size)
    apply = jax.jit(lambda variables, images: model.features(variables, images, output))
    return lambda images: apply(variables, images)
