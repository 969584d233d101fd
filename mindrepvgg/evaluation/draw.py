"""Predictions written on the pictures they are of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mindrepvgg.data.decode import decode
from mindrepvgg.data.inputs import STDIN, InputFiles
from mindrepvgg.errors import DataError
from mindrepvgg.evaluation.predictions import Prediction
from mindrepvgg.files import atomic_write

_JPEG_QUALITY = 95
_LONGEST_JPEG = 65_500  # pixels of a side
_SMALLEST_FONT = 8  # pixels; smaller letters cannot be read
_LINES_PER_SIDE = 24  # of text, that would fit on the shorter side
_LINE_HEIGHT = 1.3  # of the font's size
_SHADE = 0.35  # what the panel behind the text leaves of the picture's brightness


class Drawer:
    """Writes pictures with their classes on them into a folder, under the names in `InputFiles.targets`.

    A picture keeps its size, and its orientation tag is not applied: it is what the network saw before cropping. It is
    written as JPEG where the input's name says that it is one and JPEG can hold it, else as PNG.

    Raises:
        DataError: the folder is a file, or a picture would be written over an input.
    """

    def __init__(self, folder, files: InputFiles):
        self._folder, self._files = Path(folder), files
        if self._folder.exists() and not self._folder.is_dir():
            raise DataError(f"{folder} is a file; give a folder to write pictures into")
        inputs = {os.path.realpath(path) for path in files.paths if path != STDIN}
        for target in files.targets:
            if os.path.realpath(self._folder / target) in inputs:
                raise DataError(f"{self._folder / target} is one of the pictures to predict; give another folder")

    def write(self, index, prediction: Prediction) -> Path:
        """Draw picture `index`; returns the file written."""
        picture = decode(self._files.read(index), self._files.name(index), in_channels=3)
        path = self._folder / self._files.targets[index]
        drawn = draw(picture, [f"{probability:.1%} {name}" for name, _, probability in prediction.top])
        with atomic_write(path) as stream:
            if path.suffix == ".jpg" and max(drawn.size) <= _LONGEST_JPEG:
                drawn.save(stream, "JPEG", quality=_JPEG_QUALITY)
            else:
                drawn.save(stream, "PNG")
        return path


def draw(picture: np.ndarray, lines: Sequence[str]) -> Image.Image:
    """Draw lines of text at a picture's top left, on a darkened panel.

    The font is DejaVu Sans: Latin, Greek, Cyrillic, Hebrew, Arabic letters and more, but no Chinese or Japanese.

    Args:
        picture: (H, W, 3) uint8.
        lines: each is cut to the picture's width. Lines that do not fit below each other are left out, but not the
            first.

    Returns:
        A picture of the same size.
    """
    import matplotlib  # for its font

    height, width = picture.shape[:2]
    size = max(_SMALLEST_FONT, min(height, width) // _LINES_PER_SIDE)
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)
    step, margin = int(size * _LINE_HEIGHT), size // 3
    # A name may hold line breaks, which Pillow would obey.
    shown = [_fitting(" ".join(line.split()), font, width - 2 * margin) for line in lines[: max(1, height // step)]]
    right = min(width, int(max((font.getlength(line) for line in shown), default=0)) + 2 * margin)
    picture = picture.copy()
    panel = picture[: len(shown) * step + margin, :right]
    panel[:] = panel * _SHADE
    image = Image.fromarray(picture)
    pen = ImageDraw.Draw(image)
    for row, line in enumerate(shown):
        pen.text((margin, row * step + margin // 2), line, font=font, fill="white")
    return image


def _fitting(line, font, width):
    """The line, or as much of it as fits into width pixels, with an ellipsis."""
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(f"{line}…") > width:
        line = line[:-1]
    return f"{line}…"
