"""Docstrings of the public API: they describe arguments and results, and their examples run."""

import importlib
import importlib.util
import inspect
import pkgutil
import re
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jeffnet.backends import BACKENDS, Backend, load_backend
from jeffnet.checkpoints import save_checkpoint

pytestmark = pytest.mark.runs

_PAGES = Path(__file__).parents[1] / "docs" / "generate" / "reference.py"
_SPEC = importlib.util.spec_from_file_location("reference_pages", _PAGES)
reference = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(reference)
# The modules of the reference: everything that their public functions take and return is described.
PUBLIC = {name: names for chapter in reference.PUBLIC.values() for name, names in chapter.items()}
# In the order in which they run: one writes what the next reads.
EXAMPLES = {
    "jeffnet": ("create_model",),
    "jeffnet.arch.zoo": ("register_model",),
    **{f"jeffnet.{name}": ("create_model", "from_pretrained") for name in BACKENDS},
    "jeffnet.models": ("create_model", "from_pretrained"),
    "jeffnet.data.own_loop": ("loader",),
    "jeffnet.backends": ("convert",),
    "jeffnet.checkpoints": ("save_checkpoint",),
    "jeffnet.inference.fused": ("fuse", "load_fused"),
    "jeffnet.weights.load": ("load_weights",),
    "jeffnet.train.loop": ("train",),
    "jeffnet.validation.validate": ("validate",),
}


def _modules(*packages):
    for name in packages:
        package = importlib.import_module(name)
        yield package
        for module in pkgutil.walk_packages(getattr(package, "__path__", ()), f"{name}."):
            yield importlib.import_module(module.name)


def _symbols(module):
    """Public functions, classes and methods that a module defines, as `(name, symbol)`."""
    for name, symbol in vars(module).items():
        if name.startswith("_") or getattr(symbol, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(symbol):
            yield f"{module.__name__}.{name}", symbol
        elif inspect.isclass(symbol):
            yield f"{module.__name__}.{name}", symbol
            for method, function in vars(symbol).items():
                if inspect.isfunction(function) and not method.startswith("_"):
                    yield f"{module.__name__}.{name}.{method}", getattr(symbol, method)


def _undescribed(docstring, signature):
    """The arguments that a docstring does not describe, and 'Returns' where it does not say what comes back."""
    section = re.search(r"^Args:\n((?: +.*\n?|\n)+)", docstring, re.MULTILINE)
    described = re.findall(r"^  (?:\*{0,2})(\w+)(?:, \w+)*:", section[1], re.MULTILINE) if section else []
    missing = [name for name in signature.parameters if name != "self" and name not in described]
    # A sentence describes what a function without arguments returns.
    returns = signature.parameters.keys() - {"self"} and signature.return_annotation not in (
        None,
        "None",
        inspect.Signature.empty,
    )
    return missing + ["Returns"] * bool(returns and not re.search(r"^(Returns|Yields):", docstring, re.MULTILINE))


def _examples(docstring, is_module):
    """The code of a docstring: a module's indented blocks, a function's section `Example:`."""
    pattern = r"\n\n((?: {4}.*\n|\n)+)" if is_module else r"\nExample:\n((?: {2}.*\n?|\n)+)"
    return [
        textwrap.dedent(block).strip() + "\n" for block in re.findall(pattern, f"{inspect.cleandoc(docstring)}\n\n")
    ]


@pytest.mark.parametrize("package", [*(f"jeffnet.{name}" for name in BACKENDS), "jeffnet.weights", "jeffnet.train"])
def test_public_symbols_have_docstrings(package):
    """Those with more than three arguments describe them, or name the function that has the same."""
    symbols = [pair for module in _modules(package) for pair in _symbols(module)]
    assert len(symbols) > 5
    assert [name for name, symbol in symbols if not inspect.getdoc(symbol)] == []
    unclear = []
    for name, symbol in symbols:
        docstring = inspect.getdoc(symbol) or ""
        refers = re.search(r"\b(see|as of|as in|as for|those of)\b", docstring)
        if inspect.isfunction(symbol) and "Args:" not in docstring and not refers:
            arguments = inspect.signature(symbol).parameters.keys() - {"self"}
            unclear += [name] if len(arguments) > 3 else []
    assert unclear == []


@pytest.mark.parametrize("module", PUBLIC)
def test_the_public_api_is_described(module):
    """Modules, classes, functions, methods and properties have a summary; arguments and results are described."""
    page = importlib.import_module(module)
    symbols = reference.symbols(page, PUBLIC[module])
    assert symbols and inspect.getdoc(page)
    gaps = {}
    for name, symbol in symbols.items():
        if module.removeprefix("jeffnet.") in BACKENDS and name in vars(Backend):
            continue  # stands in `Backend`, with a model as one argument
        gaps[name] = _gaps(symbol)
        if inspect.isclass(symbol):
            gaps |= {f"{name}.{member}": _gaps(_documented(symbol, member)) for member in reference.members(symbol)}
    assert {name: gap for name, gap in gaps.items() if gap} == {}


def _documented(symbol, member):
    """A method, of the first class in the order of resolution whose own docstring describes it."""
    for base in symbol.__mro__:
        if getattr(vars(base).get(member), "__doc__", None):
            return getattr(base, member)
    return getattr(symbol, member)


def _gaps(symbol):
    docstring = inspect.getdoc(symbol) or ""
    # Python gives dataclasses without a docstring their signature.
    if not docstring or docstring.startswith(f"{getattr(symbol, '__name__', None)}("):
        return ["docstring"]
    if inspect.isfunction(symbol) or inspect.ismethod(symbol):
        return _undescribed(docstring, inspect.signature(symbol))
    return []


def test_examples_import_public_modules_alone():
    """What pages and the README show can be looked up in the reference."""
    root = Path(__file__).parents[1]
    pages = [root / "README.md", *(root / "docs").glob("*.md"), *(root / "docs" / "tutorials").glob("*.md")]
    code = "".join(text for page in pages for text in re.findall(r"```.*?```", page.read_text("utf-8"), re.DOTALL))
    imported = re.findall(r"^from (jeffnet[\w.]*) import ([\w, ]+)", code, re.MULTILINE)
    imported = [(module, names) for module, names in imported if not module.startswith("jeffnet.recipes.")]
    assert len(imported) > 20
    public = [
        each for name in PUBLIC for each in reference.symbols(importlib.import_module(name), PUBLIC[name]).values()
    ]
    for module, names in imported:
        for name in names.split(", "):
            symbol = getattr(importlib.import_module(module), name)
            assert module in PUBLIC and (symbol in public or inspect.ismodule(symbol)), f"{module}.{name} is not public"


def test_gaps_are_noticed():
    def function(x: int, *rest: int, y: int) -> int: ...

    signature = inspect.signature(function)
    assert _undescribed("Add.\n\nArgs:\n  x: one.\n  *rest, y: others.\n", signature) == ["y", "Returns"]
    assert _undescribed("Add.\n\nArgs:\n  x: one.\n  rest: more.\n  y: last.\n\nReturns:\n  The sum.", signature) == []
    assert _undescribed("Add.", signature) == ["x", "rest", "y", "Returns"]


def test_examples_run(tiny_model, tmp_path, monkeypatch):
    """With a model, images and pictures that compile in no time; what else they use, examples import themselves."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jeffnet.arch.zoo._REGISTERED", {})
    for number in range(32):
        picture = tmp_path / "pictures" / ("train", "val")[number // 16] / ("cat", "dog")[number % 2] / f"{number}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((32, 32, 3), number * 8, np.uint8)).save(picture)
    model, variables = load_backend("linen").create_model("tiny_flat")
    save_checkpoint("b0.safetensors", (model, variables), "tiny_flat")
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    given = {"images": images, "key": jax.random.key(1), "model": model, "linen_model": model, "variables": variables}
    for path, names in EXAMPLES.items():
        module = importlib.import_module(path)
        symbols = {name: getattr(module, name) for name in names if hasattr(module, name)}
        examples = _examples(module.__doc__, True)
        examples += [code for symbol in symbols.values() for code in _examples(symbol.__doc__, False)]
        for name in names:
            assert any(re.search(rf"\b{name}\(", code) for code in examples), f"{path} has no example of {name}"
        scope = given | symbols
        for code in examples:
            code = re.sub(r'"(tf_)?(efficientnet|mobilenet|mixnet)\w*"', '"tiny_flat"', code).replace("224", "32")
            code = code.replace('save_checkpoint("b0', 'save_checkpoint("another')
            exec(compile(code, f"docstring of {path}", "exec"), scope)


def test_code_is_found_in_docstrings():
    assert _examples("Page.\n\n    x = 1\n    y = 2\n\nText.\n\n    z = 3\n", True) == ["x = 1\ny = 2\n", "z = 3\n"]
    assert _examples("Do.\n\nReturns:\n  x.\n\nExample:\n  if x:\n      y = 2\n", False) == ["if x:\n    y = 2\n"]
