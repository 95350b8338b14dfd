"""How long `jeffnet predict` takes from the command to the answer, beside what nobody can spare.

    python benchmarks/start.py photo.jpg --model tf_efficientnet_lite0 --repeats 7

Each measurement is a process of its own, and they take turns. `first` has an empty cache but for the C++ kernels, which
wheels bring along; `second` finds the compiled program. Both are compared with a process that imports JAX and reads the
same weights. Seconds of the processor are those of the process and all its threads, which other work on the machine
disturbs less than the time on the clock; of both the least of all repeats counts. The second table has the parts of a
second call, by the processor's time.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

READ = "import jax, sys; from jeffnet.weights.load import open_weights; open_weights(sys.argv[1])"
PARTS = """
import sys, time
parts = {}
def end(part):
    parts[part] = time.process_time() - sum(parts.values())
end("Python")
import jeffnet.cli.predict as command, jeffnet.cli.main as program
options = program._parse(sys.argv[1:])
program._keep_compiled()
end("command line")
import jeffnet.inference.predict, jeffnet.inference.forward, jeffnet.arch.imagenet
end("NumPy, Pillow")
card, load = command.open_model(options)
end("weights found, their header read")
pictures = command._pictures(options.pictures, options.limit, card)
end("picture read")
import jax
jax.devices()
end("JAX imported")
import jeffnet.inference.fused_forward
end("the rest imported")
forward, variables, _ = load()
end("arrays read")
answers = jeffnet.inference.predict.predict(forward, variables, pictures, card.preprocessing, range(card.num_classes))
end("arrays folded, program read, picture classified")
for part, seconds in parts.items():
    print(f"{part}\\t{seconds}")
"""


class Cost(NamedTuple):
    """Of a process, in seconds."""

    clock: float
    processor: float


def run(arguments: list[str], cache: Path) -> tuple[Cost, str]:
    """The cost and the output of a Python process."""
    environment = {**os.environ, "JEFFNET_CACHE": str(cache), "JEFFNET_OFFLINE": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # packages are installed with their bytecode
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"a process failed: {arguments}")
    return Cost(time.perf_counter() - began, usage.ru_utime + usage.ru_stime), output


def emptied(cache: Path) -> Path:
    """The cache folder with nothing but the kernels."""
    for entry in cache.glob("xla-*"):
        shutil.rmtree(entry)
    return cache


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture")
    parser.add_argument("--model", default="tf_efficientnet_lite0", help="with weights on this machine")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    predict = ["-m", "jeffnet", "predict", options.picture, "--model", options.model]
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        run(predict, cache)  # compiles the kernels where there is no wheel's, and writes bytecode
        measured = {
            "`import jax`": lambda: run(["-c", "import jax"], cache),
            "`import jax`, weights read": lambda: run(["-c", READ, options.model], cache),
            "first `jeffnet predict`": lambda: run(predict, emptied(cache)),
            "second": lambda: run(predict, cache),
            "second with `--no-fused`": lambda: run([*predict, "--no-fused"], cache),
        }
        costs = {name: [] for name in measured}
        parts: dict[str, list[float]] = {}
        for _ in range(options.repeats):
            for name, measure in measured.items():
                costs[name].append(measure()[0])
            for line in run(["-c", PARTS, *predict[2:]], cache)[1].splitlines():
                part, seconds = line.split("\t")
                parts.setdefault(part, []).append(float(seconds))
    report(costs, parts)


def report(costs: dict[str, list[Cost]], parts: dict[str, list[float]]) -> None:
    """Print both tables; a ratio is the median of those in one round."""
    rows = list(costs.values())
    print("| process | s on the clock | s of the processor | processor, ratio |\n|---|--:|--:|--:|")
    for name, row in costs.items():
        ratio = statistics.median(each.processor / base.processor for each, base in zip(row, rows[1], strict=True))
        clock, processor = (min(values) for values in zip(*row, strict=True))
        print(f"| {name} | {clock:.2f} | {processor:.2f} | {ratio:.2f} |")
    print("\n| part of the second | s of the processor |\n|---|--:|")
    for part, seconds in parts.items():
        print(f"| {part} | {min(seconds):.2f} |")


if __name__ == "__main__":
    main()
