"""The reference: what of the package is public, and a page for each of its modules, made of the docstrings."""

import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

# The public modules, by chapter. Where a module also has what others of the package use, its public names follow.
PUBLIC: dict[str, dict[str, tuple[str, ...]]] = {
    "Models": {
        "jeffnet": (),
        "jeffnet.nnx": (),
        "jeffnet.linen": (),
        "jeffnet.objax": (),
        "jeffnet.functional": (),
        "jeffnet.backends": (),
        "jeffnet.weights.start": ("ModelOptions", "PretrainedOptions", "Pretrained", "PretrainedModule", "Start"),
        "jeffnet.weights.load": (),
        "jeffnet.weights.card": ("ModelCard",),
        "jeffnet.checkpoints": (),
        "jeffnet.publish": (),
    },
    "Architectures": {
        "jeffnet.arch.zoo": (
            *("list_models", "register_model", "find_model", "resolve_name"),
            *("model_spec", "model_plan", "model_preprocessing", "default_num_classes"),
        ),
        "jeffnet.arch.spec": ("ModelSpec", "SqueezeRule"),
        "jeffnet.arch.grammar": ("BlockSpec", "parse_block"),
        "jeffnet.arch.preprocessing": ("Preprocessing",),
        "jeffnet.arch.lower": ("lower",),
        "jeffnet.arch.plan": ("Plan", "Block", "FeatureInfo"),
        "jeffnet.arch.summary": ("ArraySpec", "Layer", "array_specs", "count_macs", "count_parameters", "layers"),
        "jeffnet.arch.imagenet": ("class_titles", "known_classes"),
    },
    "Inference and export": {
        "jeffnet.inference.classification": (),
        "jeffnet.inference.embed": (),
        "jeffnet.inference.explain": (),
        "jeffnet.inference.fused": (),
        "jeffnet.inference.probe": (),
        "jeffnet.inference.vectors": ("Vectors", "VectorTable", "read_vectors", "write_vectors"),
        "jeffnet.export": (),
        "jeffnet.export.options": ("ExportOptions",),
    },
    "Data": {
        "jeffnet.data": (),
        "jeffnet.data.open": (),
        "jeffnet.data.inspection": (),
        "jeffnet.data.images": ("read_image", "image_from_array"),
        "jeffnet.data.preprocess": ("EvalTransform", "TrainTransform", "preprocessing_of"),
        "jeffnet.ops.image": ("normalize",),
    },
    "Training and validation": {
        "jeffnet.train.loop": (),
        "jeffnet.train.teacher": ("Teacher", "TeacherOutputs"),
        "jeffnet.train.interrupt": ("InterruptedRunError",),
        "jeffnet.recipes": ("Recipe", "describe_recipe", "list_recipes"),
        "jeffnet.train.recipe": (),
        "jeffnet.train.config": (),
        "jeffnet.train.seeds": ("train_seeds",),
        "jeffnet.train.folds": (),
        "jeffnet.train.range_test": (),
        "jeffnet.train.dry_run": ("Part", "Rehearsal", "rehearse"),
        "jeffnet.validation.validate": (),
        "jeffnet.validation.settings": (),
        "jeffnet.validation.candidates": (),
        "jeffnet.validation.metrics": ("Scores", "Predictions", "score", "calibration", "confusion"),
    },
    "Devices and speed": {
        "jeffnet.parallel.distributed": ("connect",),
        "jeffnet.parallel.mesh": ("make_layout",),
        "jeffnet.ops.conv": ("use_lowering",),
        "jeffnet.system.processor": ("remat_options",),
        "jeffnet.bench.measure": ("bench",),
        "jeffnet.bench.settings": (),
    },
    "Errors": {"jeffnet.errors": ()},
}


def modules() -> Iterator[tuple[ModuleType, tuple[str, ...]]]:
    """The public modules, and the names that are public, if not all are."""
    for chapter in PUBLIC.values():
        for name, names in chapter.items():
            yield importlib.import_module(name), names


def symbols(module: ModuleType, names: tuple[str, ...] = ()) -> dict[str, Any]:
    """Public functions and classes of a module by name: these names, else those of `__all__`, or that it defines."""
    if names := names or tuple(getattr(module, "__all__", ())):
        found = {name: getattr(module, name) for name in names}
    else:
        found = {
            name: each for name, each in vars(module).items() if getattr(each, "__module__", "") == module.__name__
        }
    return {name: each for name, each in found.items() if name[0] != "_" and isinstance(each, type | FunctionType)}


def members(symbol: type) -> dict[str, Any]:
    """Public methods and properties of a class by name, but those that its framework's class has too."""
    kinds = FunctionType | property | classmethod | staticmethod
    ours = [base for base in symbol.__mro__ if base.__module__.partition(".")[0] == "jeffnet"]
    found = {name: each for base in reversed(ours) for name, each in vars(base).items() if isinstance(each, kinds)}
    theirs = {name for base in symbol.__mro__ if base not in ours for name in vars(base)}
    return {name: each for name, each in found.items() if name[0] != "_" and name not in theirs}


def write(docs: Path) -> None:
    """Write `generated/reference` below `docs`: a page for every public module, and one that lists them."""
    folder = docs / "generated" / "reference"
    folder.mkdir(parents=True, exist_ok=True)
    for module, names in modules():
        (folder / f"{module.__name__}.md").write_text(_page(module, names), encoding="utf-8")
    (folder / "index.md").write_text(_index(), encoding="utf-8")


def _page(module: ModuleType, names: tuple[str, ...]) -> str:
    parts = [f"# {module.__name__}", f"```{{py:module}} {module.__name__}\n```", _fenced(inspect.getdoc(module) or "")]
    for name, symbol in symbols(module, names).items():
        is_class = isinstance(symbol, type)
        options = f"\n   :members: {', '.join(members(symbol))}" if is_class and members(symbol) else ""
        kind = "autoclass" if is_class else "autofunction"
        parts.append(f"```{{eval-rst}}\n.. {kind}:: {module.__name__}.{name}{options}\n```")
    return "\n\n".join(parts) + "\n"


def _index() -> str:
    parts = ["# Reference", "Everything here is public. Other modules and names may change without notice."]
    for chapter, names in PUBLIC.items():
        rows = [f"| [`{name}`]({name}.md) | {_summary(importlib.import_module(name))} |" for name in names]
        contents = "\n".join(["```{toctree}", ":hidden:", "", *names, "```"])
        parts += [f"## {chapter}", "\n".join(["| module | |", "|---|---|", *rows]), contents]
    return "\n\n".join(parts) + "\n"


def _summary(module: ModuleType) -> str:
    return (inspect.getdoc(module) or "").partition("\n")[0]


def _fenced(text: str) -> str:
    """Markdown whose indented blocks, which are code, are marked as Python."""
    return re.sub(
        r"(?<=\n\n)((?: {4}.*\n|\n)*(?: {4}.*(?:\n|$)))",
        lambda match: f"```python\n{textwrap.dedent(match[0]).strip()}\n```\n",
        text,
    )


def restructured(lines: list[str]) -> list[str]:
    """A docstring of ours, which is Markdown with Google's sections, in Sphinx's markup.

    Args:
      lines: of the docstring.

    Returns:
      Its lines with code marked as Sphinx does, ready for napoleon.
    """
    text, example, rest = "\n".join(lines).partition("\nExample:\n")
    code = re.match(r"(?:  .*\n?|\n)*", rest)
    assert code is not None
    result = _inline(text)
    if example:
        marked = textwrap.indent(code[0].rstrip(), "  ")
        result += f"{example}  .. code-block:: python\n\n{marked}\n\n{_inline(rest[code.end() :])}"
    return result.split("\n")


def _inline(text: str) -> str:
    """Code in backticks as literals; elsewhere no underscore or bar means anything."""
    parts = re.split(r"(`[^`]+`)", text)
    for number, part in enumerate(parts):
        if number % 2:
            # A literal ends where no letter follows.
            parts[number] = f"`{part}`" + ("\\ " if re.match(r"\w", parts[number + 1]) else "")
        else:
            parts[number] = re.sub(r"(?<=\w)_(?!\w)|\|", r"\\\g<0>", part)
    return "".join(parts)
