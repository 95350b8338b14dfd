"""EfficientNets and MobileNets for JAX.

    import jeffnet

    model = jeffnet.create_model("efficientnet_b0")
    logits = model(images)

Importing this package is cheap: its modules, such as `jeffnet.linen`, and its functions are imported when they are
first used, and JAX by what needs it.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

# What the package offers and its modules, which are imported when they are first used.
_FUNCTIONS = {
    "Classifier": "classifier",
    "create_model": "models",
    "from_pretrained": "models",
    "list_models": "arch.zoo",
    "load_image": "inference.pictures",
    "model_preprocessing": "arch.zoo",
    "register_model": "arch.zoo",
    "transform_for": "inference.pictures",
}

__all__ = [
    "Classifier",
    "__version__",
    "create_model",
    "from_pretrained",
    "list_models",
    "load_image",
    "model_preprocessing",
    "register_model",
    "transform_for",
]

if TYPE_CHECKING:
    from jeffnet import arch as arch
    from jeffnet import backends as backends
    from jeffnet import bench as bench
    from jeffnet import checkpoints as checkpoints
    from jeffnet import classifier as classifier
    from jeffnet import data as data
    from jeffnet import errors as errors
    from jeffnet import export as export
    from jeffnet import functional as functional
    from jeffnet import inference as inference
    from jeffnet import linen as linen
    from jeffnet import models as models
    from jeffnet import nnx as nnx
    from jeffnet import objax as objax
    from jeffnet import ops as ops
    from jeffnet import parallel as parallel
    from jeffnet import publish as publish
    from jeffnet import recipes as recipes
    from jeffnet import system as system
    from jeffnet import train as train
    from jeffnet import validation as validation
    from jeffnet import weights as weights
    from jeffnet.arch.zoo import list_models as list_models
    from jeffnet.arch.zoo import model_preprocessing as model_preprocessing
    from jeffnet.arch.zoo import register_model as register_model
    from jeffnet.classifier import Classifier as Classifier
    from jeffnet.inference.pictures import load_image as load_image
    from jeffnet.inference.pictures import transform_for as transform_for
    from jeffnet.models import create_model as create_model
    from jeffnet.models import from_pretrained as from_pretrained
else:

    def __getattr__(name: str) -> Any:
        if name in _FUNCTIONS:
            return getattr(importlib.import_module(f"{__name__}.{_FUNCTIONS[name]}"), name)
        if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}") is not None:
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    import pkgutil

    modules = (each.name for each in pkgutil.iter_modules(__path__) if not each.name.startswith("_"))
    return sorted({*globals(), *__all__, *modules})
