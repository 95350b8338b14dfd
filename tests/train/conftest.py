"""A run on a few small pictures, which tests of whole runs share."""

import json
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

COLOURS = {"blue": (20, 40, 220), "green": (30, 200, 40), "red": (210, 30, 20)}


@pytest.fixture(scope="session")
def painted(tmp_path_factory):
    """Paints pictures of three classes that differ in colour, and returns their folder."""

    def paint(training, validation, deviation):
        root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
        for split, count in (("train", training), ("val", validation)):
            for name, colour in COLOURS.items():
                folder = root / split / name
                folder.mkdir(parents=True)
                for index in range(count):
                    pixels = np.clip(rng.normal(colour, deviation, (40, 40, 3)), 0, 255).astype(np.uint8)
                    Image.fromarray(pixels).save(folder / f"{index}.png")
        return root

    return paint


@pytest.fixture(scope="session")
def pictures(painted):
    """8 training and 3 validation pictures a class."""
    return painted(8, 3, deviation=25)


@pytest.fixture(scope="module")
def config(pictures, small_model):
    """Three epochs of four steps, with a moving average, and checkpoints every three steps."""
    from jeffnet.train.config import (
        AugmentConfig,
        CheckpointConfig,
        Config,
        DataConfig,
        EmaConfig,
        LogConfig,
        ModelConfig,
        OptimizerConfig,
        ScheduleConfig,
    )

    return Config(
        model=ModelConfig(name=small_model, bn_momentum=0.5),
        data=DataConfig(path=str(pictures), image_size=32, crop_pct=1.0),
        augment=AugmentConfig(scale=(0.5, 1.0), erase_prob=0.3),
        optimizer=OptimizerConfig(name="adamw", learning_rate=2e-3),
        schedule=ScheduleConfig(warmup=0.5),
        ema=EmaConfig(decay=0.9),
        checkpoint=CheckpointConfig(every_steps=3),
        log=LogConfig(steps=2),
        epochs=3,
        batch_size=6,
    )


@pytest.fixture(scope="session")
def made():
    """Runs of `config` by name, which several files share; the model's name is in the zoo for one file at a time."""
    return {}


@pytest.fixture(scope="module")
def finished(config, made, tmp_path_factory):
    """The folder and the result of a run that nothing disturbed."""
    from jeffnet.train.loop import train

    if "finished" not in made:
        folder = tmp_path_factory.mktemp("runs") / "finished"
        made["finished"] = folder, train(config, folder, progress=False)
    return made["finished"]


@pytest.fixture(scope="session")
def rows():
    """Reads the metrics of a run, without its speed."""

    def read(folder):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in row.items() if key != "images_per_second"} for row in lines]

    return read


@pytest.fixture(scope="session")
def assert_same_run(rows):
    """Compares metrics, models and the last checkpoints of two runs, to the bit."""
    from jeffnet.train.run import Run, read_config
    from jeffnet.train.setup import make_setup

    def last_checkpoint(folder):
        import jax

        run = Run(folder, read_config(folder))
        try:
            state, values = run.checkpoints.restore(make_setup(run.config).template())
            return [np.asarray(leaf) for leaf in jax.tree.leaves(state)], values
        finally:
            run.checkpoints.close()

    def check(folder, expected):
        assert rows(folder) == rows(expected)
        (ours, our_values), (theirs, their_values) = last_checkpoint(folder), last_checkpoint(expected)
        assert our_values == their_values
        for array, wanted in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(array, wanted)
        for name in ("model.safetensors", "model_ema.safetensors"):
            assert (folder / name).read_bytes() == (expected / name).read_bytes()

    return check


@pytest.fixture(scope="session")
def crash_after():
    """A context in which a run ends, without saving, as soon as it logged this step."""
    from jeffnet.train.reports.journal import Journal

    write = Journal.write

    @contextmanager
    def crashing(step):
        def crash(journal, row):
            write(journal, row)
            if row["step"] == step:
                raise MemoryError

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Journal, "write", crash)
            with pytest.raises(MemoryError):
                yield

    return crashing


@pytest.fixture(scope="module")
def crashed_run(config, made, crash_after, tmp_path_factory):
    from jeffnet.train.loop import train

    if "crashed" not in made:
        folder = tmp_path_factory.mktemp("runs") / "crashed"
        with crash_after(6):
            train(config, folder, progress=False)
        made["crashed"] = folder
    return made["crashed"]


@pytest.fixture
def crashed(crashed_run, tmp_path):
    """A copy of a run that crashed in its second epoch; its last checkpoints are those of steps 3 and 4."""
    return shutil.copytree(crashed_run, tmp_path / "run")


@pytest.fixture
def undrawn(monkeypatch):
    """Draw no curves, which take a quarter of the time of a short run; `finished` and test_curves.py draw them."""
    monkeypatch.setattr("jeffnet.train.epochs.draw_curves", lambda *_: None)
