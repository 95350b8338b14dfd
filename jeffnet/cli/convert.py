"""`jeffnet convert`: weights from one format to another."""

import argparse
import json
from pathlib import Path
from typing import Any

from jeffnet.cli.devices import add_device_options, start_devices
from jeffnet.cli.model import MODEL_TEXT, local_path, model_name, positive, whole
from jeffnet.errors import UsageError
from jeffnet.text.names import counted, printable
from jeffnet.weights.formats import FORMS


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "convert",
        parents=[common],
        help="write weights in another format",
        description="Write weights in another format: jeffnet's, a checkpoint for a module system's tools, or a file "
        "for another library. Arrays are the same to the bit.",
    )
    text = "a file or checkpoint in any format, hf:owner/name, a URL, or a model's name for its published weights"
    parser.add_argument("source", metavar="SOURCE", help=text)
    text = "file or folder to write; must not exist"
    destination = parser.add_argument("destination", type=local_path, metavar="DESTINATION", help=text)
    text = "the same as DESTINATION, as `jeffnet export` takes it"
    parser.add_argument("--output", type=local_path, metavar="FILE", action=_Output, instead_of=destination, help=text)
    parser.add_argument("--model", metavar="NAME", help=f"{MODEL_TEXT}; required unless the source names its model")
    text = "start a new classifier with N classes if the source has another number"
    parser.add_argument("--num-classes", type=whole, metavar="N", help=text)
    text = "sum or repeat the first convolution for N input channels"
    parser.add_argument("--in-chans", type=positive, metavar="N", help=text)
    parser.add_argument(
        "--to",
        choices=FORMS,
        help="format; by default chosen by the destination's ending (.safetensors: jeffnet, .pth: timm, "
        ".npz: npz, .msgpack: linen, .keras and .weights.h5: keras, .ckpt: tensorflow; without one: jeffnet). "
        "jeffnet: a safetensors file that names its model, for every backend; linen: MessagePack of the "
        "variables (flax.serialization); nnx: a folder of Orbax; objax: npz of the variables; timm and "
        "efficientnet_pytorch: a state dict, by torch.save if the destination ends in .pth, .pt, .tar or .bin, else "
        "safetensors; npz: as in efficientnet-jax's release; tensorflow: a checkpoint with the authors' names; "
        "keras: a model of keras.applications, as .keras or .weights.h5",
    )
    parser.add_argument("--json", action="store_true", help="print what was written as one object")
    add_device_options(parser)
    parser.set_defaults(run=run)


class _Output(argparse.Action):
    """An option in place of a positional argument, which may then be missing.

    With `nargs="?"` a positional argument could not stand after an option.
    """

    def __init__(self, *names: Any, instead_of: argparse.Action, **settings: Any) -> None:
        super().__init__(*names, **settings)
        self._positional = instead_of

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        namespace.output, self._positional.required = values, False


def run(options: argparse.Namespace) -> None:
    """Convert, and say what was written."""
    from jeffnet.checkpoints import form_of, write_checkpoint
    from jeffnet.weights.load import open_weights

    path = options.output or options.destination
    if options.output and options.destination:
        raise UsageError(f"DESTINATION {options.destination!r} and --output {options.output!r}: give one of them")
    form = form_of(path, options.to)
    # Other formats need no device, which another process may be using.
    if options.device or options.num_devices or form in ("nnx", "objax") or Path(options.source).is_dir():
        start_devices(options)
    name = options.model and model_name(options.model)
    card, arrays = open_weights(options.source, name, num_classes=options.num_classes, in_chans=options.in_chans)
    write_checkpoint(path, arrays, card, form)
    result = {
        "model": card.model,
        "num_classes": card.num_classes,
        "in_chans": card.in_chans,
        "form": form,
        "path": path,
        "arrays": len(arrays),
        "values": sum(array.size for array in arrays.values()),
    }
    if options.json:
        print(json.dumps(result))
        return
    contents = f"{len(arrays)} arrays of {result['values']:,} values"
    print(f"{card.model}, {counted(card.num_classes, 'class')}: {contents} in {printable(path)} ({form})")
