"""Who may import whom: read off the sources, and off what a fresh interpreter has loaded."""

import ast
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import jeffnet
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.backends import BACKENDS
from jeffnet.ops.init import initial_arrays
from jeffnet.weights.card import ModelCard
from jeffnet.weights.formats.safetensors import save_model

PACKAGE = Path(jeffnet.__file__).parent
# Objax's classes are what its backend extends: here alone it is imported with the module.
OBJAX_COMPATIBILITY = "_objax_compat"
JAX_COMPATIBILITY = "_jax_compat"

# What a part of the package may import of the package. Modules of `system` and `backends` are parts, since some stand
# below all others and some above most. A part that is not named here may import all but the command line, as `train`
# may.
PRIMITIVES = frozenset(
    {f"system.{module}" for module in ("code_cache", "extras", "figures", "files", "labels", "network")}
    | {"system.processor", "system.progress", "system.reading"}
)
BASE = frozenset({"arch", "errors", "text", "_tensorflow"}) | PRIMITIVES
ALLOWED = {
    "errors": frozenset({"errors"}),
    "arch": frozenset({"arch", "errors", "text"}),
    "text": frozenset({"errors", "text"}),
    "_tensorflow": frozenset(),
    JAX_COMPATIBILITY: frozenset(),
    **{module: frozenset({"errors"}) | PRIMITIVES for module in PRIMITIVES},
    "ops": BASE | {"ops", JAX_COMPATIBILITY},
    "weights": BASE | {"ops", "weights"},
    "data": BASE | {"ops", "data"},
    # `backends` itself, which loads backends by name, is above them: their own part imports its descriptions alone.
    "backends.common": BASE | {"ops", "weights", "backends"},
    **{backend: BASE | {"ops", "weights", "backends.common", backend} for backend in BACKENDS},
    OBJAX_COMPATIBILITY: BASE,
}
ALLOWED["system.progress"] |= {"text"}
ALLOWED["objax"] |= {OBJAX_COMPATIBILITY}
ALLOWED["functional"] |= {"inference"}  # whose `fuse` it offers under its own name too
ONLY_STANDARD_LIBRARY = frozenset({"arch", "errors", "text"}) | PRIMITIVES - {
    "system.figures",
    "system.labels",
    "system.network",
    "system.processor",
    "system.progress",
}
MAY_IMPORT_COMMAND_LINE = frozenset({"cli", "__main__"})

# Imported inside the functions that need them only.
OPTIONAL = frozenset(
    {"torch", "torchvision", "timm", "tensorflow", "tensorflow_datasets", "array_record", "datasets", "pyarrow"}
    | {"objax", "sklearn", "keras", "h5py", "wandb", "onnx", "onnxruntime", "onnxscript", "openvino"}
    | {"litert_converter", "ai_edge_litert", "ai_edge_quantizer"}
)
HEAVY = OPTIONAL | {"jax", "flax", "optax", "orbax", "matplotlib", "grain", "tensorboardX"}


def violations(module: str, source: str) -> list[str]:
    """What a module imports against the rules.

    Args:
      module: its dotted name, such as `jeffnet.arch.plan`; `jeffnet.arch.__init__` for a package's own file.
      source: its text.

    Returns:
      One sentence an offence.
    """
    part = _part(module)
    found = []
    for line, target, inside_function in _imports(module, ast.parse(source)):
        top = target.partition(".")[0]
        if top == "jeffnet":
            if not _may_import(part, _part(target)):
                found.append(f"{module}:{line}: {part!r} may not import {target!r}")
        elif part in ONLY_STANDARD_LIBRARY and top not in sys.stdlib_module_names:
            found.append(f"{module}:{line}: {part!r} needs nothing but the standard library, not {target!r}")
        elif top in OPTIONAL and not inside_function and (part, top) != (OBJAX_COMPATIBILITY, "objax"):
            found.append(f"{module}:{line}: {target!r} is imported inside the functions that need it only")
    return found


def _part(module: str) -> str:
    """The part of the package that a module belongs to; '' is the package's own file."""
    words = [word for word in module.split(".")[1:] if word != "__init__"]
    return ".".join(words[:2] if words[:1] in (["system"], ["backends"]) else words[:1])


def _may_import(part: str, target: str) -> bool:
    if target in MAY_IMPORT_COMMAND_LINE:
        return part in MAY_IMPORT_COMMAND_LINE
    return part not in ALLOWED or target in ALLOWED[part]


def _imports(module: str, tree: ast.AST, inside_function: bool = False) -> Iterator[tuple[int, str, bool]]:
    """Line, dotted name and whether inside a function, of everything imported; not what only type checkers import."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, inside_function) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = _origin(module, node)
            # `from jeffnet import arch` imports a part; of `from jeffnet.arch import x` the origin says which.
            whole = origin in ("jeffnet", "jeffnet.system")
            names = [f"{origin}.{alias.name}" for alias in node.names] if whole else [origin]
            yield from ((node.lineno, name, inside_function) for name in names)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from _imports(module, ast.Module(node.orelse, []), inside_function)
        else:
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(module, node, inside_function or is_function)


def _origin(module: str, node: ast.ImportFrom) -> str:
    """The absolute name that `from ... import` names."""
    parents = module.split(".")[: -node.level] if node.level else []
    return ".".join([*parents, *([node.module] if node.module else [])])


def _module_name(path: Path) -> str:
    return ".".join(("jeffnet", *path.relative_to(PACKAGE).with_suffix("").parts))


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=_module_name)
def test_imports_follow_the_layers(path: Path):
    assert violations(_module_name(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("jeffnet.arch.plan", "import numpy as np"),
        ("jeffnet.arch.plan", "def f():\n    import jax"),
        ("jeffnet.arch.plan", "from jeffnet.ops.conv import conv"),
        ("jeffnet.arch.plan", "from ..ops import conv"),
        ("jeffnet.arch.plan", "from jeffnet import ops"),
        ("jeffnet.arch.__init__", "from ..ops import conv"),
        ("jeffnet.errors", "import numpy"),
        ("jeffnet.ops.conv", "import jeffnet.train.step"),
        ("jeffnet.ops.conv", "from jeffnet import linen"),
        ("jeffnet.weights.timm", "from jeffnet.train.state import State"),
        ("jeffnet.weights.timm", "import timm"),
        ("jeffnet.weights.timm", "def f():\n    import jeffnet.cli.main"),
        ("jeffnet.data.grain", "if True:\n    from tensorflow import data"),
        ("jeffnet.data.pytorch", "try:\n    import torch.utils.data\nexcept ImportError:\n    pass"),
        ("jeffnet.data.digits", "class A:\n    from sklearn.datasets import load_digits"),
        ("jeffnet.linen", "from jeffnet.nnx import Model"),
        ("jeffnet.linen", "from jeffnet.backends import load_backend"),
        ("jeffnet.backends.common", "from jeffnet import nnx"),
        ("jeffnet.linen", "from jeffnet._objax_compat import objax"),
        ("jeffnet._objax_compat", "import torch"),
        ("jeffnet.nnx", "def f():\n    from jeffnet import functional"),
        ("jeffnet.objax", "import objax"),
        ("jeffnet.functional", "from . import linen"),
        ("jeffnet.train.loop", "from jeffnet.cli import main"),
        ("jeffnet.train.loop", "def f():\n    from ..cli.main import main"),
        ("jeffnet.validation.metrics", "from jeffnet import cli"),
        ("jeffnet.__init__", "from .cli import main"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str):
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("jeffnet.arch.plan", "import math\nfrom jeffnet.arch.grammar import parse_stages\nfrom ..errors import E"),
        ("jeffnet.ops.conv", "import jax\nfrom jeffnet.arch import plan"),
        ("jeffnet.weights.timm", "def f():\n    import timm, torch"),
        ("jeffnet.weights.timm", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("jeffnet.linen", "import flax.linen as nn\nfrom jeffnet.ops import conv"),
        ("jeffnet.linen", "from jeffnet.backends.common import documented"),
        ("jeffnet.train.loop", "from jeffnet import functional, data\nimport jeffnet"),
        ("jeffnet.objax", "from jeffnet._objax_compat import objax"),
        ("jeffnet._objax_compat", "import jax, objax"),
        ("jeffnet.__main__", "from jeffnet.cli.main import main"),
        ("jeffnet.cli.main", "from .train import run"),
    ],
)
def test_a_right_import_is_not_blamed(module: str, source: str):
    assert violations(module, source) == []


def heavy_modules_after(code: str) -> set[str]:
    """Which heavy packages a fresh interpreter has loaded once it ran `code`, even if that ended in `SystemExit`."""
    script = f"""
import sys
try:
    exec({code!r})
except SystemExit as exit:
    assert not exit.code, exit.code
print("\\nloaded:", *sorted({{name.partition(".")[0] for name in sys.modules}}))
"""
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, encoding="utf-8", timeout=120, check=False
    )
    assert process.returncode == 0, process.stderr
    return HEAVY & set(process.stdout.splitlines()[-1].split())


def test_importing_jeffnet_loads_nothing_heavy():
    assert heavy_modules_after("import jeffnet") == set()


def test_modules_are_attributes_of_the_package():
    """They are imported when they are first asked for."""
    public = {each.name for each in pkgutil.iter_modules(jeffnet.__path__) if not each.name.startswith("_")}
    assert public <= set(dir(jeffnet))
    program = "import jeffnet; print(jeffnet.linen.create_model.__module__, jeffnet.nnx.__name__)"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout == "jeffnet.linen jeffnet.nnx\n"
    with pytest.raises(AttributeError, match="module 'jeffnet' has no attribute 'lines'"):
        jeffnet.lines  # noqa: B018
    assert not hasattr(jeffnet, "_missing") and not hasattr(jeffnet, "__missing__")


def test_type_checkers_know_the_modules_that_the_documents_name():
    (block,) = [node for node in ast.parse(Path(jeffnet.__file__).read_text()).body if isinstance(node, ast.If)]
    known = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    documents = [PACKAGE.parent / "README.md", *PACKAGE.parent.glob("docs/*.md")]
    named = {name for each in documents for name in re.findall(r"\bjeffnet\.(\w+)", each.read_text(encoding="utf-8"))}
    assert named & set(dir(jeffnet)) - set(jeffnet.__all__) <= known
    assert set(BACKENDS) <= known <= set(dir(jeffnet))


def test_listing_models_loads_nothing_heavy():
    listing = "import runpy; sys.argv = ['jeffnet', 'list']; runpy.run_module('jeffnet', run_name='__main__')"
    assert heavy_modules_after(listing) == set()


def test_predicting_loads_nothing_heavy_but_jax(tmp_path):
    """No module system, optimizer, checkpoint or pipeline, nor Matplotlib where nothing is drawn."""
    card = ModelCard("mnasnet_small", 3, 3, Preprocessing(32, 1.0))
    save_model(tmp_path / "w.safetensors", initial_arrays(card.plan(), 0), card)
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    arguments = ["jeffnet", "predict", str(tmp_path / "a.png"), "--weights", str(tmp_path / "w.safetensors"), "--json"]
    predicting = f"import runpy; sys.argv = {arguments!r}; runpy.run_module('jeffnet', run_name='__main__')"
    assert heavy_modules_after(predicting) == {"jax"}


MISSING = (["predict", "a.png"], ["validate", "digits"], ["export", "--output", "a.onnx"])


def test_where_weights_cannot_be_had_nobody_waits_for_jax(tmp_path, monkeypatch):
    """Published weights and files, in one process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JEFFNET_OFFLINE", "1")
    monkeypatch.setenv("JEFFNET_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    published = [[*given, *([] if "export" in given else ["--model"]), "mnasnet_small"] for given in MISSING]
    named = [[*given, *([] if "export" in given else ["--weights"]), "none.safetensors"] for given in MISSING[:2]]
    commands = [*published, *named, ["predict", "none.png", "--weights", "none.safetensors"]]
    code = f"from jeffnet.cli.main import main\nfor each in {commands!r}: assert main(each) == 1, each"
    assert heavy_modules_after(code) == set()


def test_the_other_backends_do_not_load_objax():
    """Nor does anything that all backends share; Objax's own does."""
    shared = "import jeffnet.backends, jeffnet.checkpoints, jeffnet.validation.answers"
    assert heavy_modules_after(f"{shared}, jeffnet.linen, jeffnet.nnx, jeffnet.functional").isdisjoint({"objax"})


def test_a_backend_knows_no_family_and_no_block_kind():
    """It reads the Plan, in which there are none; the grammar, the families and the zoo are not for it."""
    for backend in sorted(BACKENDS):
        tree = ast.parse((PACKAGE / f"{backend}.py").read_text(encoding="utf-8"))
        targets = {target for _, target, _ in _imports(f"jeffnet.{backend}", tree) if target.startswith("jeffnet.arch")}
        allowed = {"jeffnet.arch", *(f"jeffnet.arch.{name}" for name in ("operations", "plan", "execution", "summary"))}
        assert targets <= allowed, backend


def test_loading_something_heavy_is_noticed():
    assert heavy_modules_after("import jeffnet, jax; sys.exit()") == {"jax"}
