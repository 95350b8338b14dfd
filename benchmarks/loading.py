"""Time and memory of loading a model's weights, beside timm's loading of the same file.

    python benchmarks/loading.py tf_efficientnet_b7 --repeats 3

Each measurement is a process of its own; the libraries take turns. Time is from the name and the file to the model with
its arrays, imports left out. Memory is the process's peak, over what it was once the library was imported and its first
array made, by the size of the file.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

OURS = """
import jax, jax.numpy as jnp
from jeffnet.{backend} import create_model
jax.block_until_ready(jnp.zeros(3) + 1)
begin()
model = create_model(name, pretrained=path)
jax.block_until_ready(jax.tree.leaves(model[1]) if isinstance(model, tuple) else jax.tree.leaves(nnx_state(model)))
"""
TIMM = """
import sys, types
sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")
import timm, torch
torch.zeros(3) + 1
begin()
model = timm.create_model(name, checkpoint_path=path)
"""
MEASURE = """
import json, resource, sys, time
name, path = sys.argv[1:]
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
def begin():
    global began, base
    began, base = time.perf_counter(), peak()
def nnx_state(model):
    from flax import nnx
    return nnx.state(model)
{body}
seconds = time.perf_counter() - began
print(json.dumps({{"seconds": seconds, "bytes": peak() - base}}))
"""
LIBRARIES = {
    "linen": OURS.format(backend="linen"),
    "nnx": OURS.format(backend="nnx"),
    "functional": OURS.format(backend="functional"),
    "timm": TIMM,
}
WRITE = """
import sys, types
sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")
import timm
from safetensors.torch import save_file
save_file(timm.create_model(sys.argv[1]).state_dict(), sys.argv[2])
"""


def measure(library: str, name: str, path: str) -> dict[str, float]:
    command = [sys.executable, "-c", MEASURE.format(body=LIBRARIES[library]), name, path]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="of ours that timm has under the same name")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print("| model | library | seconds | ratio to timm | peak memory / file |\n|---|---|---|---|---|")
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "model.safetensors")
            subprocess.run([sys.executable, "-c", WRITE, name, path], check=True)
            size = Path(path).stat().st_size
            results = {library: [] for library in LIBRARIES}
            for _ in range(options.repeats):
                for library, rows in results.items():
                    rows.append(measure(library, name, path))
        seconds = {library: statistics.median(row["seconds"] for row in rows) for library, rows in results.items()}
        for library, rows in results.items():
            memory = max(row["bytes"] for row in rows) / size
            ratio = seconds[library] / seconds["timm"]
            print(f"| `{name}` | {library} | {seconds[library]:.2f} | {ratio:.2f} | {memory:.2f} |")


if __name__ == "__main__":
    main()
