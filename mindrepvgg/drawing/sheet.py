"""Many small pictures on one sheet, each with a caption; and one picture with its classes beneath."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from mindrepvgg.drawing.style import BLUE, GREY, INK, PALE, fitting, font, opened

_TILE, _GAP, _MARGIN = 176, 20, 28  # pixels: of a picture's longer side, between pictures, around the sheet
_CAPTION, _HEADING, _BELOW = 15, 24, 16  # pixels: sizes of letters
_LINE = 1.4  # of a letter's size

_SMALLEST = 360  # pixels: of the longer side, and of the width that names need; a smaller picture is enlarged
_ENLARGED = 16  # times, at most
_LETTERS = 24  # of this many letters' size is the width of a picture
_LARGEST_LETTERS = 48  # pixels


class Line(NamedTuple):
    """A line of a caption."""

    text: str
    colour: str = INK
    bold: bool = False


def draw_sheet(
    pictures: Sequence[np.ndarray] | np.ndarray,
    captions: Sequence[Sequence[Line]],
    target: Any,
    heading: str,
    below: str = "",
    columns: int = 8,
) -> None:
    """Draw pictures in rows, with captions beneath them, as a PNG.

    Args:
        pictures: (H, W, C) uint8 with C = 1 or 3 each.
        captions: lines for each picture; they are cut to its width.
        target: a path or a binary stream.
        heading, below: the sheet's title, and the line below it.
        columns: pictures in a row.
    """
    columns = max(1, min(columns, len(pictures)))
    rows, line = -(-len(pictures) // columns), int(_CAPTION * _LINE)
    top = _MARGIN + int(_HEADING * _LINE) + (int(_BELOW * _LINE) if below else 0) + _GAP
    step = _TILE + 8 + line * max(map(len, captions), default=0) + _GAP
    width = max(2 * _MARGIN + columns * (_TILE + _GAP) - _GAP, 560)
    sheet = Image.new("RGB", (width, top + rows * step + _MARGIN - _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    _write(pen, (_MARGIN, _MARGIN), Line(heading, INK, True), _HEADING, width - 2 * _MARGIN)
    if below:
        _write(pen, (_MARGIN, _MARGIN + int(_HEADING * _LINE)), Line(below, GREY), _BELOW, width - 2 * _MARGIN)
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x, y = _MARGIN + number % columns * (_TILE + _GAP), top + number // columns * step
        tile = fitted(picture, _TILE)
        sheet.paste(tile, (x + (_TILE - tile.width) // 2, y + _TILE - tile.height))
        for place, text in enumerate(caption):
            _write(pen, (x, y + _TILE + 8 + place * line), text, _CAPTION, _TILE)
    with opened(target) as stream:
        sheet.save(stream, "PNG")


def fitted(picture: np.ndarray, side: int) -> Image.Image:
    """A picture (H, W, C) whose longer side has `side` pixels; an enlarged one keeps its pixels visible."""
    image = as_image(picture)
    scale = side / max(image.size)
    width, height = (max(1, round(scale * length)) for length in image.size)
    return image.resize((width, height), Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS)


def as_image(picture: np.ndarray) -> Image.Image:
    """A picture (H, W, C) with C = 1 or 3, uint8, as Pillow's in RGB."""
    return Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture).convert("RGB")


def _write(pen, place, line, size, width):
    letters = font(size, line.text, line.bold)
    pen.text(place, fitting(line.text, letters, width), font=letters, fill=line.colour)


def with_classes(picture: np.ndarray, top: Sequence[tuple[str, float]]) -> Image.Image:
    """A picture with its classes in a panel beneath it: a name, a bar and a percentage each, the first one set off.

    A small picture is enlarged by a whole number, so that its pixels stay what they are; a large one keeps its size.

    Args:
        picture: (H, W, 3) uint8.
        top: the classes and their probabilities, the most probable first.
    """
    height, width = picture.shape[:2]
    times = min(-(-_SMALLEST // max(height, width)), _ENLARGED)
    image = as_image(picture).resize((times * width, times * height), Image.Resampling.NEAREST)
    width = max(image.width, _SMALLEST)
    size = min(width // _LETTERS, max(image.height, _SMALLEST) // _LETTERS, _LARGEST_LETTERS)
    step, margin = int(1.9 * size), size
    panel = image.height + margin // 2
    canvas = Image.new("RGB", (width, panel + len(top) * step + margin // 2), "white")
    canvas.paste(image, ((width - image.width) // 2, 0))
    pen = ImageDraw.Draw(canvas)
    number_width = int(font(size, bold=True).getlength("100.0%"))
    room = min(width, 40 * size) - 2 * margin  # of a very wide picture, the bars do not span all
    for place, (name, probability) in enumerate(top):
        colour, first = (BLUE, True) if place == 0 else (GREY, False)
        y = panel + place * step
        percent = font(size, bold=first)
        pen.text((margin + room, y), f"{probability:.1%}", font=percent, fill=colour, anchor="ra")
        _write(pen, (margin, y), Line(name, INK if first else GREY, first), size, room - number_width - size)
        bar, thick = y + int(1.32 * size), max(3, size // 5)
        pen.rectangle((margin, bar, margin + room, bar + thick), fill=PALE)
        if round(room * probability) >= 1:
            pen.rectangle((margin, bar, margin + round(room * probability), bar + thick), fill=colour)
    return canvas
