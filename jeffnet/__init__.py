"""EfficientNets and MobileNets for JAX.

    from jeffnet.linen import create_model

    model, variables = create_model("pt_efficientnet_b0")
    logits = model.apply(variables, images)

Importing this package is cheap: JAX is loaded by what needs it.
"""

from jeffnet.arch.zoo import list_models, model_preprocessing

__version__ = "0.1.0"

__all__ = ["__version__", "list_models", "model_preprocessing"]
