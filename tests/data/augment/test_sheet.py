"""The sheet of pictures: every pixel of every picture is on it, beside its labels."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jeffnet.data.augment.sheet import draw_sheet
from jeffnet.errors import OutputError


def places(sheet: np.ndarray, picture: np.ndarray) -> list[tuple[int, int]]:
    """Top left corners at which the picture is on the sheet, pixel by pixel."""
    windows = np.lib.stride_tricks.sliding_window_view(sheet, (*picture.shape[:2], 3))[:, :, 0]
    found = (windows == np.broadcast_to(picture, (*picture.shape[:2], 3))).all(axis=(2, 3, 4))
    return [(int(row), int(column)) for row, column in zip(*np.nonzero(found), strict=True)]


def test_every_picture_is_on_the_sheet_in_its_row(tmp_path: Path):
    """Of few colours, so that the palette holds them all; of different sizes, one of them grey."""
    rng = np.random.default_rng(0)
    shapes = [[(9, 12, 3), (14, 8, 1)], [(10, 10, 3), (10, 10, 3), (5, 40, 3)]]
    pictures = [[rng.integers(0, 2, shape, np.uint8) * 200 for shape in row] for row in shapes]
    rows = [
        (f"row {number}\nof two lines", [(f"wide caption {column}", picture) for column, picture in enumerate(row)])
        for number, row in enumerate(pictures)
    ]
    draw_sheet(rows, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    found = [[places(sheet, picture) for picture in row] for row in pictures]
    assert all(len(place) == 1 for row in found for place in row)
    for row in found:
        assert len({place[0][0] for place in row}) == 1
        columns = [place[0][1] for place in row]
        assert columns == sorted(columns) and columns[0] == found[0][0][0][1]
    assert found[0][0][0][0] + 14 < found[1][0][0][0]
    # Labels are left of the pictures, captions below them.
    top, left = found[0][0][0]
    assert (sheet[:, :left] < 128).any() and (sheet[top + 9 : found[1][0][0][0], left:] < 128).any()
    assert list(tmp_path.iterdir()) == [tmp_path / "sheet.png"]


def test_a_sheet_that_cannot_be_written_is_an_error_naming_it(tmp_path: Path):
    with pytest.raises(OutputError, match=r"^cannot write '.*none/sheet\.png'"):
        draw_sheet([("row", [("picture", np.zeros((4, 4, 3), np.uint8))])], tmp_path / "none" / "sheet.png")
