"""EfficientNets and MobileNets for JAX.

    from jeffnet.linen import create_model

    model, variables = create_model("efficientnet_b0")
    logits = model.apply(variables, images)

Importing this package is cheap: its modules, such as `jeffnet.linen`, and its functions are imported when they are
first used, and JAX by what needs it.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["__version__", "list_models", "model_preprocessing", "register_model"]

if TYPE_CHECKING:
    from jeffnet import arch as arch
    from jeffnet import backends as backends
    from jeffnet import bench as bench
    from jeffnet import checkpoints as checkpoints
    from jeffnet import data as data
    from jeffnet import errors as errors
    from jeffnet import export as export
    from jeffnet import functional as functional
    from jeffnet import inference as inference
    from jeffnet import linen as linen
    from jeffnet import nnx as nnx
    from jeffnet import objax as objax
    from jeffnet import ops as ops
    from jeffnet import parallel as parallel
    from jeffnet import publish as publish
    from jeffnet import system as system
    from jeffnet import train as train
    from jeffnet import validation as validation
    from jeffnet import weights as weights
    from jeffnet.arch.zoo import list_models as list_models
    from jeffnet.arch.zoo import model_preprocessing as model_preprocessing
    from jeffnet.arch.zoo import register_model as register_model
else:

    def __getattr__(name: str) -> Any:
        if name in __all__:
            return getattr(importlib.import_module(f"{__name__}.arch.zoo"), name)
        if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}") is not None:
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    import pkgutil

    modules = (each.name for each in pkgutil.iter_modules(__path__) if not each.name.startswith("_"))
    return sorted({*globals(), *__all__, *modules})
