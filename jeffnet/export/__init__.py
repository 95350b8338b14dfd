"""Models as files for other runtimes.

    from jeffnet.export import export_model

    export_model("b0.onnx", (model, variables), "efficientnet_b0")

`open_exported` runs what was exported. Without anything of the models' code, `load` loads exported StableHLO.
"""

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["ExportReport", "ExportedModel", "Program", "export_model", "load", "open_exported"]

if TYPE_CHECKING:
    from jeffnet.export.export import ExportReport as ExportReport
    from jeffnet.export.export import export_model as export_model
    from jeffnet.export.program import Program as Program
    from jeffnet.export.program import load as load
    from jeffnet.export.run import ExportedModel as ExportedModel
    from jeffnet.export.run import open_exported as open_exported

_MODULES = {
    **dict.fromkeys(("export_model", "ExportReport"), "export"),
    **dict.fromkeys(("open_exported", "ExportedModel"), "run"),
    **dict.fromkeys(("load", "Program"), "program"),
}


def __getattr__(name: str) -> Any:
    """What reading and writing files needs is imported when it is first asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
