"""State dicts of PyTorch's implementations, which safetensors and `torch.save` hold."""

import logging
from collections.abc import Mapping

from jeffnet.arch.zoo import model_plan
from jeffnet.weights.formats.interface import WeightsFile
from jeffnet.weights.naming import excess_epsilon
from jeffnet.weights.stored import Stored
from jeffnet.weights.timm import state_dict_naming
from jeffnet.weights.torchvision import MODELS, torchvision_model, torchvision_naming

_log = logging.getLogger("jeffnet")


def state_dict_file(source: str, arrays: Mapping[str, Stored], checksums: str) -> WeightsFile:
    """A file with the arrays of one state dict, as `jeffnet.weights.state_dict.find_state_dict` takes it."""
    naming = torchvision_naming(arrays)
    if naming is None:
        return WeightsFile(source, arrays, state_dict_naming(arrays), checksums=checksums)
    model = torchvision_model(arrays, naming)
    if model is None:
        return WeightsFile(source, arrays, naming, checksums=checksums)
    theirs, preprocessing = MODELS[model]
    plan = model_plan(model)
    if excess_epsilon(naming, plan):
        assert plan.stem.norm
        _log.warning(
            "%s: the norms of torchvision's %s have epsilon %g, those of %s %g: the difference is added to the running "
            "variances, so that an evaluation computes the same; training goes on with %g",
            source, theirs, naming.epsilon, model, plan.stem.norm.epsilon, plan.stem.norm.epsilon,
        )  # fmt: skip
    return WeightsFile(source, arrays, naming, model=model, preprocessing=preprocessing, checksums=checksums)
