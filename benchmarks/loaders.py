"""Pictures per second of the data pipelines, beside timm's and a bare tf.data pipeline, and their memory over time.

    python benchmarks/loaders.py PICTURES --split val --workers 2 --repeats 3
    python benchmarks/loaders.py PICTURES --split val --make-large LARGE   # the pictures, scaled up to 500 px
    python benchmarks/loaders.py PICTURES --split val --memory             # 100,000 pictures through Grain

PICTURES holds JPEGs as `PICTURES/<split>/<class>/*.jpg`. Every measurement is a process of its own; the contenders take
turns, with as many threads or worker processes each. They read a folder of links to the pictures, so many that a
measurement sees no end of it, out of the page cache. Time runs over `--seconds` in the midst of it: start-up (the first
batch, shown apart) and the `--warm-up` seconds after it, in which what was read ahead is handed out, do not count. The
CPU time of a picture, of all processes of a contender, says the same on a machine that is busy with other things.
"""

import argparse
import contextlib
import csv
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.data.preprocess import EvalTransform, TrainTransform
from jeffnet.data.sources import ImageFolder
from jeffnet.system import figures

SPLIT = "val"  # of the folder of links
QUALITY, LONG_SIDE = 95, 500
POLICY, JITTER = "rand-m9-mstd0.5", 0.4

Options = argparse.Namespace


def grain_evaluation(folder: Path, options: Options, workers: int = 0) -> Iterator[Any]:
    from jeffnet.data.loaders import eval_loader

    source = ImageFolder(folder, SPLIT)
    return iter(eval_loader(source, _transform(options), options.batch_size, options.workers, workers))


def grain_evaluation_processes(folder: Path, options: Options) -> Iterator[Any]:
    return grain_evaluation(folder, options, options.workers)


def grain_training(folder: Path, options: Options, workers: int = 0, **settings: Any) -> Iterator[Any]:
    from jeffnet.data.loaders import train_loader

    source = ImageFolder(folder, SPLIT)
    transform = TrainTransform(options.image_size, interpolation="bicubic", **settings)
    return train_loader(source, transform, options.batch_size, 0, options.workers, workers)


def grain_training_processes(folder: Path, options: Options) -> Iterator[Any]:
    return grain_training(folder, options, options.workers)


def grain_augmentation(folder: Path, options: Options) -> Iterator[Any]:
    return grain_training(folder, options, policy=POLICY, color_jitter=JITTER)


def pytorch_evaluation(folder: Path, options: Options) -> Iterator[Any]:
    from jeffnet.data.pytorch import eval_loader

    source = ImageFolder(folder, SPLIT)
    return iter(eval_loader(source, _transform(options), options.batch_size, workers=options.workers))


def tensorflow_evaluation(folder: Path, options: Options) -> Iterator[Any]:
    from jeffnet.data.tensorflow import eval_loader

    transform, workers = _transform(options), options.workers
    return iter(eval_loader(str(folder), SPLIT, transform, options.batch_size, threads=workers, resize="legacy"))


def timm_evaluation(folder: Path, options: Options) -> Iterator[Any]:
    return _timm(folder, options, is_training=False)


def timm_training(folder: Path, options: Options) -> Iterator[Any]:
    """Random resized crop and flip, as ours; timm's further augmentations off."""
    return _timm(folder, options, is_training=True, color_jitter=0.0)


def timm_augmentation(folder: Path, options: Options) -> Iterator[Any]:
    return _timm(folder, options, is_training=True, auto_augment=POLICY, color_jitter=JITTER)


def tf_data_evaluation(folder: Path, options: Options) -> Iterator[Any]:
    """The operations of the papers' authors, and nothing else: no labels, no padding, no errors by name."""
    import tensorflow as tf

    source = ImageFolder(folder, SPLIT)
    size = options.image_size
    share = size / (size + 32)

    @tf.autograph.experimental.do_not_convert
    def load(path: Any) -> Any:
        content = tf.io.read_file(path)
        shape = tf.io.extract_jpeg_shape(content)
        side = tf.cast(share * tf.cast(tf.minimum(shape[0], shape[1]), tf.float32), tf.int32)
        window = tf.stack([(shape[0] - side + 1) // 2, (shape[1] - side + 1) // 2, side, side])
        image = tf.io.decode_and_crop_jpeg(content, window, channels=3)
        return tf.raw_ops.ResizeBicubic(images=image[None], size=[size, size])[0]

    paths = tf.data.Dataset.from_tensor_slices([str(source.path(index)) for index in range(len(source))])
    rows = paths.map(load, num_parallel_calls=options.workers)
    return rows.batch(options.batch_size).prefetch(2).as_numpy_iterator()


# By what they are compared with, which comes first.
CONTENDERS: dict[str, dict[str, Callable[[Path, Options], Iterator[Any]]]] = {
    "evaluation": {
        "timm": timm_evaluation,
        "tf.data": tf_data_evaluation,
        "grain, threads": grain_evaluation,
        "grain, processes": grain_evaluation_processes,
        "pt": pytorch_evaluation,
        "tf": tensorflow_evaluation,
    },
    "training": {
        "timm": timm_training,
        "grain, threads": grain_training,
        "grain, processes": grain_training_processes,
    },
    # The same, RandAugment and colour jitter.
    "augmentation": {"timm": timm_augmentation, "grain, threads": grain_augmentation},
}


def _transform(options: Options) -> EvalTransform:
    return EvalTransform(Preprocessing(options.image_size))


def _timm(folder: Path, options: Options, **settings: Any) -> Iterator[Any]:
    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # its compiled operators, which no transform needs, do not load beside every torch
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.modules["torchvision._meta_registrations"] = ModuleType("torchvision._meta_registrations")
    from timm.data.dataset_factory import create_dataset
    from timm.data.loader import create_loader
    from timm.data.transforms_factory import transforms_imagenet_train

    dataset: Any = create_dataset("", str(folder / SPLIT))
    size = (3, options.image_size, options.image_size)
    loader = create_loader(
        dataset,
        size,
        options.batch_size,
        interpolation="bicubic",
        crop_pct=Preprocessing().crop_pct,
        num_workers=options.workers,
        use_prefetcher=False,
        **settings,
    )
    if "auto_augment" in settings:  # beside which `create_loader` leaves the colour jitter out
        del settings["is_training"]
        dataset.transform = transforms_imagenet_train(
            size[1:], **settings, interpolation="bicubic", force_color_jitter=True
        )
    return iter(loader)


def measure(mode: str, contender: str, folder: Path, options: Options) -> dict[str, float]:
    """Pictures a second, CPU seconds of each, and seconds to the first batch, in this process."""
    began = time.perf_counter()
    batches = CONTENDERS[mode][contender](folder, options)
    next(batches)
    first = time.perf_counter()
    start = count = cpu = 0
    for number, _ in enumerate(batches, 2):
        now = time.perf_counter()
        if not start and now - first >= options.warm_up:
            start, count, cpu = now, number, cpu_seconds()
        elif start and now - start >= options.seconds:
            images = (number - count) * options.batch_size
            used = (cpu_seconds() - cpu) / images
            return {"rate": images / (now - start), "cpu": used, "start_up": first - began}
    raise SystemExit(f"{contender} came to the end before {options.seconds} s were over: raise --images")


def cpu_seconds() -> float:
    """Of all processes of this one's group, workers that are still at it included (Linux)."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # a process that has ended meanwhile
            fields = path.read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12]) if int(fields[2]) == os.getpgrp() else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def link(pictures: Path, split: str, folder: Path, images: int) -> None:
    """Fills a folder with links to the pictures of a split, as often as it takes for so many."""
    source = ImageFolder(pictures.resolve(), split)
    for label in source.classes:
        (folder / SPLIT / label).mkdir(parents=True)
    for number in range(images):
        path = source.path(number % len(source))
        label = source.classes[source.labels[number % len(source)]]
        # The number first, so that all pictures of a class are read before any of them is read again.
        (folder / SPLIT / label / f"{number:07}{path.suffix}").symlink_to(path)


def compare(options: Options) -> list[dict[str, Any]]:
    """Medians over the repeats, in which the contenders take turns."""
    runs: dict[tuple[str, str], list[dict[str, float]]] = {
        (mode, name): [] for mode in options.modes for name in CONTENDERS[mode] if name not in options.skip
    }
    with tempfile.TemporaryDirectory() as folder:
        link(options.pictures, options.split, Path(folder), options.images)
        for _ in range(options.repeats):
            for mode, name in runs:
                runs[mode, name].append(_in_own_process(mode, name, folder))
                print(mode, name, runs[mode, name][-1], file=sys.stderr)
    rows = []
    for (mode, name), found in runs.items():
        rates = [run["rate"] for run in found]
        row: dict[str, Any] = {"mode": mode, "loader": name, "images_per_second": statistics.median(rates)}
        for reference in ("timm", "tf.data"):
            # Of each turn by itself, since the machine's speed changes from one to the next.
            ratios = [rate / run["rate"] for rate, run in zip(rates, runs.get((mode, reference), []), strict=False)]
            row[f"ratio_to_{reference}"] = statistics.median(ratios) if ratios else None
        row |= {"lowest": min(rates), "highest": max(rates)}
        rows.append(row | {key: statistics.median(run[key] for run in found) for key in ("cpu", "start_up")})
    return rows


def _in_own_process(mode: str, name: str, folder: str) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--one", mode, name, folder]
    # TensorFlow reports on itself; faults still show, since a failing command prints what it wrote.
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, start_new_session=True)
    if done.returncode:
        raise SystemExit(f"{mode}, {name}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| | loader | images/s | lowest to highest | ratio to timm | ratio to tf.data | CPU ms an image | start, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratios = (row[f"ratio_to_{reference}"] for reference in ("timm", "tf.data"))
        to_timm, to_tf = ("" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
        lines.append(
            f"| {row['mode']} | {row['loader']} | {row['images_per_second']:.0f} | {row['lowest']:.0f} to "
            f"{row['highest']:.0f} | {to_timm} | {to_tf} | {1000 * row['cpu']:.2f} | {row['start_up']:.1f} |"
        )
    return "\n".join(lines)


def make_large(pictures: Path, split: str, folder: Path) -> None:
    """The pictures of a split with a long side of 500 pixels, as JPEGs of quality 95."""
    source = ImageFolder(pictures, split)
    for index in range(len(source)):
        image = source[index].image
        scale = LONG_SIDE / max(image.size)
        path = folder / split / source.classes[source.labels[index]] / f"{index:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.resize((round(scale * image.width), round(scale * image.height))).save(path, quality=QUALITY)


def resident_bytes() -> int:
    """What this process, alone, has in memory now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory(options: Options) -> list[tuple[int, float]]:
    """Resident MiB after so many pictures, read by Grain's threads, the data set over and over."""
    from jeffnet.data.loaders import eval_loader

    source = ImageFolder(options.pictures, options.split)
    loader = eval_loader(source, _transform(options), options.batch_size, options.workers)
    seen, rows = 0, []
    for batch in itertools.chain.from_iterable(itertools.repeat(loader)):
        seen += int(batch["mask"].sum())
        if seen >= len(rows) * options.memory_images / 200:
            rows.append((seen, resident_bytes() / 2**20))
        if seen >= options.memory_images:
            return rows
    raise AssertionError("the data set is repeated for ever")


@figures.house_style()
def draw(rows: list[tuple[int, float]], path: Path) -> None:
    figure = figures.new_figure(7, 3.5)
    axes = figure.subplots()
    axes.plot(*zip(*rows, strict=True))
    axes.set(xlabel="pictures read", ylabel="resident memory, MiB", xlim=(0, None))
    axes.set_ylim(0, 1.1 * max(memory for _, memory in rows))
    figures.whole_ticks(axes.xaxis)
    figures.save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="folder with <split>/<class>/*.jpg")
    parser.add_argument("--split", default="val")
    parser.add_argument("--workers", type=int, default=2, help="threads or worker processes of each loader")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10, help="of a measurement")
    parser.add_argument("--warm-up", type=float, default=2, help="seconds before it")
    parser.add_argument("--images", type=int, default=60_000, help="links to make: more than a measurement reads")
    parser.add_argument("--modes", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--skip", nargs="+", default=[], help="loaders to leave out, by their names in the table")
    parser.add_argument("--json", action="store_true", help="rows as JSON instead of the table")
    parser.add_argument("--make-large", type=Path, metavar="FOLDER", help="write the pictures there, scaled to 500 px")
    parser.add_argument("--memory", action="store_true", help="CSV of memory over pictures, and a drawing")
    parser.add_argument("--memory-images", type=int, default=100_000)
    parser.add_argument("--plot", type=Path, default=Path("memory.png"), help="of --memory")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        mode, contender, folder = options.one
        print(json.dumps(measure(mode, contender, Path(folder), options)))
    elif options.make_large:
        make_large(options.pictures, options.split, options.make_large)
    elif options.memory:
        rows = memory(options)
        csv.writer(sys.stdout).writerows([("images", "resident_mib"), *rows])
        draw(rows, options.plot)
    else:
        rows = compare(options)
        print(json.dumps(rows, indent=2) if options.json else table(rows))


if __name__ == "__main__":
    main()
