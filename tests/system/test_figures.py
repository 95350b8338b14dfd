"""Pictures by matplotlib: every one is drawn, whatever is in the names that it shows."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jeffnet
from jeffnet.bench import plot
from jeffnet.data.augment.sheet import draw_sheet
from jeffnet.inference.predict import Picture, Prediction, draw_predictions
from jeffnet.system.figures import plain_text
from jeffnet.text.names import printable
from jeffnet.train.config import ScheduleConfig
from jeffnet.train.reports.curves import draw_curves, draw_schedule, draw_seeds
from jeffnet.train.schedule import make_schedule
from jeffnet.validation.answers import Answers, Mistake
from jeffnet.validation.metrics import Predictions
from jeffnet.validation.report import write_report
from jeffnet.validation.validate import Outcome

ODD = ["$^$ bill_{", "$x$ \\frac{ %_#& a\n\x1b[31m 日本\u202e \ud800" + os.fsdecode(b"caf\xe9")]


def _predictions(path: Path, name: str) -> None:
    picture = Picture(f"folder/{name}", Image.new("RGB", (9, 7)))
    draw_predictions([picture], [Prediction(picture.name, (name, "cat"), (0.75, 0.25))], path)


def _report(path: Path, name: str) -> None:
    label, guess = np.array([0, 1, 1, 0]), np.array([0, 1, 0, 1])
    probabilities = np.array([[0.9, 0.1]] * 4, np.float32)
    predictions = Predictions(
        np.arange(4),
        label,
        np.stack([guess, 1 - guess], 1),
        probabilities,
        np.ones(4),
        guess == label,
        np.ones(4, bool),
    )
    mistakes = [Mistake(0.9, 2, 1, 0, np.zeros((5, 5, 3), np.uint8))]
    row = {"model": "m", "data": name, "split": name}
    write_report(path.parent, Outcome(row, Answers(predictions, mistakes), (name, "cat"), lambda index: name))
    (path.parent / "confusion.png").rename(path)
    (path.parent / "per_class.csv").read_text(encoding="utf-8")


def _curves(path: Path, name: str) -> None:
    draw_curves([{"step": 1, "epoch": 1, "val_top1": 5.0, "train_loss": 1.0}], path, name)


def _seeds(path: Path, name: str) -> None:
    draw_seeds({name: [{"step": 1, "epoch": 1, "val_top1": 5.0}], "b": [{"step": 1, "epoch": 1}]}, path, name)


def _schedule(path: Path, name: str) -> None:
    draw_schedule(make_schedule(ScheduleConfig(), 0.1, 10, 2), 10, 2, path, name)


def _bench(path: Path, name: str) -> None:
    plot.draw([plot.Point("tf_efficientnet_b0", 10.0, 77.0)], path, name, name)


def _sheet(path: Path, name: str) -> None:
    draw_sheet([(printable(name), [(printable(name), np.zeros((5, 5, 3), np.uint8))])], path)


DRAWN = (_predictions, _report, _curves, _seeds, _schedule, _bench, _sheet)


@pytest.mark.parametrize("draw", DRAWN)
def test_every_name_is_drawn_without_a_warning_whatever_is_in_it(draw, tmp_path: Path):
    for number, name in enumerate(ODD):
        draw(tmp_path / f"{number}.png", name)
        with Image.open(tmp_path / f"{number}.png") as drawn:
            drawn.load()


def test_texts_are_those_given_and_a_users_settings_come_back():
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    with matplotlib.rc_context({"text.usetex": True}):
        with plain_text():
            figure = Figure()
            axes = figure.subplots()
            axes.plot([1, 2], label="$legend$")
            axes.set(title="$title$", xlabel="$x$")
            axes.set_xticks([1, 2], ["$a$", "$b"])
            axes.legend()
            figure.canvas.draw()
            texts = [text for text in figure.findobj(Text) if "$" in text.get_text()]  # pyright: ignore
            assert len(texts) >= 5
            assert not any(text.get_parse_math() or text.get_usetex() for text in texts)  # pyright: ignore
        assert matplotlib.rcParams["text.usetex"] and matplotlib.rcParams["text.parse_math"]


def test_all_that_draws_with_matplotlib_draws_plain_text():
    package = Path(jeffnet.__file__).parent
    drawing = {path: path.read_text() for path in package.rglob("*.py") if "matplotlib.figure" in path.read_text()}
    assert len(drawing) == 4
    for path, text in drawing.items():
        functions = re.findall(r"(@plain_text\(\)\n)?def ((?!_)\w*(?:draw|report)\w*)\(", text)
        assert functions and all(decorator for decorator, _ in functions), path
