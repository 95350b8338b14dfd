"""A page for every family of architectures and for every model, made of the zoo and of the measured speeds."""

import importlib
import inspect
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from jeffnet.arch.plan import Plan
from jeffnet.arch.spec import ModelSpec
from jeffnet.arch.summary import layers
from jeffnet.arch.zoo import find_model, list_models, model_plan
from jeffnet.cli.list_ import MODELS, WEIGHTS, describe, markdown

# Modules of `jeffnet.arch.families`, and what their pages are called.
FAMILIES = {
    "efficientnet": "EfficientNet, EdgeTPU, Lite",
    "efficientnet_v2": "EfficientNetV2",
    "efficientnet_variants": "EfficientNet variants",
    "pruned": "Pruned EfficientNet",
    "mobilenet": "MobileNetV1, V2, V3",
    "mobilenet_v4": "MobileNetV4",
    "edgetpu": "MobileNet-EdgeTPU",
    "mixnet": "MixNet",
    "searched": "MNASNet, Single-Path NAS, FBNet-C",
    "fbnetv3": "FBNetV3",
    "hardcorenas": "HardCoRe-NAS",
    "tinynet": "TinyNet",
    "lcnet": "LCNet",
}
# Results of `jeffnet bench` in benchmarks/RESULTS.md: a fenced block that begins with the model's name.
_RESULT = re.compile(r"^```\n((\w+), (?:inference|training), .*?)^```$", re.MULTILINE | re.DOTALL)
# Columns of a model's table of weights; the others would make it wider than a phone.
_SHOWN = ("weights", "pixels (training, tests)", "crop", "classes", "top-1, %", "top-5, %")
_CODE = """
```python
import jeffnet

model = jeffnet.create_model("{name}", {option})
images = jeffnet.transform_for("{name}")("photo.jpg")  # (1, {size}, {size}, 3)
logits = model(images)  # (1, {classes})
```

```sh
{commands}
```
"""


def write(root: Path) -> None:
    """Write `docs/generated/models` of the repository with this root."""
    folder = root / "docs" / "generated" / "models"
    folder.mkdir(parents=True, exist_ok=True)
    speeds: dict[str, list[str]] = {}
    for text, name in _RESULT.findall((root / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")):
        speeds.setdefault(name, []).append(text)
    pages = {"index": _index()}
    for module in FAMILIES:
        names = family_models(module)
        pages[f"family_{module}"] = _family(module, names)
        pages |= {name: _model(name, speeds.get(name, ())) for name in names}
    for name, page in pages.items():
        (folder / f"{name}.md").write_text(page, encoding="utf-8")


def family_models(module: str) -> list[str]:
    """Names of a family's architectures."""
    return sorted(importlib.import_module(f"jeffnet.arch.families.{module}").MODELS)


def linked(text: str, folder: str = "generated/models/") -> str:
    """Tables of models with each name in the first column linked to its page in `folder`."""
    names = set(list_models())
    return re.sub(
        r"^\| `(\w+)` \|",
        lambda match: f"| [`{match[1]}`]({folder}{match[1]}.md) |" if match[1] in names else match[0],
        text,
        flags=re.MULTILINE,
    )


def stages(spec: ModelSpec, plan: Plan, image_size: int) -> list[tuple[str, ...]]:
    """Rows of an architecture's table: stage, block strings, blocks, channels, stride, height and width of the map."""
    sizes = {layer.name: layer.out_size for layer in layers(plan, image_size)}
    size = sizes[plan.stem.name]
    kernel = "+".join(f"{part.kernel_size}x{part.kernel_size}" for part in plan.stem.parts)
    rows = [("stem", f"convolution {kernel}", "1", str(plan.stem.out_channels), str(plan.stem.stride), str(size))]
    for number, (strings, blocks) in enumerate(zip(spec.stages, plan.stages, strict=True)):
        last = next(sizes[op.name] for op in reversed(blocks[-1].ops) if op.name in sizes)
        text = ", ".join(f"`{string}`" for string in strings)
        stride = round(size / last)
        rows.append((str(number), text, str(len(blocks)), str(blocks[-1].out_channels), str(stride), str(last)))
        size = last
    if plan.head:
        size = sizes[plan.head.name]
        rows.append(("head", "convolution 1x1", "1", str(plan.head.out_channels), "1", str(size)))
    if plan.classifier:
        rows.append(("classifier", "dense", "1", str(plan.classifier.out_features), "", ""))
    return rows


def _index() -> str:
    rows = [
        (f"[{title}](family_{module}.md)", str(len(family_models(module))), _docstring(module)[0])
        for module, title in FAMILIES.items()
    ]
    contents = _contents(f"family_{module}" for module in FAMILIES)
    table = _table(("family", "models", ""), rows)
    return f"# Families\n\nEvery family has a page, and so has every model.\n\n{table}\n\n{contents}\n"


def _family(module: str, names: Sequence[str]) -> str:
    table = linked(markdown([describe(name) for name in names], MODELS), "")
    text = "\n\n".join(_docstring(module))
    return f"# {FAMILIES[module]}\n\n{text}\n\n{table}\n\n{_contents(names)}\n"


def _model(name: str, speeds: Iterable[str]) -> str:
    model, facts = find_model(name), describe(name)
    plan, size = model_plan(name), facts["image_size"]
    tags = [describe(tag) for tag in list_models(f"{name}.*", tags=True)]
    parts = [f"# {name}", _facts(facts, plan)]
    if tags:
        parts += ["## Weights", markdown(tags, {name: WEIGHTS[name] for name in _SHOWN})]
    header = ("stage", "block strings", "blocks", "channels", "stride", "output, px")
    parts += [
        "## Architecture",
        f"For pictures of {size} x {size}. [Block strings](../../models.md#block-strings) are written before scaling: "
        "columns after them have what is computed.",
        _table(header, stages(model.spec, plan, size)),
        "Feature maps: "
        + "; ".join(f"`{info.name}`, {info.channels} channels, stride {info.stride}" for info in plan.features)
        + ".",
        "## Use",
        _use(name, facts, bool(tags)),
    ]
    if speeds := list(speeds):
        parts += ["## Measured speed", "From [all results](../results.md), which say how they were measured."]
        parts += [f"```text\n{text}```" for text in speeds]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _facts(facts: dict, plan: Plan) -> str:
    rows = [
        ("parameters", f"{facts['parameters']:,}"),
        ("multiply-accumulates", f"{facts['macs'] / 1e9:.3g} G for a picture of {facts['image_size']} pixels"),
        (
            "input",
            f"{facts['image_size']} x {facts['image_size']}, crop {facts['crop_pct']:g}, {facts['interpolation']}",
        ),
        ("mean; std", WEIGHTS["mean; std"](facts)),
        ("pre-logits", f"{plan.num_features} features"),
    ]
    if facts["top1"] is not None:
        rows.append(("default weights", f"`{facts['timm']}`: {facts['top1']:.2f} % top-1, {facts['top5']:.2f} % top-5"))
    elif not facts["pretrained"]:
        rows.append(("weights", "none are published"))
    return _table(("", ""), rows)


def _use(name: str, facts: dict, has_weights: bool) -> str:
    commands = [f"jeffnet info {name}"]
    if has_weights:
        commands += [f"jeffnet predict photo.jpg --model {name}", f"jeffnet export {name} --output {name}.onnx"]
    return _CODE.format(
        name=name,
        option="pretrained=True" if has_weights else "num_classes=1000",
        size=facts["image_size"],
        classes=facts["num_classes"],
        commands="\n".join(commands),
    )


def _docstring(module: str) -> list[str]:
    """Paragraphs of what a family's module says of itself."""
    return (inspect.getdoc(importlib.import_module(f"jeffnet.arch.families.{module}")) or "").split("\n\n")


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _contents(pages: Iterable[str]) -> str:
    return "\n".join(["```{toctree}", ":hidden:", "", *pages, "```"])
