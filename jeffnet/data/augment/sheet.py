"""Many small pictures as one large one, to see what augmentation does."""

import os
import statistics
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jeffnet.system import figures
from jeffnet.system.files import check_output, written_atomically

Row = tuple[str, Sequence[tuple[str, np.ndarray]]]

_GAP = 6
# Letters are a part as high as the pictures, between the least that is readable and the size of a text's.
_SMALLEST, _LARGEST, _PART = 11, 18, 7
_PAPER, _INK = (255, 255, 255), (20, 20, 20)
_COLOURS = 256
# Pillow's name of the format, by extension.
FORMS = {ending: form.upper() for ending, form in figures.FORMS.items() if form not in ("svg", "eps")}


def draw_sheet(rows: Sequence[Row], path: str | os.PathLike[str]) -> None:
    """Writes labelled rows of captioned pictures, each pixel by pixel; a PNG gets 256 colours.

    Args:
      rows: label, of one line or several, and the row's captions and pictures, uint8 `(H, W, 3)` or `(H, W, 1)`. Rows
        and pictures may differ in size.
      path: of a PNG, JPEG, WebP, TIFF or PDF, as its ending says; appears there complete or not at all.

    Raises:
      OutputError: it cannot be written, or its ending is another.
    """
    form = FORMS[check_output(path, FORMS)]
    height_of_all = statistics.median(picture.shape[0] for _, pictures in rows for _, picture in pictures)
    font_size = int(min(max(height_of_all / _PART, _SMALLEST), _LARGEST))
    font, line = ImageFont.load_default(font_size), font_size + 4
    labels = [label.split("\n") for label, _ in rows]
    margin = 3 * _GAP + max(round(font.getlength(text)) for lines in labels for text in lines)
    # Labels may be higher than the pictures, and captions wider.
    heights = [
        max(line + max(picture.shape[0] for _, picture in pictures), line * len(lines)) + _GAP
        for (_, pictures), lines in zip(rows, labels, strict=True)
    ]
    widths = [[max(p.shape[1], round(font.getlength(c))) + _GAP for c, p in pictures] for _, pictures in rows]
    sheet = Image.new("RGB", (margin + max(map(sum, widths)), _GAP + sum(heights)), _PAPER)
    draw, top = ImageDraw.Draw(sheet), _GAP
    for (label, pictures), height, row_widths in zip(rows, heights, widths, strict=True):
        draw.text((_GAP, top + (height - line) // 2), label, _INK, font, anchor="lm")
        left = margin
        for (caption, picture), width in zip(pictures, row_widths, strict=True):
            shown = np.broadcast_to(picture, (*picture.shape[:2], 3))
            sheet.paste(Image.fromarray(np.ascontiguousarray(shown)), (left, top))
            draw.text((left, top + picture.shape[0] + 1), caption, _INK, font)
            left += width
        top += height
    with written_atomically(path) as partial:
        # A palette makes the file a third as large.
        drawn = sheet.quantize(_COLOURS) if form == "PNG" else sheet
        drawn.save(partial, format=form, **({"optimize": True} if form == "PNG" else {}))
