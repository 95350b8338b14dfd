"""`jeffnet export`: a model as a file for another runtime."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jeffnet.arch.quantization import KERNEL_BITS
from jeffnet.cli.devices import add_device_options, start_devices
from jeffnet.cli.model import image_size, local_path, model_name, positive
from jeffnet.cli.parser import usage
from jeffnet.errors import ConfigError
from jeffnet.export.options import DTYPES, INCLUDED, LAYOUTS
from jeffnet.export.targets import TARGETS, check_free, check_int8, check_opset_target, choose_target
from jeffnet.system.files import check_absent, write_file
from jeffnet.system.progress import progress_line
from jeffnet.text.names import printable_lines

if TYPE_CHECKING:
    from jeffnet.weights.formats.interface import WeightsFile


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "export",
        parents=[common],
        help="write a model as a file for another runtime",
        description="Write a model for ONNX Runtime, LiteRT, JAX or TensorFlow, run the file there, and compare what "
        "it gives with what the model gives; see docs/export.md. A file that differs from its model is not kept.",
    )
    text = "a name for its published weights, or a file or checkpoint of weights in any format, hf:owner/name, or a URL"
    parser.add_argument("model", metavar="MODEL", help=text)
    text = "weights of the model whose name MODEL is, as for `jeffnet validate` (default: the published ones)"
    parser.add_argument("--weights", metavar="SOURCE", help=text)
    parser.add_argument("--output", required=True, type=local_path, metavar="FILE", help="must not exist")
    text = "format (default: by the ending of the output: .onnx, .tflite, .stablehlo; without one: savedmodel)"
    parser.add_argument("--to", choices=TARGETS, help=text)
    _add_file_options(parser.add_argument_group("what the file takes and gives"))
    _add_int8_options(parser.add_argument_group("8-bit integers"))
    _add_check_options(parser.add_argument_group("check"))
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print one object")
    text = "write OUTPUT.md, which describes the file and has the program that runs it, instead of printing the program"
    group.add_argument("--card", action="store_true", help=text)
    add_device_options(parser)
    parser.set_defaults(run=run)


def _add_file_options(group: Any) -> None:
    text = "pictures of a call, or `any`, which tflite cannot (default: any; 1 for tflite)"
    group.add_argument("--batch-size", type=_batch_size, metavar="N", help=text)
    text = "side of the pictures, or HEIGHTxWIDTH (default: the model's)"
    group.add_argument("--image-size", "--img-size", type=image_size, metavar="PIXELS", help=text)
    group.add_argument("--layout", choices=LAYOUTS, default="nhwc", help="of the pictures (default: %(default)s)")
    group.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of weights and arithmetic (default: %(default)s)"
    )
    text = "what else is in the file, with commas between: preprocessing (it takes uint8 pixels and normalises them), "
    text += "softmax (it gives probabilities)"
    group.add_argument("--include", type=_words, default=(), metavar="STEP,...", help=text)
    text = "store the names of the classes for people, which the printed program then shows"
    group.add_argument("--embed-labels", action="store_true", help=text)
    group.add_argument("--opset", type=positive, metavar="N", help="of ONNX (default: the oldest that will do)")


def _add_int8_options(group: Any) -> None:
    text = "compute with 8-bit integers (onnx, tflite)"
    group.add_argument("--int8", action="store_true", help=text)
    text = "data set or folder of pictures from which to learn the ranges of values; a model trained with quantize.to "
    group.add_argument("--calibrate", metavar="DATA", help=f"{text}needs none")
    text = "how many of them to use (default: 200)"
    group.add_argument("--calibration-images", type=positive, default=200, metavar="N", help=text)
    text = (
        "of kernels: 7 is right on every processor, 8 is finer, for processors with VNNI and for Arm (default: those "
    )
    text += "of the model's training, else 7 for onnx, 8 for tflite)"
    group.add_argument("--kernel-bits", type=int, choices=KERNEL_BITS, help=text)


def _add_check_options(group: Any) -> None:
    group.add_argument("--no-check", action="store_true", help="do not run the file")
    text = "data set or folder of pictures on which to compare (default: synthetic pictures)"
    group.add_argument("--check-with", metavar="DATA", help=text)


def run(options: argparse.Namespace) -> None:
    """Export, and say what was written."""
    path = Path(options.output)
    with usage():
        target = choose_target(path, options.to)
        check_opset_target(target, options.opset)
        if options.batch_size == "any" and not TARGETS[target].any_batch:
            raise ConfigError(f"{target} files take a fixed number of pictures: give it, or leave it out for 1")
        check_int8(options.int8, target, options.dtype, options.calibrate, options.kernel_bits)
    check_free(path)
    card_file = Path(f"{path}.md")
    if options.card:
        check_absent(card_file)
    weights = _weights(options)
    start_devices(options)
    from jeffnet.export.export import export_model
    from jeffnet.export.snippet import described, entries, model_card, snippet

    with progress_line() as progress:
        progress(f"{options.model}: read")
        from jeffnet.functional import from_pretrained

        *model, card = from_pretrained(*weights)
        report = export_model(
            path,
            tuple(model),
            card,
            to=target,
            check=not options.no_check,
            check_with=options.check_with,
            int8=options.int8,
            calibrate_with=options.calibrate,
            calibration_images=options.calibration_images,
            kernel_bits=options.kernel_bits,
            progress=progress,
            **_file_options(options),
        )
    if options.card:
        write_file(card_file, model_card(report))
    program = snippet(report.path, report.metadata)
    if options.json:
        print(json.dumps({**entries(report), "snippet": program}))
        return
    print(printable_lines(described(report)))
    if not options.card:
        print(f"\nTo run it on a picture:\n\n{program}", end="")


def _weights(options: argparse.Namespace) -> "tuple[WeightsFile, str | None]":
    """The weights and the name of their model: where they cannot be had, nobody waits for JAX."""
    from jeffnet.weights.load import describe_weights

    name = None if options.weights is None else model_name(options.model)
    return describe_weights(options.weights or options.model, name)[0], name


def _file_options(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of `jeffnet.export.options.ExportOptions`."""
    names = ("image_size", "layout", "dtype", "include", "embed_labels", "opset")
    batch_size = None if options.batch_size == "any" else options.batch_size  # None: the format's own
    return {"batch_size": batch_size, **{name: getattr(options, name) for name in names}}


def _batch_size(text: str) -> int | str:
    return text if text == "any" else positive(text)


def _words(text: str) -> tuple[str, ...]:
    words = tuple(filter(None, text.split(",")))
    for word in words:
        if word not in INCLUDED:
            raise argparse.ArgumentTypeError(f"{word!r} is not one of {', '.join(INCLUDED)}")
    return words
