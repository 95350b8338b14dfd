"""Optional packages, by the extra of `pyproject.toml` that installs them."""

import sys

_TENSORFLOW = "tensorflow-cpu" if sys.platform == "linux" else "tensorflow"
# Arguments of `pip install`: the packages' names, since jeffnet may be installed from anywhere.
PACKAGES = {
    "digits": "scikit-learn",
    "embed": "scikit-learn pyarrow",
    "objax": "objax six",
    "torch": "torch torchvision timm",
    "tf": f"{_TENSORFLOW} tensorflow-datasets importlib_resources",
    "tfds": "tensorflow-datasets importlib_resources",
    "datasets": "datasets",
    "keras": "keras h5py",
    "onnx": "onnx onnxruntime",
    "bench": "onnx onnxruntime openvino",
    "export": "flatbuffers",
    "tflite": "ai-edge-litert ai-edge-quantizer flatbuffers litert-converter",
    "wandb": "wandb",
}


def install(*extras: str) -> str:
    """The command that installs the packages of extras, for a message."""
    return f"pip install {' '.join(dict.fromkeys(' '.join(PACKAGES[extra] for extra in extras).split()))}"
