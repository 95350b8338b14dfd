"""Our ONNX files against those that torch exports from timm, in ONNX Runtime on one thread.

python benchmarks/onnx_speed.py [MODEL ...]

Both have random weights. Calls alternate in one process and are measured in its time on the processor, so that other
programs disturb less; the ratio is the median of those of neighbouring calls.
"""

import sys
import tempfile
import time
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime

from jeffnet.arch.zoo import model_preprocessing
from jeffnet.export.metadata import ExportMetadata
from jeffnet.export.network import ExportNetwork
from jeffnet.export.onnx import open_runner, write
from jeffnet.export.options import ExportOptions
from jeffnet.weights.card import ModelCard
from jeffnet.weights.start import start_model

MODELS = (
    "efficientnet_b0", "tf_efficientnet_b0", "mobilenetv3_large_100", "tf_efficientnet_lite0", "mixnet_s",
    "tf_efficientnetv2_b0",
)  # fmt: skip
SIDE, CALLS = 224, 120


def write_ours(path: Path, name: str) -> None:
    card = ModelCard(name, 1000, 3, model_preprocessing(name))
    options = ExportOptions(image_size=(SIDE, SIDE), layout="nchw")
    write(path, ExportNetwork.of(start_model(name), card, options), ExportMetadata("onnx", card, options))


def write_theirs(path: Path, name: str) -> None:
    # torchvision's operators do not load beside some builds of torch: nothing here needs them.
    sys.modules.setdefault("torchvision._meta_registrations", ModuleType("torchvision._meta_registrations"))
    import timm
    import torch

    model, images = timm.create_model(name).eval(), torch.zeros(1, 3, SIDE, SIDE)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (images,), str(path), dynamo=True, verbose=False, external_data=False)


def seconds(runners: list, images: np.ndarray) -> np.ndarray:
    """Of every call, by runner."""
    times = np.zeros((len(runners), CALLS))
    for call in range(CALLS):
        for index in sorted(range(len(runners)), reverse=call % 2 == 1):
            start = time.process_time()
            runners[index](images)
            times[index, call] = time.process_time() - start
    return times[:, CALLS // 10 :]


def main(names: list[str]) -> None:
    print(f"ONNX Runtime {onnxruntime.__version__}, batch 1, {SIDE} pixels, one thread")
    print("| model | nodes: ours, torch's | ms: ours, torch's (least) | ours / torch's (median) |\n|---|---|---|--:|")
    images = np.random.default_rng(0).normal(size=(1, 3, SIDE, SIDE)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            files = [Path(folder) / f"{name}.{which}.onnx" for which in ("ours", "theirs")]
            write_ours(files[0], name)
            write_theirs(files[1], name)
            ours, theirs = seconds([open_runner(file, threads=1) for file in files], images)
            nodes = ", ".join(str(len(onnx.load(file).graph.node)) for file in files)
            least = f"{ours.min() * 1e3:.1f}, {theirs.min() * 1e3:.1f}"
            print(f"| {name} | {nodes} | {least} | {np.median(ours / theirs):.2f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(MODELS))
