"""Real photos with labels, from a package that ships them, to compare two programs on."""

import numpy as np

from mindrepvgg.data.source import ImageFiles, Source
from mindrepvgg.runtime.optional import package_files


def labelled_photos() -> Source | None:
    """The 20 photos with ImageNet-1k labels that the package foolbox carries, or None where it is absent.

    The label stands in the file's name: imagenet_<number>_<label>.jpg. The package is found and not imported.
    """
    paths = package_files("foolbox", "data/imagenet_*_*.jpg")
    if not paths:
        return None
    labels = np.array([int(path.stem.rpartition("_")[2]) for path in paths], np.int32)
    return Source("photos", tuple(str(index) for index in range(1000)), labels, files=ImageFiles(paths))
