"""How every picture of a report looks: style, labels, axes placed by inches, a figure as PNG.

Built for speed, since a whole run may take eight seconds: no pyplot, no layout engine, margins from the labels.
"""

import io
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray

from job.results.words import shorten

DPI = 130
WIDTH = 5.4  # inches; two fit side by side on a page, one on a phone
BLUE, ORANGE, INK, MUTED, GRID = "#0072B2", "#D55E00", "#1f2937", "#6b7280", "#e5e7eb"  # first two: Okabe and Ito
LONGEST = 18  # characters of a class name
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that a page looks the same everywhere
    "font.size": 9.5,
    "text.color": INK,
    "text.usetex": False,
    "text.parse_math": False,  # a $ in a class name is a $
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def label_width(names: Sequence[str]) -> float:
    """Inches the longest label takes: 9.5 points of DejaVu Sans, whose mean letter is 0.6 as wide as high."""
    return max(len(name) for name in names) * 9.5 * 0.62 / 72


def place(figure: Figure, *, left: float, bottom: float, height: float, right: float = 0.25) -> Axes:
    """Axes by their distances from the figure's edges, in inches."""
    width, whole = figure.get_size_inches()
    return figure.add_axes((left / width, bottom / whole, (width - left - right) / width, height / whole))


def legend(axes: Axes) -> None:
    """In a row above the axes, where no line runs."""
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=3, borderaxespad=0, columnspacing=1.4)


def png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)  # instead of whatever MPLBACKEND names
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return file.getvalue()


@contextmanager
def style() -> Iterator[None]:
    """This style and matplotlib's own defaults, whatever a matplotlibrc on this machine says."""
    defaults = {key: value for key, value in mpl.rcParamsDefault.items() if not key.startswith("backend")}
    with mpl.rc_context(dict(defaults, **STYLE)):
        yield


def labels(names: Iterable[str]) -> list[str]:
    """Class names for a picture: one line, cut to length, and a number where the font has no such letters."""
    return [_label(name, index) for index, name in enumerate(names)]


def _label(name: str, index: int) -> str:
    text = " ".join("".join(c if unicodedata.category(c)[0] != "C" else " " for c in name).split())
    if not text or not _drawable().issuperset(map(ord, text)):
        return f"class {index}"
    return shorten(text, LONGEST)


@cache
def _drawable() -> frozenset[int]:
    return frozenset(FT2Font(str(Path(mpl.get_data_path(), "fonts/ttf/DejaVuSans.ttf"))).get_charmap())


def percent(value: float, _position: float = 0) -> str:
    return f"{100 * value:.4g}%"


def rgb(colour: str) -> NDArray[np.float64]:
    return np.frombuffer(bytes.fromhex(colour[1:]), np.uint8) / 255
