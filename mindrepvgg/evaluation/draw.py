"""Predictions beneath the pictures they are of."""

from __future__ import annotations

import os
from pathlib import Path

from mindrepvgg.data.decode import decode
from mindrepvgg.data.inputs import STDIN, InputFiles
from mindrepvgg.drawing.sheet import with_classes
from mindrepvgg.errors import DataError
from mindrepvgg.evaluation.predictions import Prediction
from mindrepvgg.files import atomic_write

_JPEG_QUALITY = 95
_LONGEST_JPEG = 65_500  # pixels of a side


class Drawer:
    """Writes pictures with their classes beneath them into a folder, under the names in `InputFiles.targets`.

    A small picture is enlarged, and the orientation tag is not applied: it is what the network saw before cropping. It
    is written as JPEG where the input's name says that it is one and JPEG can hold it, else as PNG.

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
        drawn = with_classes(picture, [(name, probability) for name, _, probability in prediction.top])
        with atomic_write(path) as stream:
            if path.suffix == ".jpg" and max(drawn.size) <= _LONGEST_JPEG:
                drawn.save(stream, "JPEG", quality=_JPEG_QUALITY)
            else:
                drawn.save(stream, "PNG")
        return path
