"""The contenders: jeffnet's backends, its fused inference, and its peers."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field

from jeffnet.backends import BACKENDS
from jeffnet.system.extras import install

_JAX, _TORCH, _ONNX, _KERAS, _EXPORTED = (
    f"jeffnet.bench.programs.with_{name}" for name in ("jax", "torch", "onnx", "keras", "exported")
)


@dataclass(frozen=True)
class Contender:
    """A program that is measured.

    Attributes:
      program: `module:class` of its `jeffnet.bench.program.Program`.
      packages: what must be installed, by the names under which they are imported.
      extra: of jeffnet, that installs them.
      tasks: what it can do.
      prepares: `module:function` that writes what it needs into the model's folder, in a process of its own.
      environment: of its process.
    """

    program: str
    packages: tuple[str, ...] = ()
    extra: str = ""
    tasks: tuple[str, ...] = ("inference", "training")
    prepares: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def missing(self) -> str | None:
        """How to install missing packages; None if all are installed."""
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if not missing:
            return None
        return f"not installed ({', '.join(missing)}): {install(*self.extra.split(','))}"


CONTENDERS: dict[str, Contender] = {
    **{backend: Contender(f"{_JAX}:{backend.capitalize()}") for backend in BACKENDS if backend != "objax"},
    "objax": Contender(f"{_JAX}:Objax", ("objax",), "objax"),
    "fused": Contender(f"{_JAX}:Fused", tasks=("inference",)),
    "plain": Contender(f"{_JAX}:Functional", environment={"JEFFNET_CONV": "xla"}),
    "timm": Contender(f"{_TORCH}:Eager", ("torch", "timm"), "torch"),
    "torch-compile": Contender(f"{_TORCH}:Compiled", ("torch", "timm"), "torch"),
    **{
        program.lower(): Contender(
            f"{_ONNX}:{program}",
            (program.lower(), "onnx"),
            "bench",
            ("inference",),
            f"{_ONNX}:write_onnx_file",
        )
        for program in ("OnnxRuntime", "OpenVino")
    },
    "keras": Contender(f"{_KERAS}:Keras", ("keras",), "keras", prepares=f"{_KERAS}:write_keras_file"),
}
# What `--compare` takes: the same models in other hands.
PEERS = tuple(name for name in CONTENDERS if name not in BACKENDS and name != "fused")


def find_contender(name: str) -> Contender:
    """The contender of this name; a name that is none of theirs is the path of an exported file."""
    return CONTENDERS.get(name) or Contender(f"{_EXPORTED}:Exported", tasks=("inference",))
