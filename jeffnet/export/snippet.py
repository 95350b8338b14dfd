"""What a user is told of an exported file: what it is, and a program that runs it without jeffnet."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jeffnet.arch.preprocessing import per_channel
from jeffnet.export.export import ExportReport
from jeffnet.export.metadata import ExportMetadata
from jeffnet.export.onnx import EXACT_INT8
from jeffnet.export.savedmodel import DESCRIPTION

_IMPORTS = {
    "onnx": "import onnxruntime",
    "tflite": "from ai_edge_litert.interpreter import Interpreter",
    "stablehlo": "import jax.export",
    "savedmodel": "import tensorflow",
}
_RUNS = {
    "onnx": """\
session = onnxruntime.InferenceSession({path!r}{options})
(outputs,) = session.run(None, {{session.get_inputs()[0].name: images}})""",
    "tflite": """\
interpreter = Interpreter({path!r})
interpreter.allocate_tensors()
interpreter.set_tensor(interpreter.get_input_details()[0]["index"], images)
interpreter.invoke()
outputs = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])""",
    "stablehlo": """\
with open({path!r}, "rb") as file:
    exported = jax.export.deserialize(bytearray(file.read()))
outputs = np.asarray(exported.call(images))""",
    "savedmodel": """\
model = tensorflow.saved_model.load({path!r})
(outputs,) = model.signatures["serving_default"](tensorflow.constant(images)).values()
outputs = outputs.numpy()""",
}
# Before ONNX Runtime opens a file whose kernels have 8 bits.
_EXACT_INT8 = f"""\
options = onnxruntime.SessionOptions()
# Without this the 8-bit kernels overflow on x86 processors without VNNI; on others it changes nothing.
options.add_session_config_entry{EXACT_INT8}"""
# How the names of the classes, a list of texts, are read from formats that have them.
_LABELS = {
    "onnx": """\
labels = session.get_modelmeta().custom_metadata_map["labels"].splitlines()""",
    "tflite": """\
with zipfile.ZipFile({path!r}) as archive:
    labels = archive.read("labels.txt").decode().splitlines()""",
    "stablehlo": """\
with open({path!r} + ".json", encoding="utf-8") as file:
    labels = json.load(file)["labels"]""",
    "savedmodel": f"""\
with open({{path!r}} + "/{DESCRIPTION}", encoding="utf-8") as file:
    labels = json.load(file)["labels"]""",
}


def snippet(path: str, metadata: ExportMetadata) -> str:
    """A program that prints the most probable classes of a picture, whose path it takes as its argument.

    Args:
      path: of the exported file.
      metadata: what it says of itself.
    """
    labels = _LABELS.get(metadata.target) if metadata.options.embed_labels else None
    modules = ["sys", *(name for name in ("json", "zipfile") if labels and f"{name}." in labels)]
    lines = [
        *(f"import {name}" for name in sorted(modules)),
        "",
        "import numpy as np",
        _IMPORTS[metadata.target],
        "from PIL import Image, ImageOps",
        "",
    ]
    lines += _pixels(metadata)
    lines += _images(metadata)
    exact = metadata.target == "onnx" and metadata.kernel_bits == 8
    lines += ["", *([_EXACT_INT8] if exact else [])]
    lines += [_RUNS[metadata.target].format(path=path, options=", options" if exact else ""), ""]
    if not metadata.card.num_classes:
        return "\n".join([*lines, "print(outputs[0])", ""])
    if "softmax" in metadata.options.include:
        lines += ["probabilities = outputs[0]"]
    else:
        lines += ["probabilities = np.exp(outputs[0] - outputs[0].max())", "probabilities /= probabilities.sum()"]
    if labels:
        lines += [labels.format(path=path)]
    name = "labels[index]" if labels else "index"
    if metadata.card.classes and not labels:
        lines += ["# Numbers of classes: a file with --embed-labels has their names."]
    loop = "for index in probabilities.argsort()[::-1][:5]:"
    return "\n".join([*lines, loop, f'    print({name}, f"{{probabilities[index]:.1%}}")', ""])


def entries(report: ExportReport) -> dict[str, Any]:
    """What was exported, as JSON can hold it."""
    metadata, comparison = report.metadata, report.comparison
    return {
        "path": report.path,
        "bytes": report.bytes,
        "target": metadata.target,
        "model": metadata.card.model,
        "num_classes": metadata.card.num_classes,
        "options": asdict(metadata.options),
        "quantization": metadata.quantization,
        "runtime": report.runtime,
        "check": asdict(comparison) if comparison else None,
    }


def takes_and_gives(metadata: ExportMetadata) -> str:
    """What a file takes and gives, in one line."""
    options, (height, width) = metadata.options, metadata.options.image_size or (0, 0)
    number = {None: "any number of pictures", 1: "1 picture"}.get(
        options.batch_size, f"{options.batch_size} pictures at a time"
    )
    pixels = "uint8 pixels" if "preprocessing" in options.include else "normalised float32"
    gives = (
        "features" if not metadata.card.num_classes else "probabilities" if "softmax" in options.include else "logits"
    )
    quantized = f", {metadata.quantization}" if metadata.quantization else ""
    return (
        f"takes {number} of {height}x{width}, {pixels}, {options.layout.upper()}; gives {gives}; "
        f"{options.dtype}{quantized}"
    )


def described(report: ExportReport) -> str:
    """What was exported, in lines."""
    metadata, comparison = report.metadata, report.comparison
    lines = [
        f"{metadata.card.model} in {report.path} ({metadata.target}, {report.bytes / 1e6:.1f} MB)",
        takes_and_gives(metadata),
    ]
    if comparison is None:
        return "\n".join([*lines, "not checked"])
    same = "" if comparison.agreement is None else f", same first class for {comparison.agreement:.1%}"
    return "\n".join(
        [
            *lines,
            f"checked in {report.runtime} on {comparison.pictures} pictures: largest difference "
            f"{comparison.difference:.1e} of the largest output, cosine {comparison.cosine:.6f}{same}",
        ]
    )


def model_card(report: ExportReport) -> str:
    """A page in Markdown that lies beside the file."""
    name = Path(report.path).name
    facts = described(report).replace(report.path, name).replace("\n", "\n- ")
    program = snippet(name, report.metadata)
    return (
        f"# {name}\n\n- {facts}\n- written by jeffnet {report.metadata.jeffnet}\n\n"
        f"Run on a picture, in the folder of the file (`python program.py photo.jpg`):\n\n```python\n{program}```\n"
    )


def _pixels(metadata: ExportMetadata) -> list[str]:
    """From the file of a picture to `pixels`, as `jeffnet.data.preprocess.EvalTransform` makes them."""
    preprocessing, channels = metadata.card.preprocessing, metadata.card.in_chans
    side = preprocessing.image_size
    height, width = metadata.options.image_size or (side, side)
    whole_height, whole_width = (math.floor(length / preprocessing.crop_pct) for length in (height, width))
    resize = f"image = image.resize((width, height), Image.Resampling.{preprocessing.interpolation.upper()})"
    lines = [f'image = ImageOps.exif_transpose(Image.open(sys.argv[1])).convert("{"RGB" if channels == 3 else "L"}")']
    if preprocessing.crop_mode == "squash":
        lines += [f"width, height = {whole_width}, {whole_height}"]
    elif preprocessing.crop_mode == "center" and height == width:
        lines += [
            f"short = {whole_width}  # pixels of the short side, of which the middle {width} are kept",
            "width, height = image.size",
            "width, height = (",
            "    (short, int(short * height / width)) if width <= height else (int(short * width / height), short)",
            ")",
        ]
    else:
        choose = "min" if preprocessing.crop_mode == "center" else "max"
        lines += [
            f"ratio = {choose}(image.height / {whole_height}, image.width / {whole_width})",
            "width, height = max(round(image.width / ratio), 1), max(round(image.height / ratio), 1)",
        ]
    lines += [resize]
    if preprocessing.crop_mode != "border":
        return [
            *lines,
            f"left, top = round((width - {width}) / 2), round((height - {height}) / 2)",
            f"pixels = np.asarray(image.crop((left, top, left + {width}, top + {height})))",
        ]
    colour = tuple(round(255 * value) for value in per_channel("mean", preprocessing.mean, channels))
    return [
        *lines,
        f"canvas = Image.new(image.mode, ({width}, {height}), {colour if channels == 3 else colour[0]})",
        f"left = round((width - {width}) / 2) if width >= {width} else -(({width} - width) // 2)",
        f"top = round((height - {height}) / 2) if height >= {height} else -(({height} - height) // 2)",
        "canvas.paste(image, (-left, -top))",
        "pixels = np.asarray(canvas)",
    ]


def _images(metadata: ExportMetadata) -> list[str]:
    """From `pixels` to `images`, as the file takes them."""
    preprocessing, options, channels = metadata.card.preprocessing, metadata.options, metadata.card.in_chans
    lines = ["pixels = pixels[:, :, None]"] if channels == 1 else []
    if "preprocessing" in options.include:
        lines += ["images = pixels[None]"]
    else:
        lines += [
            f"mean = np.array({list(per_channel('mean', preprocessing.mean, channels))}, np.float32)",
            f"std = np.array({list(per_channel('std', preprocessing.std, channels))}, np.float32)",
            "images = ((pixels.astype(np.float32) / 255 - mean) / std)[None]",
        ]
    if options.layout == "nchw":
        lines += ["images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))"]
    if (options.batch_size or 1) > 1:
        lines += [f"images = np.repeat(images, {options.batch_size}, axis=0)  # the file takes {options.batch_size}"]
    return lines
