"""The picture of accuracy against throughput."""

import dataclasses

import pytest

from jeffnet.arch.zoo import find_model, list_models
from jeffnet.bench.plot import Point, draw, pareto, points_of, title_of
from jeffnet.errors import OutputError
from jeffnet.system import figures

pytestmark = pytest.mark.runs


def test_a_point_is_the_best_of_jeffnets_own(result):
    """timm's 40 images a second are not; nor is training, nor a model without a score."""
    case = result.case
    faster = dataclasses.replace(result, case=dataclasses.replace(case, batch_size=8))
    training = dataclasses.replace(result, case=dataclasses.replace(case, batch_size=80, task="training"))
    unscored = dataclasses.replace(result, case=dataclasses.replace(case, model="efficientnet_b8"))
    results = [result, faster, training, unscored]
    (point,) = points_of(results)
    assert point == Point("tf_efficientnet_b0", pytest.approx(40), find_model("tf_efficientnet_b0").weights.top1)
    assert title_of(results) == "inference; linen; batch 4 or batch 8; float32; 224 px"
    assert points_of([training])[0].images_per_second == pytest.approx(400)


def test_the_front_has_what_nothing_beats_in_both():
    points = [Point("a", 10, 70), Point("b", 20, 60), Point("c", 5, 65), Point("d", 1, 80), Point("e", 20, 50)]
    assert [point.model for point in pareto(points)] == ["b", "a", "d"]


@pytest.mark.parametrize("number", [1, 3, 40])
def test_labels_are_readable(tmp_path, monkeypatch, number):
    """None lies on another, on a point or on the front, all are inside the axes, and nearly all find a place."""
    speeds = [5.0 * 1.1**index for index in range(number)]
    scores = {name: find_model(name).weights.top1 for name in list_models(pretrained=True)}
    names = sorted(scores, key=lambda name: -scores[name])[:number]
    points = [Point(name, speed, scores[name]) for name, speed in zip(names, speeds, strict=True)]
    drawn = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure))
    draw(points, tmp_path / "plot.png", "title", "$machine$")
    (axes,) = drawn[0].axes
    placed = [text.get_window_extent(drawn[0].canvas.get_renderer()) for text in axes.texts]
    assert len(placed) >= 0.95 * number
    marks = axes.transData.transform([(point.images_per_second, point.top1) for point in points])
    front = axes.get_lines()[0].get_path().transformed(axes.transData)
    for index, one in enumerate(placed):
        assert axes.bbox.padded(1).contains(*one.p0) and axes.bbox.padded(1).contains(*one.p1)
        assert not one.count_overlaps(placed[:index])
        assert not any(one.contains(*mark) for mark in marks)
        assert number == 1 or not front.intersects_bbox(one.padded(-1), filled=False)
    if number == 3:
        assert [text.get_text() for text in axes.texts] == names


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(OutputError):
        draw([Point("tf_efficientnet_b0", 1, 77)], tmp_path / "missing" / "plot.png", "title", "machine")
    assert not list(tmp_path.iterdir())
