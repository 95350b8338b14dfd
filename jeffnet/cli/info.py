"""`jeffnet info`: details of a model, a weights file or, with `--env`, the environment."""

import argparse
import json
import os
from collections.abc import Iterator
from typing import Any

from jeffnet.arch.model import LICENSE, RELEASE
from jeffnet.arch.summary import count_macs, count_parameters, layers
from jeffnet.arch.zoo import default_num_classes, find_model, list_models, model_plan, resolve_name
from jeffnet.cli.devices import add_device_options
from jeffnet.cli.list_ import WEIGHTS, describe
from jeffnet.cli.model import add_size_option, positive, whole
from jeffnet.cli.text import table
from jeffnet.errors import UnknownModelError, UsageError
from jeffnet.export.targets import has_ending
from jeffnet.text.names import listed, printable


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "info",
        parents=[common],
        help="show a model's layers, cost, preprocessing and weights, a weights file, or the environment",
        description="Show a model's layers, parameters, multiply-accumulates, feature maps, preprocessing and all "
        "published weights of its architecture; or read a weights file, verify its checksums and show its model; or "
        "open an exported file; or, with --env, show devices, versions and memory, and test them for about a second.",
        usage="jeffnet info (MODEL | FILE | --env) [options]",
    )
    text = "a model's name, with or without the tag of its weights; or weights: a path (./NAME if a model has it), "
    text += "hf:owner/name or a URL; or an exported file"
    parser.add_argument("model", metavar="MODEL", nargs="?", help=text)
    parser.add_argument("--env", action="store_true", help="show and test the environment; status 1 if the test fails")
    parser.add_argument("--num-classes", type=whole, metavar="N", help="width of the logits (default: the model's)")
    parser.add_argument("--in-chans", type=positive, default=3, help="channels of the pictures (default: %(default)s)")
    add_size_option(parser)
    parser.add_argument("--output-stride", type=int, choices=(32, 16, 8), default=32, help="(default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one object")
    add_device_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print the model, or the environment."""
    if options.env and options.model is not None:
        raise UsageError(f"--env shows the environment, not {options.model}: remove one of them")
    if options.env:
        _show_environment(options)
    elif options.device or options.num_devices:
        raise UsageError("--device and --num-devices belong to --env: showing a model needs no device")
    elif options.model is not None and _is_exported(options.model):
        _show_exported(options)
    elif options.model is not None and _is_weights(options.model):
        _show_weights(options)
    elif options.model is not None:
        _show_model(options)
    else:
        raise UsageError("give the name of a model, which `jeffnet list` shows, or --env")


def _show_environment(options: argparse.Namespace) -> None:
    """Print the environment and the result of the self-test; raises SelfTestError if it failed."""
    # A GPU that is in use has little free memory: allocate no more than the test needs.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from jeffnet.system.device_check import SelfTestError, self_test
    from jeffnet.system.environment import report

    machine, failure = report(options.device, options.num_devices), None
    try:
        machine["self_test"] = {"passed": True, "seconds": round(self_test(), 2), "failure": None}
    except SelfTestError as error:
        failure = error
        machine["self_test"] = {"passed": False, "seconds": None, "failure": str(error)}
    if options.json:
        print(json.dumps(machine, indent=1))
    else:
        for label, text in _environment_facts(machine):
            print(f"{label:<18}{text}")
    if failure is not None:
        raise failure


def _environment_facts(machine: dict[str, Any]) -> Iterator[tuple[str, str]]:
    from jeffnet.system.environment import format_bytes

    devices, cuda = machine["devices"], machine["cuda"]
    for device in devices:
        memory = "" if device["memory"] is None else f", {format_bytes(device['memory'])} each"
        in_use = "" if device["in_use"] is None else f", {format_bytes(device['in_use'])} in use"
        yield "devices", f"{device['count']} x {device['kind']} ({device['platform']}){memory}{in_use}"
    if cuda is not None and all(device["platform"] != "gpu" for device in devices):
        yield "", "no GPU, although JAX's plugin for CUDA is installed: see docs/gpu.md"
    memory = "" if machine["memory"] is None else f", {format_bytes(machine['memory'])}"
    yield "host", f"{machine['cpus']:g} CPUs{memory}, {machine['platform']}"
    yield from ((name, version) for name, version in machine["versions"].items() if version is not None)
    yield from ((f"CUDA {name}", version or "not found") for name, version in (cuda or {}).items())
    kernels, test = machine["native_kernels"], machine["self_test"]
    yield "C++ kernels", f"built: {kernels['library']}" if kernels["built"] else f"not built: {kernels['reason']}"
    yield "convolutions", machine["convolutions"]
    yield "self test", f"passed in {test['seconds']} s" if test["passed"] else "failed"


def _is_exported(name: str) -> bool:
    if os.path.isdir(name):
        from jeffnet.export.savedmodel import DESCRIPTION

        return os.path.exists(os.path.join(name, DESCRIPTION))
    return has_ending(name) and os.path.exists(name)


def _show_exported(options: argparse.Namespace) -> None:
    """Open an exported file in its runtime, and print what it says of itself."""
    from jeffnet.export.metadata import metadata_json
    from jeffnet.export.run import open_exported
    from jeffnet.export.snippet import takes_and_gives

    exported = open_exported(options.model)
    metadata, card = exported.runner.metadata, exported.card
    assert metadata is not None  # without one, the file is not opened unless a name is given
    if options.json:
        entries = json.loads(metadata_json(metadata))
        print(json.dumps({"path": options.model, "runtime": exported.runner.runtime, **entries}, indent=1))
        return
    facts = {
        "file": f"{options.model} ({exported.target}, in {exported.runner.runtime})",
        "model": card.model,
        "images": takes_and_gives(metadata),
        "classes": f"{card.num_classes}" + (f": {listed(card.classes)}" if card.classes else ""),
        "preprocessing": _preprocessing_text(vars(card.preprocessing)),
        "written by": f"jeffnet {metadata.jeffnet}",
    }
    for label, text in facts.items():
        print(f"{label:<14}{printable(text)}")


def _is_weights(name: str) -> bool:
    try:
        resolve_name(name)
    except UnknownModelError:
        return os.path.exists(name) or "/" in name or name.startswith("hf:")
    return False


def _show_weights(options: argparse.Namespace) -> None:
    """Read the whole weights file, which verifies its checksums, and print its description."""
    from jeffnet.weights.load import find_weights

    file = find_weights(options.model)
    card = file.card
    preprocessing = card.preprocessing if card else file.config.preprocessing or file.preprocessing
    summary = {
        "path": options.model,
        "kind": file.title or file.naming.title,
        "model": file.stated_model,
        "num_classes": card.num_classes if card else None,
        "in_chans": card.in_chans if card else None,
        "global_pool": card.global_pool if card else None,
        "output_stride": card.output_stride if card else None,
        "classes": list(card.classes if card else file.config.classes),
        "preprocessing": vars(preprocessing) if preprocessing else None,
        "arrays": len(file.arrays),
        "values": sum(array.read().size for array in file.arrays.values()),
        "dtypes": sorted({array.dtype.name for array in file.arrays.values()}),
        "checksums": file.checksums or None,
    }
    if options.json:
        print(json.dumps(summary, indent=1))
        return
    for label, text in _weights_facts(summary):
        print(f"{label:<14}{printable(text)}")


def _weights_facts(summary: dict[str, Any]) -> Iterator[tuple[str, str]]:
    classes, checksums = summary["classes"], summary["checksums"]
    yield "file", f"{summary['path']} ({summary['kind']})"
    yield "model", summary["model"] or "not stated"
    yield "arrays", f"{summary['arrays']} of {summary['values']:,} values, {', '.join(summary['dtypes'])}"
    yield "checksums", f"{checksums}: verified" if checksums else "none in this file: not verified"
    if summary["num_classes"] is not None:
        yield "classes", f"{summary['num_classes']}" + (f": {listed(classes)}" if classes else "")
        pooling, stride = summary["global_pool"], summary["output_stride"]
        yield "built with", f"{summary['in_chans']} channels, {pooling} pooling, stride {stride}"
    if summary["preprocessing"]:
        yield "preprocessing", _preprocessing_text(summary["preprocessing"])


def _preprocessing_text(pre: dict[str, Any]) -> str:
    trained = f" ({pre['train_size']} in training)" if pre.get("train_size") not in (None, pre["image_size"]) else ""
    mode = f" {pre['crop_mode']}" if pre["crop_mode"] != "center" else ""
    crop = f"{pre['image_size']} px{trained}, crop {pre['crop_pct']}{mode}, {pre['interpolation']}"
    return f"{crop}, mean {pre['mean']}, std {pre['std']}"


def _show_model(options: argparse.Namespace) -> None:
    name = resolve_name(options.model)
    model = find_model(name)
    preprocessing, weights = model.preprocessing, model.weights
    num_classes = default_num_classes(name) if options.num_classes is None else options.num_classes
    plan = model_plan(name, num_classes=num_classes, in_chans=options.in_chans, output_stride=options.output_stride)
    size = options.image_size or preprocessing.image_size
    rows = layers(plan, size)
    summary = {
        "name": name,
        "parameters": count_parameters(plan),
        "macs": count_macs(plan, size),
        "image_size": size,
        "num_features": plan.num_features,
        "num_classes": plan.num_classes,
        "preprocessing": vars(preprocessing),
        "features": [vars(feature) for feature in plan.features],
        "drop_rate": plan.drop_rate,
        "pretrained": {
            "timm": model.timm,
            "classes": weights.classes,
            "top1": weights.top1,
            "top5": weights.top5,
            "license": LICENSE,
            "hub": f"timm/{model.timm}",
            "release": model.release_file and RELEASE + model.release_file,
            "sha256": weights.sha256,
        }
        if weights
        else None,
        "weights": [describe(other) for other in list_models(f"{name.partition('.')[0]}.*", tags=True)],
    }
    if options.json:
        print(json.dumps({**summary, "layers": [vars(row) for row in rows]}, indent=1))
        return
    cells = []
    for row in rows:
        output = f"{row.out_size} x {row.out_size}", str(row.out_channels)
        cells.append((row.name, row.kind, *output, f"{row.parameters:,}", f"{row.macs:,}"))
    print(table(("layer", "operation", "output", "channels", "parameters", "MACs"), cells))
    print()
    for label, text in _model_facts(summary):
        print(f"{label:<14}{printable(text)}")
    if summary["weights"]:
        print()
        print(_weights_table(summary))


def _weights_table(summary: dict[str, Any]) -> str:
    """All weights of the architecture, with a mark at those of the model."""
    chosen, (first, *others) = summary["pretrained"]["timm"], WEIGHTS
    rows = []
    for entry in summary["weights"]:
        mark = " *" if entry["name"] == chosen else ""
        rows.append([entry["name"] + mark, *(WEIGHTS[column](entry) for column in others)])
    return f"{table([first, *others], rows)}\n* the weights of {summary['name']}"


def _model_facts(summary: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "model", summary["name"]
    yield "parameters", f"{summary['parameters']:,}"
    yield "MACs", f"{summary['macs']:,} at {summary['image_size']} px"
    maps = [f"{feature['channels']} at stride {feature['stride']}" for feature in summary["features"]]
    yield "feature maps", ", ".join(maps)
    yield "pre-logits", f"{summary['num_features']}, dropout {summary['drop_rate']}"
    yield "classes", f"{summary['num_classes']:,}"
    yield "preprocessing", _preprocessing_text(summary["preprocessing"])
    if weights := summary["pretrained"]:
        size = summary["preprocessing"]["image_size"]
        scores = f"top-1 {weights['top1']} %, top-5 {weights['top5']} % on ImageNet-1k at {size} px"
        if weights["top1"] is None:
            scores = f"of {weights['classes']}, without a score"
        yield "weights", f"{weights['hub']}: {scores}; {weights['license']}"
    else:
        yield "weights", "none published"
