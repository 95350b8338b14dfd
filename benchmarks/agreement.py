"""Does every pipeline and backend say of each picture what timm says?

    python benchmarks/agreement.py PICTURES --weights model.safetensors [--model NAME] [--split val]
    python benchmarks/agreement.py PICTURES --pixels

Writes the weights as a timm state dict, which timm loads strictly, and has timm's own transforms, data set and loader
validate the pictures in float32. Then `jeffnet validate` does, with each loader and backend. Printed are the scores and
how many pictures get another first class; those among them where timm's two best probabilities differ by less than 1e-5
are ties. Needs the extras torch, tf and objax.

With `--pixels` the evaluation transform's uint8 pixels of every picture are compared with those of timm's
`create_transform`, for both interpolations, all three crop modes, crop shares from 0.8 to 1 and two sizes.
"""

import argparse
import importlib.util
import tempfile
from pathlib import Path

import numpy as np

from jeffnet.arch.preprocessing import INTERPOLATIONS, Preprocessing
from jeffnet.backends import BACKENDS
from jeffnet.bench.programs.with_torch import import_timm
from jeffnet.checkpoints import write_checkpoint
from jeffnet.cli.text import table
from jeffnet.data.preprocess import CROP_MODES, EvalTransform
from jeffnet.data.sources import ImageFolder
from jeffnet.validation.candidates import Candidate
from jeffnet.validation.validate import Settings, validate
from jeffnet.weights.load import open_weights

TIE = 1e-5


def timm_probabilities(pictures: str, split: str, weights: Path, card, workers: int) -> tuple[np.ndarray, np.ndarray]:
    """Softmax `(N, classes)` and labels by timm's own validation."""
    timm = import_timm()
    import torch
    from safetensors.torch import load_file

    model = timm.create_model(card.model.partition(".")[0], num_classes=card.num_classes)
    model.load_state_dict(load_file(weights))
    model.eval()
    pre = card.preprocessing
    dataset = timm.data.create_dataset("", str(Path(pictures) / split))
    loader = timm.data.create_loader(
        dataset,
        input_size=(3, pre.image_size, pre.image_size),
        batch_size=50,
        use_prefetcher=False,
        interpolation=pre.interpolation,
        mean=pre.mean,
        std=pre.std,
        crop_pct=pre.crop_pct,
        num_workers=workers,
    )
    rows, labels = [], []
    with torch.no_grad():
        for images, targets in loader:
            rows.append(torch.softmax(model(images), 1).numpy())
            labels.append(targets.numpy())
    # timm sorts files in another way: as ours, by name.
    order = np.argsort(dataset.filenames(), kind="stable")
    return np.concatenate(rows)[order], np.concatenate(labels)[order]


def compare_pixels(pictures: str, split: str) -> None:
    """Counts pictures with any pixel that differs from timm's."""
    import_timm()
    from timm.data.transforms_factory import create_transform

    source = ImageFolder(pictures, split)
    images = [source[index].image for index in range(len(source))]
    rows = []
    for crop_mode in CROP_MODES:
        for interpolation in INTERPOLATIONS:
            for size in ((224, 224), (192, 256)):
                counts = []
                for crop_pct in (0.8, 0.875, 0.9, 0.95, 1.0):
                    preprocessing = Preprocessing(size[0], crop_pct, interpolation)
                    ours = EvalTransform(preprocessing, None if size[0] == size[1] else size, crop_mode)
                    theirs = create_transform(
                        (3, *size), interpolation=interpolation, crop_pct=crop_pct, crop_mode=crop_mode, normalize=False
                    )
                    counts.append(
                        sum((ours(image) != theirs(image).permute(1, 2, 0).numpy()).any() for image in images)
                    )
                rows.append((crop_mode, interpolation, f"{size[0]}x{size[1]}", *map(str, counts)))
    print(f"of {len(images)} pictures so many differ from timm's, by crop share:")
    print(table(("crop mode", "interpolation", "size", "0.8", "0.875", "0.9", "0.95", "1.0"), rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures")
    parser.add_argument("--weights")
    parser.add_argument("--pixels", action="store_true", help="compare transforms, not answers")
    parser.add_argument("--model")
    parser.add_argument("--split", default="val")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    if options.pixels:
        compare_pixels(options.pictures, options.split)
        return
    if not options.weights:
        parser.error("give --weights, or --pixels")
    card, arrays = open_weights(options.weights, options.model)
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder) / "timm.safetensors", arrays, card, "timm")
        reference, labels = timm_probabilities(
            options.pictures, options.split, Path(folder) / "timm.safetensors", card, options.workers
        )
    best = np.sort(reference, 1)[:, -2:]
    ties = best[:, 1] - best[:, 0] < TIE
    guesses = reference.argmax(1)
    rows = [("timm", "", f"{100 * (guesses == labels).mean():.2f}", "", "", "")]
    for loader in ("pt", "grain", "tf"):
        for backend in BACKENDS:
            if backend == "objax" and importlib.util.find_spec("objax") is None:
                continue
            settings = Settings(
                data=options.pictures,
                split=options.split,
                loader=loader,
                backend=backend,
                batch_size=50,
                workers=options.workers,
            )
            (outcome,) = validate([Candidate(options.model, options.weights)], settings)
            found = outcome.answers.predictions
            assert np.array_equal(found.label, labels)
            differ = found.classes[:, 0] != guesses
            gap = np.abs(found.probabilities - np.take_along_axis(reference, found.classes, 1)).max()
            rows.append(
                (
                    loader,
                    backend,
                    f"{outcome.row['top1']:.2f}",
                    str(differ.sum()),
                    str((differ & ties).sum()),
                    f"{gap:.1e}",
                )
            )
    print(table(("loader", "backend", "top-1, %", "other class", "of them ties", "largest gap of probability"), rows))


if __name__ == "__main__":
    main()
