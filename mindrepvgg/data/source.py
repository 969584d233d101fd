"""What one split of a data set holds: its pictures, labels and classes; nothing is decoded here."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from mindrepvgg.data.decode import read_file

SPLITS = ("train", "val")


class Files(Protocol):
    """Encoded pictures by number. They are read in any order and from any thread."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What messages call the picture."""
        ...

    def read(self, index: int) -> np.ndarray:
        """Return the encoded picture, uint8. Raises UnreadableImageError."""
        ...


class ImageFiles:
    """Encoded pictures, one file each; see `Files`."""

    def __init__(self, paths):
        self.paths = tuple(map(os.fspath, paths))

    def __len__(self):
        return len(self.paths)

    def name(self, index):
        """Return the file's path."""
        return self.paths[index]

    def read(self, index):
        """Return the file's bytes."""
        return read_file(self.paths[index])


class _Chosen:
    """Some of a source's files, by their numbers there; see `Files`."""

    def __init__(self, files, numbers):
        self._files = files
        self._numbers = numbers.tolist()

    def __len__(self):
        return len(self._numbers)

    def name(self, index):
        return self._files.name(self._numbers[index])

    def read(self, index):
        return self._files.read(self._numbers[index])


@dataclass(frozen=True, eq=False)
class Source:
    """One split: pictures in memory or on disk, each with a class. The arrays are made read-only.

    Attributes:
        title: what messages call the data set: its name in `DATASETS`, or that of its folder.
        class_names: by class index.
        labels: (N,) int32.
        images: (N, H, W, C) uint8 with C = 1 or 3 (RGB); None where the pictures are in files.
        files: N encoded pictures; None where they are in memory.
        divided: whether `val_share` made this split of a folder of classes.

    Raises:
        ValueError: the parts do not fit together.
    """

    title: str
    class_names: tuple[str, ...]
    labels: np.ndarray
    images: np.ndarray | None = None
    files: Files | None = None
    divided: bool = False

    def __post_init__(self):
        if (self.images is None) == (self.files is None):
            raise ValueError("a Source needs either images or files, not both")
        pictures: Any = self.files if self.images is None else self.images
        if len(pictures) != len(self.labels):
            raise ValueError(f"a Source needs one label per picture: {len(self.labels)} != {len(pictures)}")
        for array in (self.labels, self.images):
            if array is not None:
                array.setflags(write=False)

    def __len__(self):
        return len(self.labels)

    def name(self, index):
        """What a message calls picture `index`."""
        return f"picture {index} of {self.title}" if self.files is None else self.files.name(index)

    def take(self, indices):
        """Return the source of the pictures at `indices`, an array."""
        pictures = {"files": _Chosen(self.files, indices)} if self.images is None else {"images": self.images[indices]}
        return replace(self, labels=self.labels[indices], **pictures)

    @property
    def num_classes(self):
        """The number of class names."""
        return len(self.class_names)


def spread(source, limit) -> Source:
    """At most `limit` pictures of a source, in its order: every class keeps its share of them, to within one.

    They are evenly spaced over the pictures sorted by class. None: all of them.
    """
    count = len(source)
    if limit is None or limit >= count:
        return source
    by_class = np.argsort(source.labels, kind="stable")
    chosen = np.sort(by_class[(2 * np.arange(limit) + 1) * count // (2 * limit)])
    return source.take(chosen)
