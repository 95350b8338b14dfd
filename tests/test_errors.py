"""What is wrong with users' input is a JeffnetError: catching that one type catches all of it."""

import ast
import builtins
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jeffnet
from jeffnet import backends, checkpoints, functional, linen
from jeffnet.errors import JeffnetError
from jeffnet.ops import average, erase, loss, stochastic

PACKAGE = Path(jeffnet.__file__).parent
BUILTINS = {name for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, Exception)}
BUILTINS -= {"AssertionError"}  # of what cannot be, whatever a user does
# Functions that raise what Python's own do, for callers in other modules that make errors of their own of it;
# `checked_index` raises what ends a loop over a sequence.
LIKE_PYTHON = {
    "checked_index": "data/checks.py", "move_durably": "system/files.py", "parse_json": "system/reading.py",
    "read_file": "system/reading.py", "read_text": "system/reading.py", "check_file": "system/reading.py",
    "check_growth": "weights/archive.py",
}  # fmt: skip
# The context manager that makes a WeightsError of every exception.
MANAGER = "reading"


def uncaught(source: str) -> dict[str, set[str]]:
    """The built-in exceptions that leave each function of a module, by name, as far as its `raise` statements tell.

    Args:
      source: text of the module.
    """
    events = list(_events(ast.parse(source), "", frozenset()))
    leaving: dict[str, set[str]] = {}
    while True:
        before = {name: set(kinds) for name, kinds in leaving.items()}
        for function, raised, called, caught in events:
            for kind in {raised} if raised else leaving.get(called, set()):
                if not _is_caught(kind, caught):
                    leaving.setdefault(function, set()).add(kind)
        if leaving == before:
            return leaving


def _events(node: ast.AST, function: str, caught: frozenset[str]) -> Iterator[tuple[str, str, str, frozenset[str]]]:
    """Function, built-in exception raised or name mentioned in it, and what is caught around that."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        function, caught = node.name, frozenset()
    if isinstance(node, ast.Raise):
        kind = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        if isinstance(kind, ast.Name) and kind.id in BUILTINS:
            yield function, kind.id, "", caught
    if isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        yield function, "", name, caught
    for field, value in ast.iter_fields(node):
        inside = caught | _handled(node) if field == "body" else caught
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _events(child, function, inside)


def _handled(node: ast.AST) -> frozenset[str]:
    if isinstance(node, ast.With):
        managers = {ast.unparse(item.context_expr).partition("(")[0] for item in node.items}
        return frozenset({"Exception"} if MANAGER in managers else ())
    if not isinstance(node, ast.Try):
        return frozenset()
    kinds = [handler.type for handler in node.handlers]
    names = [part for kind in kinds for part in (kind.elts if isinstance(kind, ast.Tuple) else [kind])]
    return frozenset(part.id for part in names if isinstance(part, ast.Name))


def _is_caught(kind: str, caught: frozenset[str]) -> bool:
    return any(parent.__name__ in caught for parent in getattr(builtins, kind).__mro__)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_built_in_exception_leaves_a_module(path):
    where = path.relative_to(PACKAGE).as_posix()
    if where in ("bench/worker.py", "_objax_compat.py", "weights/formats/torch_file.py"):
        return  # a process of its own; what `load_backend` makes an error of; what `formats/pytorch.py` does
    found = {name: kinds for name, kinds in uncaught(path.read_text(encoding="utf-8")).items() if name[:1] != "_"}
    assert {name: kinds for name, kinds in found.items() if LIKE_PYTHON.get(name) != where} == {}


def test_a_built_in_exception_that_leaves_a_module_is_seen():
    source = """
def public():
    try:
        _private()
    except OSError as error:
        raise JeffnetError from error

def safe():
    try:
        _private()
    except (KeyError, ValueError):
        pass

def _private():
    raise ValueError("no")

def managed():
    with reading("a", "is broken"), open("a"):
        _private()
"""
    assert uncaught(source) == {"_private": {"ValueError"}, "public": {"ValueError"}}


NAME = "mnasnet_small"
IMAGES = jnp.zeros((2, 4, 4, 3))
MISTAKES = {
    "option": lambda: linen.create_model(NAME, colour=1),
    "seed": lambda: linen.create_model(NAME, rng=-1),
    "no seed": lambda: linen.create_model(NAME, rng="0"),
    "classes": lambda: linen.create_model(NAME, num_classes="ten"),
    "rate": lambda: linen.create_model(NAME, drop_rate="much"),
    "name": lambda: linen.create_model(5),
    "dtype": lambda: linen.create_model(NAME, dtype="float33"),
    "param_dtype": lambda: linen.create_model(NAME, param_dtype="int8"),
    "source": lambda: linen.create_model(NAME, pretrained=5),
    "path": lambda: linen.from_pretrained("no\0where"),
    "source of another type": lambda: linen.from_pretrained(3.5),
    "name of another type": lambda: linen.from_pretrained("nowhere", 5),
    "dtype of weights": lambda: linen.from_pretrained("nowhere", NAME, dtype="float33"),
    "backend": lambda: backends.convert(linen.create_model(NAME, abstract=True), "pytorch"),
    "no model": lambda: checkpoints.save_checkpoint("a", object(), NAME),
    "half a model": lambda: checkpoints.save_checkpoint("a", linen.create_model(NAME, abstract=True)[0], NAME),
    "shapes for arrays": lambda: checkpoints.save_checkpoint("a", linen.create_model(NAME, abstract=True), NAME),
    "size": lambda: functional.fuse(functional.create_model(NAME, abstract=True), batch_size=0, image_size=32),
    "drop path": lambda: stochastic.drop_path(IMAGES, 1.5, None),
    "labels": lambda: loss.soft_targets(jnp.zeros((2, 2), int), 3),
    "logits": lambda: loss.cross_entropy(jnp.zeros((2, 3)), jnp.zeros((2, 1), int)),
    "average": lambda: average.average_arrays([]),
    "erase": lambda: erase.random_erasing(
        IMAGES[0], jax.random.key(0), prob=1, mode="rand", count=1, mean=(0,), std=(1,)
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_jeffnet_errors(mistake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(JeffnetError):
        MISTAKES[mistake]()
    assert list(tmp_path.iterdir()) == []
