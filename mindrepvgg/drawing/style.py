"""What all pictures share: colours, fonts, and how a figure becomes a file."""

from __future__ import annotations

import contextlib
import functools
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindrepvgg.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.ImageFont import FreeTypeFont

INK, GREY, PALE = "#1f2933", "#7b8794", "#e4e7eb"
BLUE, ORANGE, GREEN, RED, VIOLET = "#2563a8", "#d97b1f", "#2f855a", "#c0392b", "#7c4dab"

DPI = 150

# DejaVu Sans, matplotlib's own, has no Chinese, Japanese or Korean. One of these has, where it is installed: how the
# names of their files begin, in small letters, on Linux, Windows and macOS.
_MORE_FONTS = (
    *("notosanscjk", "notosanssc", "sourcehansans", "wqy-microhei", "wqy-zenhei", "droidsansfallback"),
    *("msyh", "simhei", "pingfang"),
)

_LOOK: Any = {
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,  # names of classes and files are shown as they are
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.unicode_minus": True,
    "grid.color": PALE,
    "grid.linewidth": 0.8,
    "xtick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.color": GREY,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
}


@contextlib.contextmanager
def picture(target: Any, width: float, height: float, **layout: Any) -> Iterator[Figure]:
    """Yield an empty figure in the house's style, which is written as a PNG at the end of the body.

    It is drawn without pyplot: no state of the process is left changed, and no display is needed.

    Args:
        target: a path, which is written atomically, or a binary stream.
        width, height: in inches.
        **layout: what `matplotlib.figure.Figure` takes beside.
    """
    import matplotlib
    from matplotlib.figure import Figure

    further = _further()
    families = ["DejaVu Sans", *([further[1]] if further else [])]
    with matplotlib.rc_context({**_LOOK, "font.family": families}):
        figure = Figure(figsize=(width, height), dpi=DPI, **layout)
        yield figure
        with opened(target) as stream, _unsaid():
            figure.savefig(stream, format="png")


@contextlib.contextmanager
def _unsaid() -> Iterator[None]:
    """Keep to itself what matplotlib says of fonts: of a letter that none has, the picture has a box."""
    log = logging.getLogger("matplotlib.font_manager")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
            yield
    finally:
        log.setLevel(before)


@contextlib.contextmanager
def opened(target: Any) -> Iterator[Any]:
    """Yield the binary stream to write to: `target` itself, or an atomic write of the file at this path."""
    if hasattr(target, "write"):
        yield target
        return
    with atomic_write(target) as stream:
        yield stream


def title(figure: Figure, text: str, below: str = "") -> None:
    """Write the one title of a figure at its top left, and in grey a line below it."""
    width, height = figure.get_size_inches()
    left = 0.18 / width
    figure.text(left, 1 - 0.14 / height, text, fontsize=13, fontweight="bold", va="top")
    if below:
        figure.text(left, 1 - 0.43 / height, below, fontsize=9.5, color=GREY, va="top")


def plain_numbers(axis: Any) -> None:
    """Write an axis's ticks as plain numbers: no powers of ten, no offset."""
    import numpy as np
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: np.format_float_positional(round(value, 10), trim="-")))


@functools.cache
def _further() -> tuple[str, str] | None:
    """The first of the further fonts that is installed, its file and its name; None where none is."""
    from matplotlib.font_manager import FontProperties, findSystemFonts, fontManager

    files = {Path(file).name.lower(): file for file in sorted(findSystemFonts(), reverse=True)}
    for beginning in _MORE_FONTS:
        for name in sorted(files):
            if name.startswith(beginning):
                fontManager.addfont(files[name])
                return files[name], FontProperties(fname=files[name]).get_name()
    return None


def font(size: int, text: str = "", bold: bool = False) -> FreeTypeFont:
    """A font for Pillow: DejaVu Sans, or for a text with letters that it lacks the further font that is installed.

    Args:
        size: pixels.
        text: what is to be written.
        bold: not of the further font.
    """
    from PIL import ImageFont

    further = None if _has_all(text) else _further()
    return ImageFont.truetype(further[0] if further else _dejavu(bold), size)


@functools.lru_cache(maxsize=4096)
def _has_all(text: str) -> bool:
    """Whether DejaVu Sans has every letter of a text."""
    from matplotlib.ft2font import FT2Font

    if text.isascii():
        return True
    known = FT2Font(_dejavu(False)).get_charmap()
    return all(ord(letter) in known for letter in text if letter.isprintable())


def _dejavu(bold: bool) -> str:
    """The file of DejaVu Sans."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return str(Path(matplotlib.get_data_path(), "fonts", "ttf", name))


def fitting(line: str, font: FreeTypeFont, width: float) -> str:
    """The line, or as much of it as fits into `width` pixels, with an ellipsis; line breaks become blanks."""
    line = " ".join(line.split())
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(f"{line}…") > width:
        line = line[:-1]
    return f"{line}…"
