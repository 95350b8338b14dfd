"""Speed of `jeffnet validate` beside timm's way on the same pictures.

    python benchmarks/validation.py PICTURES tf_efficientnet_b0 mobilenetv3_small_100 --repeats 3

That is timm's model under `torch.inference_mode`, its transforms, and PyTorch's DataLoader. Weights are random. Every
measurement is a process of its own; they take turns. Speed is that from the second batch on, without start and
compilation. Threads are those of PyTorch's operators, workers the processes that read pictures beside them; jeffnet
uses as many threads as there are processors. The best of all repeats counts, and the least processor time a picture,
which other work on the machine disturbs less.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TIMM = """
import sys, time, types
sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")
import timm, torch
from timm.data import ImageDataset, create_transform, resolve_data_config
name, weights, pictures, batch, threads, workers = sys.argv[1:]
torch.set_num_threads(int(threads))
model = timm.create_model(name, checkpoint_path=weights).eval().to(memory_format=torch.channels_last)
transform = create_transform(**resolve_data_config({}, model=model))
data = ImageDataset(pictures, transform=transform)
loader = torch.utils.data.DataLoader(data, int(batch), num_workers=int(workers))
count, right = 0, 0
if __name__ == "__main__":
    with torch.inference_mode():
        for number, (images, labels) in enumerate(loader):
            right += int((model(images.contiguous(memory_format=torch.channels_last)).argmax(1) == labels).sum())
            if number == 0:
                began = time.perf_counter()
            else:
                count += len(labels)
    print(count / (time.perf_counter() - began))
"""
WRITE = """
import sys, types
sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")
import timm
from safetensors.torch import save_file
save_file(timm.create_model(sys.argv[1]).state_dict(), sys.argv[2])
"""


def run(command: list[str]) -> tuple[str, float]:
    """The output of a process, and the processor's seconds of it and of its own processes."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"a process failed: {command[:4]}")
    return output, usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", help="folder with a folder of pictures for each of some of ImageNet's classes")
    parser.add_argument("models", nargs="+", help="of ours that timm has under the same name")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    processors = len(os.sched_getaffinity(0))
    pictures, count = options.pictures, sum(1 for path in Path(options.pictures).rglob("*.*") if path.is_file())
    print("| model | way | pictures/s | ratio | processor, ms a picture |\n|---|---|--:|--:|--:|")
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            weights = str(Path(folder, "model.safetensors"))
            run(["-c", WRITE, name, weights])
            validate = ["-m", "jeffnet", "validate", pictures, "--model", name, "--weights", weights, "--json"]
            ways = {"jeffnet": validate, "jeffnet, `--no-fused`": [*validate, "--no-fused"]}
            for threads, workers in ((processors, 0), (processors - 1, 1), (processors, processors)):
                script = ["-c", TIMM, name, weights, pictures, str(options.batch_size), str(threads), str(workers)]
                ways[f"timm, {threads} threads, {workers} workers"] = script
            speeds, seconds = {way: [] for way in ways}, {way: [] for way in ways}
            for _ in range(options.repeats):
                for way, command in ways.items():
                    batch = ["--batch-size", str(options.batch_size)] if way.startswith("jeffnet") else []
                    output, processor = run([*command, *batch])
                    last = output.splitlines()[-1]
                    speeds[way].append(json.loads(last)["images_per_second"] if batch else float(last))
                    seconds[way].append(processor)
        timms = [max(speeds[way][turn] for way in ways if "timm" in way) for turn in range(options.repeats)]
        for way in ways:
            ratio = statistics.median(ours / theirs for ours, theirs in zip(speeds[way], timms, strict=True))
            cost = 1000 * min(seconds[way]) / count
            print(f"| `{name}` | {way} | {max(speeds[way]):.0f} | {ratio:.2f} | {cost:.1f} |")


if __name__ == "__main__":
    main()
