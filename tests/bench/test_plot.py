"""The picture of accuracy against throughput."""

import dataclasses

import pytest
from PIL import Image

from jeffnet.arch.zoo import find_model, list_models
from jeffnet.bench import plot
from jeffnet.bench.plot import Point, draw, pareto, points_of, title_of
from jeffnet.errors import OutputError

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


@pytest.mark.parametrize("number", [1, 3, 65])
def test_labels_are_readable(tmp_path, monkeypatch, number):
    """None lies on another or on a point, and nearly all find a place."""
    speeds = [5.0 * 1.07**index for index in range(number)]
    scores = {name: find_model(name).weights.top1 for name in list_models(pretrained=True)}
    names = sorted(scores, key=lambda name: -scores[name])[:number]
    points = [Point(name, speed, scores[name]) for name, speed in zip(names, speeds, strict=True)]
    placed = []
    original = plot._label

    def label(axes, *arguments):
        original(axes, *arguments)
        renderer = arguments[0]
        placed.extend(text.get_window_extent(renderer) for text in axes.texts)

    monkeypatch.setattr(plot, "_label", label)
    draw(points, tmp_path / "plot.png", "title", "$machine$")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.format == "PNG" and picture.size[0] >= 1000
    assert len(placed) >= 0.95 * number
    for index, one in enumerate(placed):
        for other in placed[:index]:
            assert not (one.x0 < other.x1 and other.x0 < one.x1 and one.y0 < other.y1 and other.y0 < one.y1)


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(OutputError):
        draw([Point("tf_efficientnet_b0", 1, 77)], tmp_path / "missing" / "plot.png", "title", "machine")
    assert not list(tmp_path.iterdir())
