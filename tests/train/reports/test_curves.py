"""Pictures of a run: curves show every point, whatever the rows have or lack; schedules are drawn too."""

import numpy as np
import pytest
from PIL import Image

from jeffnet.errors import OutputError
from jeffnet.system import figures
from jeffnet.train.config import AugmentConfig, Config, DataConfig, LossConfig, ModelConfig, ScheduleConfig
from jeffnet.train.reports import curves
from jeffnet.train.reports.curves import Course, draw_schedule, draw_seeds, training_conditions
from jeffnet.train.schedule import make_schedule

COURSE = Course(lambda step: 0.1 / (np.asarray(step) + 1), 12, 4)  # of `make_rows`


def draw_curves(rows, path, title, course=COURSE):
    curves.draw_curves(rows, path, title, course, "conditions")


def make_rows(epochs=3, per_epoch=4, seed=0, ema=True):
    rng, rows = np.random.default_rng(seed), []
    for step in range(1, epochs * per_epoch + 1):
        loss, top1, speed = rng.uniform(1, 2), rng.uniform(10, 20), rng.uniform(90, 100)
        rows.append({"step": step, "epoch": step / per_epoch, "train_loss": loss, "train_top1": top1})
        rows[-1] |= {"learning_rate": 0.1 / step, "images_per_second": speed}
        if step % per_epoch == 0:
            names = ("val", "ema_val") if ema else ("val",)
            names = ("train_epoch", *names)
            scores = {f"{name}_{metric}": rng.uniform(1, 2) for name in names for metric in ("loss", "top1")}
            rows.append({"step": step, "epoch": step // per_epoch, **scores})
    return rows


@pytest.fixture
def panels(monkeypatch, tmp_path):
    """Draws, and returns the panels without making a picture of them, which takes most of the time."""

    def draw(function, rows, **options):
        drawn = []
        with monkeypatch.context() as patch:
            patch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure))
            function(rows, tmp_path / "unused.png", "title", **options)
        return drawn[0].axes

    return draw


def points(line):
    return list(zip(*(values.tolist() for values in line.get_data()), strict=True))


AWKWARD = {
    "none": [],
    "one": make_rows()[:1],
    "empty": [{"step": 1, "epoch": 0.5, "train_loss": None, "learning_rate": float("nan")}],
    "rate of zero": [{"step": step, "epoch": step / 2, "learning_rate": 0.0, "train_loss": 2.0} for step in (1, 2)],
    "spike": [*make_rows(), {"step": 13, "epoch": 3.25, "train_loss": 1e30}],
    "long": make_rows(100, 20),
}


@pytest.mark.parametrize("name", AWKWARD)
def test_any_rows_become_a_picture(name, tmp_path):
    """Warnings would be errors: of empty limits, means of nothing, letters that the font lacks."""
    draw_curves(AWKWARD[name], tmp_path / "curves.png", "model, /data/$1_{$ 花")
    with Image.open(tmp_path / "curves.png") as drawn:
        assert drawn.format == "PNG" and drawn.size[0] > 1000
        assert len(drawn.convert("RGB").getcolors(2**24)) > 10
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def test_each_metric_is_in_its_panel_by_epochs(panels):
    rows = make_rows()
    loss, top1, rate, speed = panels(draw_curves, rows)
    shown = {
        "train": "training",
        "train_epoch": "training, mean of the epoch",
        "val": "validation",
        "ema_val": "validation, moving average",
    }
    expected = {
        loss: {f"{name}_loss": label for name, label in shown.items()},
        top1: {f"{name}_top1": label for name, label in shown.items()},
        speed: {"images_per_second": None},
    }
    for axes, labels in expected.items():
        assert len(axes.get_lines()) == len(labels)
        for line, (metric, label) in zip(axes.get_lines(), labels.items(), strict=True):
            assert points(line) == [(row["epoch"], row[metric]) for row in rows if metric in row]
            assert label is None or line.get_label() == label
        assert axes.get_xlabel() == "epoch"
    best, average = (max(row[name] for row in rows if name in row) for name in ("val_top1", "ema_val_top1"))
    assert top1.get_title() == f"top-1: best {best:.2f} %, moving average {average:.2f} %"
    (legend,) = rate.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(shown.values())
    assert legend.get_title().get_text() == "conditions"


def test_the_rate_is_the_schedules_from_the_first_step_to_the_last(panels):
    """Logged are only every third step of the first two epochs."""
    rows = [row for row in make_rows(2) if row["step"] % 3 == 0]
    planned, taken = panels(draw_curves, rows)[2].get_lines()
    rates = [(step / 4, 0.1 / (step + 1)) for step in range(12)]
    assert points(planned) == rates and points(taken) == rates[:6]


def test_logged_rates_of_an_earlier_schedule_are_drawn_as_they_were(panels):
    rows = [row | {"learning_rate": 0.5} if "learning_rate" in row else row for row in make_rows()]
    _, taken = panels(draw_curves, rows)[2].get_lines()
    assert points(taken) == [(step / 4, 0.5) for step in range(12)]


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 90, 350])
def test_ticks_of_epochs_are_whole_numbers(panels, epochs):
    rows = make_rows(epochs, 2)
    course = Course(lambda step: 0.1 / (np.asarray(step) + 1), 2 * epochs, 2)
    for axes in panels(draw_curves, rows, course=course):
        ticks = axes.get_xticks()
        assert len(ticks) > 1 and all(tick == round(tick) for tick in ticks)


def test_the_legend_tells_how_training_differs_from_validation():
    parts = {"model": ModelConfig(name="mnasnet_small"), "data": DataConfig(path="pictures")}
    assert training_conditions(Config(**parts)) == "training: augmented pictures"
    config = Config(**parts, augment=AugmentConfig(mixup=0.2), loss=LossConfig(name="bce", label_smoothing=0.1))
    text = "training: augmented pictures, mixed in pairs, smoothed labels, binary cross entropy"
    assert training_conditions(config) == text


def test_without_epochs_the_axis_has_steps(panels):
    rows = [{name: value for name, value in row.items() if name != "epoch"} for row in make_rows()]
    axes = panels(draw_curves, rows)[0]
    assert axes.get_xlabel() == "step"
    assert [x for x, _ in points(axes.get_lines()[0])] == list(range(1, 13))


def test_what_is_no_number_is_a_gap(panels):
    rows = make_rows()
    rows[1] |= {"train_loss": None}
    rows[2] |= {"train_loss": float("inf")}
    y = panels(draw_curves, rows)[0].get_lines()[0].get_ydata()
    assert np.flatnonzero(~np.isfinite(y)).tolist() == [1, 2]


def test_single_points_are_marked(panels):
    rows = make_rows(epochs=1)
    trained, epoch, validated, average = panels(draw_curves, rows)[0].get_lines()
    assert (trained.get_marker(), epoch.get_marker()) == ("None", "o")
    assert (validated.get_marker(), average.get_marker()) == ("s", "^")
    (trained,) = panels(draw_curves, rows[:1])[0].get_lines()
    assert trained.get_marker() == "o"


def test_the_average_of_the_best_is_a_point_of_its_own(panels):
    rows = [*make_rows(), {"step": 12, "epoch": 3, "averaged_epochs": 2, "averaged_val_loss": 1.0}]
    line = panels(draw_curves, rows)[0].get_lines()[-1]
    assert (line.get_label(), points(line)) == ("validation, average of the best", [(3, 1.0)])


def test_one_spike_does_not_flatten_the_rest(panels):
    rows = make_rows(30, 20)
    before = panels(draw_curves, rows)[0].get_ylim()
    rows[100] |= {"train_loss": 500.0}
    assert panels(draw_curves, rows)[0].get_ylim()[1] < 2 * before[1]


@pytest.mark.parametrize("count", [400, 401, 799, 1000, 20003])
def test_long_curves_become_shorter_and_keep_their_mean(count):
    rng = np.random.default_rng(count)
    x, y = np.arange(count, dtype=np.float64), rng.normal(size=count)
    thin_x, thin_y = curves._thinned(x, y)
    assert len(thin_x) == len(thin_y) <= 400
    length = -(-count // 400)
    assert (thin_x[0], thin_y[0]) == pytest.approx((x[:length].mean(), y[:length].mean()))
    last = count - length * (len(thin_x) - 1)
    assert (thin_x[-1], thin_y[-1]) == pytest.approx((x[-last:].mean(), y[-last:].mean()))
    assert length / 2 <= last <= 1.5 * length


def test_a_stretch_is_the_mean_of_its_numbers():
    y = np.ones(1000)
    y[0:3], y[3:5] = np.nan, np.nan
    thinned = curves._thinned(np.arange(1000.0), y)[1]
    assert np.isnan(thinned[0]) and (thinned[1:] == 1).all()


def test_of_several_seeds_each_is_there_and_their_mean(panels):
    runs = {f"seed {seed}": make_rows(seed=seed) for seed in range(3)}
    for axes, metric in zip(
        panels(draw_seeds, runs), ("train_loss", "val_loss", "val_top1", "ema_val_top1"), strict=True
    ):
        *lines, mean = axes.get_lines()
        assert [line.get_label() for line in lines] == list(runs)
        for line, rows in zip(lines, runs.values(), strict=True):
            assert points(line) == [(row["epoch"], row[metric]) for row in rows if metric in row]
        assert mean.get_label() == "mean"
        np.testing.assert_allclose(mean.get_ydata(), np.mean([line.get_ydata() for line in lines], axis=0))
        if metric.endswith("top1"):
            best = [max(line.get_ydata()) for line in lines]
            assert axes.get_title().endswith(f": best {np.mean(best):.2f} ± {np.std(best, ddof=1):.2f} %")


def test_the_mean_ends_where_the_first_run_does(panels):
    runs = {"a": make_rows(3, seed=1), "b": make_rows(2, seed=2)}
    mean = panels(draw_seeds, runs)[1].get_lines()[-1]
    assert mean.get_xdata().tolist() == [1, 2]


def test_many_seeds_one_seed_and_none_become_a_picture(tmp_path):
    for count in (12, 1, 0):
        runs = {f"seed {seed}": make_rows(seed=seed, ema=False) for seed in range(count)}
        draw_seeds(runs, tmp_path / f"{count}.png", "title")
        assert (tmp_path / f"{count}.png").stat().st_size > 10_000


def test_a_picture_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(OutputError, match=r"cannot write .*curves\.png"):
        draw_curves(make_rows(), tmp_path / "missing" / "curves.png", "title")


def test_a_schedule_is_drawn_or_nothing_is_written(tmp_path):
    schedule = make_schedule(ScheduleConfig(name="cosine", cycle=2.0, warmup=1.0), 0.1, 200, 20)
    draw_schedule(Course(schedule, 200, 20), tmp_path / "schedule.png")
    with Image.open(tmp_path / "schedule.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    assert pixels.shape == (440, 880)
    assert pixels.std() > 10
    with pytest.raises(OutputError, match="missing"):
        draw_schedule(Course(schedule, 200, 20), tmp_path / "missing" / "schedule.png")
    assert [path.name for path in tmp_path.iterdir()] == ["schedule.png"]
