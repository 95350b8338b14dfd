"""Pictures by matplotlib: every one is drawn, whatever is in the names that it shows."""

import os
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jeffnet
from jeffnet.arch.imagenet import class_titles, known_classes
from jeffnet.bench import plot
from jeffnet.data.augment.sheet import draw_sheet
from jeffnet.inference.predict import Picture, Prediction, draw_predictions
from jeffnet.system import figures
from jeffnet.system.figures import house_style, new_figure
from jeffnet.text.names import printable
from jeffnet.train.config import ScheduleConfig
from jeffnet.train.reports.curves import Course, draw_curves, draw_schedule, draw_seeds
from jeffnet.train.schedule import make_schedule
from jeffnet.validation.answers import Answers, Mistake
from jeffnet.validation.metrics import Predictions
from jeffnet.validation.report import write_report
from jeffnet.validation.validate import Outcome

COURSE = Course(make_schedule(ScheduleConfig(), 0.1, 10, 2), 10, 2)
ODD = ["$^$ bill_{", "$x$ \\frac{ %_#& a\n\x1b[31m 日本\u202e \ud800" + os.fsdecode(b"caf\xe9")]


def _predictions(path: Path, name: str) -> None:
    picture = Picture(f"folder/{name}", Image.new("RGB", (9, 7)))
    draw_predictions(
        [picture], [Prediction(picture.name, (name, "cat"), (0.75, 0.25), (0, 1), (name, None), name, False)], path
    )


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
    draw_curves([{"step": 1, "epoch": 1, "val_top1": 5.0, "train_loss": 1.0}], path, name, COURSE, "training")


def _seeds(path: Path, name: str) -> None:
    draw_seeds({name: [{"step": 1, "epoch": 1, "val_top1": 5.0}], "b": [{"step": 1, "epoch": 1}]}, path, name)


def _schedule(path: Path, name: str) -> None:
    draw_schedule(COURSE, path, name)


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
    from matplotlib.text import Text

    with matplotlib.rc_context({"text.usetex": True}):
        with house_style():
            figure = new_figure(4, 3)
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


def test_characters_come_from_the_first_font_that_has_them(tmp_path: Path):
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen
    from matplotlib.font_manager import fontManager

    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 1000), (1000, 1000), (1000, 0)):
        pen.lineTo(corner)
    pen.closePath()
    builder = FontBuilder(1000)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap({ord("日"): "square"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "square": (1000, 0)})
    builder.setupHorizontalHeader(ascent=1000, descent=0)
    builder.setupNameTable({"familyName": "Unifont", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "square.ttf")
    before = list(fontManager.ttflist)
    drawn = [_ink("日"), _ink("a")]
    fontManager.addfont(tmp_path / "square.ttf")
    try:
        assert _ink("日") > 2 * drawn[0] and _ink("a") == drawn[1]
    finally:
        fontManager.ttflist = before


@house_style()
def _ink(text: str) -> float:
    """How much of a small figure a text blackens."""
    figure = new_figure(0.5, 0.5)
    figure.text(0.1, 0.1, text, fontsize=24)
    figure.canvas.draw()
    return float((255 - np.asarray(figure.canvas.buffer_rgba())[..., :3]).mean())


def test_a_sheet_names_folders_only_where_there_are_several(monkeypatch, tmp_path: Path):
    titles = []
    monkeypatch.setattr(
        figures, "save_figure", lambda figure, path: titles.append([a.get_title() for a in figure.axes])
    )
    for names in (("birds/a.png", "birds/b.png"), ("birds/a.png", "cats/a.png")):
        pictures = [Picture(name, Image.new("RGB", (9, 7))) for name in names]
        draw_predictions(pictures, [_prediction(name, ("bird",), (1.0,)) for name in names], tmp_path / "sheet.png")
    assert [sheet[::2] for sheet in titles] == [["a.png", "b.png"], ["birds\na.png", "cats\na.png"]]


def test_all_that_draws_with_matplotlib_draws_in_the_style():
    package = Path(jeffnet.__file__).parent
    drawing = {path: path.read_text() for path in package.rglob("*.py") if "figures.new_figure(" in path.read_text()}
    assert len(drawing) == 7
    for path, text in drawing.items():
        functions = re.findall(r"(@figures.house_style\(\)\n)?def ((?!_)\w*(?:draw|report)\w*)\(", text)
        assert functions and all(decorator for decorator, _ in functions), path
    others = [path for path in package.rglob("*.py") if "matplotlib.figure" in path.read_text()]
    assert [path.name for path in others] == ["figures.py"]


LONGEST = sorted(class_titles(known_classes(1000)), key=len)[-60:]


def _outcome(count: int, right: float, mistakes: int = 0) -> Outcome:
    """Of a model of the longest class names, with pictures like photographs."""
    rng = np.random.default_rng(0)
    label = np.arange(20 * count, dtype=np.int32) % count
    guess = np.where(rng.random(len(label)) < right, label, rng.integers(0, count, len(label)))
    confidence = rng.uniform(0.2, 1, (len(label), 1)).astype(np.float32)
    predictions = Predictions(
        *(np.arange(len(label)), label, guess[:, None], confidence, np.ones(len(label)), guess == label),
        np.ones(len(label), bool),
    )
    shown = [Mistake(0.5, index, index % count, (index + 1) % count, _photograph(rng)) for index in range(mistakes)]
    row = {"model": "tf_efficientnetv2_b0", "data": "/secret/place/flowers", "split": "val"}
    return Outcome(row, Answers(predictions, shown), tuple(LONGEST[-count:]), lambda i: f"ILSVRC2012_val_{i:08}.JPEG")


def _photograph(rng: np.random.Generator) -> np.ndarray:
    coarse = Image.fromarray(rng.integers(0, 256, (28, 28, 3), np.uint8)).resize((224, 224), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(coarse) + rng.normal(0, 4, (224, 224, 3)), 0, 255).astype(np.uint8)


def _long_rows(ema: bool) -> list[dict[str, float]]:
    metrics = ("train", "train_epoch", "val", "averaged_val", *(["ema_val"] if ema else []))
    scores = {f"{name}_{metric}": 1.0 for name in metrics for metric in ("loss", "top1")}
    return [{"step": step, "epoch": step / 2, "learning_rate": 1e-5, **scores} for step in range(1, 11)]


def _prediction(picture: str, names: tuple[str, ...], shares: tuple[float, ...]) -> Prediction:
    return Prediction(picture, names, shares, tuple(range(len(names))), (None,) * len(names), names[0], True)


def _longest_predictions(path: Path) -> None:
    pictures = [Picture(f"folder/ILSVRC2012_val_{number:08}.JPEG", Image.new("RGB", (90, 70))) for number in range(4)]
    shares = tuple(np.linspace(0.5, 0, 9).tolist())
    draw_predictions(pictures, [_prediction(p.name, tuple(LONGEST[-9:]), shares) for p in pictures], path)


CONDITIONS = "training: augmented pictures, mixed in pairs, smoothed labels, a teacher's answers"
FULL = {
    "matrix": lambda path: write_report(path, _outcome(12, 0.8)),
    "large matrix": lambda path: write_report(path, _outcome(40, 0.8)),
    "pairs": lambda path: write_report(path, _outcome(60, 0.5, mistakes=8)),
    "no confusion": lambda path: write_report(path, _outcome(60, 1.0, mistakes=1)),
    "predictions": _longest_predictions,
    "curves": lambda path: draw_curves(_long_rows(True), path, "model, data", COURSE, CONDITIONS),
    "seeds": lambda path: draw_seeds({f"seed {n}": _long_rows(False) for n in range(8)}, path, "model, data"),
    "schedule": lambda path: draw_schedule(
        Course(make_schedule(ScheduleConfig(), 0.1, 109500, 365), 109500, 365), path
    ),
}


@pytest.fixture(scope="module")
def drawn_texts(tmp_path_factory):
    """By name in FULL: each figure, with the texts in it and where they are. Drawn once, since that takes long."""
    from matplotlib.text import Text

    texts, found = [], []
    draw_text = Text.draw

    def spy(text, renderer, *arguments):
        if text.get_visible() and text.get_text().strip():
            texts.append((text.get_text(), text.get_window_extent(renderer)))
        draw_text(text, renderer, *arguments)

    def save(figure, path):
        texts.clear()
        figure.canvas.draw()
        found.append((figure, list(texts)))

    @cache
    def draw(name):
        found.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Text, "draw", spy)
            patch.setattr(figures, "save_figure", save)
            FULL[name](tmp_path_factory.mktemp("drawn"))
        return list(found)

    return draw


@pytest.mark.parametrize("name", FULL)
def test_every_text_is_in_the_figure_and_on_no_other(drawn_texts, name: str):
    for figure, texts in drawn_texts(name):
        assert texts
        for number, (text, box) in enumerate(texts):
            assert figure.bbox.padded(1).contains(*box.p0) and figure.bbox.padded(1).contains(*box.p1), text
            assert "secret" not in text
            for other, its_box in texts[:number]:
                assert not box.padded(-1.5).overlaps(its_box.padded(-1.5)), (text, other)


def test_many_classes_are_pairs_by_name_and_few_a_matrix(drawn_texts):
    texts = [text for text, _ in drawn_texts("pairs")[0][1]]
    pairs = [text for text in texts if "→" in text and "class" not in text]
    assert len(pairs) == 20 and all(name in LONGEST for text in pairs for name in text.split(" → "))
    texts = [text for text, _ in drawn_texts("matrix")[0][1]]
    assert [texts.count(name) for name in LONGEST[-12:]] == [2] * 12


def test_mistakes_have_full_names_and_are_a_small_file(tmp_path: Path):
    write_report(tmp_path, _outcome(60, 0.5, mistakes=24))
    assert (tmp_path / "mistakes.jpg").stat().st_size < 650_000
    with Image.open(tmp_path / "mistakes.jpg") as drawn:
        assert drawn.format == "JPEG" and drawn.width >= 6 * 224
