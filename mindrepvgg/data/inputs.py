"""Pictures of one's own, from files, folders and standard input."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import PurePath

import numpy as np

from mindrepvgg.data.datasets import IMAGE_SUFFIXES, image_files
from mindrepvgg.data.decode import LARGEST_FILE
from mindrepvgg.data.source import ImageFiles
from mindrepvgg.errors import DataError

STDIN = "-"


class InputFiles(ImageFiles):
    """The pictures of a command line as a source's files.

    Args:
        inputs: files, whatever their names end in; folders, for the pictures in them at any depth, sorted; and "-" for
            one picture from `stdin`.
        stdin: a binary stream; None: the process's.

    Attributes:
        targets: a relative path for each picture, no two the same, which ends in .jpg for JPEGs and in .png for
            others. It is the path inside the named folder, or the file's name, with _2, _3 ... where that is taken.

    Raises:
        DataError: an input does not exist, is a folder without pictures, or standard input does not end.
    """

    def __init__(self, inputs: Sequence[str | os.PathLike], stdin=None):
        paths, places = [], []
        for name in (os.fspath(given) for given in inputs):
            if name != STDIN and os.path.isdir(name):
                found = image_files(name)
                if not found:
                    raise DataError(f"no pictures in {name}: none of its files ends in {' '.join(IMAGE_SUFFIXES)}")
                paths += found
                places += [os.path.relpath(path, name) for path in found]
            elif name == STDIN or os.path.exists(name):
                paths.append(name)
                places.append("stdin" if name == STDIN else os.path.basename(name))
            else:
                raise DataError(f"{name} does not exist; give pictures, folders of them, or - for standard input")
        super().__init__(paths)
        self.targets = _unique(places)
        self._stdin = None
        if STDIN in self.paths:
            content = (stdin or sys.stdin.buffer).read(LARGEST_FILE + 1)
            if len(content) > LARGEST_FILE:
                raise DataError(f"standard input holds more than the {LARGEST_FILE} bytes that a picture may have")
            self._stdin = np.frombuffer(content, np.uint8)

    def name(self, index):
        """Return the picture's path, or 'standard input'."""
        return "standard input" if self.paths[index] == STDIN else super().name(index)

    def read(self, index):
        """Return the encoded picture."""
        return self._stdin if self.paths[index] == STDIN else super().read(index)


def _unique(places):
    """The places with a suffix that can be written, no two the same, not even where the case of letters is ignored."""
    taken, targets = set(), []
    for place in map(PurePath, places):
        suffix = ".jpg" if place.suffix.lower() in (".jpg", ".jpeg") else ".png"
        target, number = place.with_suffix(suffix), 1
        while str(target).lower() in taken:
            number += 1
            target = place.with_name(f"{place.stem}_{number}{suffix}")
        taken.add(str(target).lower())
        targets.append(str(target))
    return tuple(targets)
