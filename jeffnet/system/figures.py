"""Matplotlib figures: one style for all, and files in the format of the file's extension."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jeffnet.system.files import check_output, written_atomically

# Matplotlib's name of the format, by extension.
FORMS = {
    ".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".tif": "tiff", ".tiff": "tiff",
    ".pdf": "pdf", ".svg": "svg", ".eps": "eps",
}  # fmt: skip

# Readers with any kind of colour blindness can tell these apart: Okabe and Ito, https://jfly.uni-koeln.de/color/.
BLUE, RED, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
PURPLE, SKY, BLACK, GRAY = "#CC79A7", "#56B4E9", "#1A1A1A", "#808080"
COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY, BLACK, GRAY)

_STYLE: dict[str, Any] = {
    **{"text.parse_math": False, "text.usetex": False},
    **{"figure.dpi": 110, "savefig.dpi": "figure", "figure.constrained_layout.use": True},
    **{"figure.constrained_layout.w_pad": 0.1, "figure.constrained_layout.h_pad": 0.1},
    **{"font.size": 10, "axes.titlesize": 11, "figure.titlesize": 12, "legend.fontsize": 9},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GRAY, "axes.axisbelow": True},
    **{"axes.grid": True, "grid.alpha": 0.3},
}
# Where the first font lacks a character, one of these may have it: fonts of Linux, macOS and Windows for Chinese,
# Japanese and Korean, and for emoji in outlines, since Matplotlib draws no coloured ones.
_FALLBACKS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans SC", "Noto Sans JP", "Noto Sans KR"),
    *("Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback", "IPAexGothic"),
    *("IPAGothic", "TakaoPGothic", "NanumGothic", "UnDotum", "PingFang SC", "Hiragino Sans GB", "Hiragino Sans"),
    *("Apple SD Gothic Neo", "Heiti TC", "Arial Unicode MS", "Microsoft YaHei", "SimHei", "Yu Gothic", "Meiryo"),
    *("MS Gothic", "Malgun Gothic", "Noto Emoji", "Segoe UI Emoji", "Segoe UI Symbol", "Symbola", "Unifont"),
)
# Photographs need little more, and no artefact shows beside a text.
_JPEG_QUALITY = 85


@contextmanager
def house_style() -> Iterator[None]:
    """Context or decorator in which figures have the package's style, whatever a user's Matplotlib settings are.

    Texts are literal: a dollar sign in a name does not start a formula, and characters that no font has are drawn as
    boxes without a warning. Pass names through `jeffnet.text.names.printable` first.
    """
    import matplotlib
    from cycler import cycler

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        matplotlib.rcdefaults()
        style: Any = (
            _STYLE
            | {"font.family": ["sans-serif", *_installed(_FALLBACKS)]}
            | {"axes.prop_cycle": cycler(color=COLOURS)}
        )
        matplotlib.rcParams.update(style)
        yield


def _installed(families: tuple[str, ...]) -> list[str]:
    """Those that Matplotlib finds: it would warn of each of the others at every text."""
    from matplotlib.font_manager import fontManager

    found = set(fontManager.get_font_names())
    return [family for family in families if family in found]


def new_figure(width: float, height: float) -> Any:
    """A figure of this size in inches, outside of pyplot; only in the `house_style`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def whole_ticks(axis: Any) -> None:
    """Only whole numbers as ticks of an axis, such as epochs and numbers of pictures, with commas at thousands."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=9, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def plain_log_ticks(axis: Any) -> None:
    """Numbers at the large ticks of a logarithmic axis, as `0.001`: Matplotlib's own labels are formulas."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def save_figure(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a figure, in the format of the extension.

    Raises:
      EndingError: figures cannot be written in such a format.
      OutputError: it cannot be written.
    """
    form = FORMS[check_output(path, FORMS)]
    options = {"pil_kwargs": {"quality": _JPEG_QUALITY}} if form == "jpeg" else {}
    with written_atomically(path) as partial:
        figure.savefig(partial, format=form, **options)
