"""CIFAR-10 as pictures, which the studies train on; they are no part of this project."""

import os
import tempfile
import zipfile
from pathlib import Path

from mindrepvgg.errors import UserError

_FOLDER = Path(__file__).resolve().parents[1] / "outputs" / "cifar10"
_VARIABLE = "MINDREPVGG_TEST_DATA"


class NoPicturesError(UserError):
    """The pictures are not on this machine."""


def as_recipe() -> dict:
    """The keys of a recipe that reads the pictures; they are unpacked once.

    Raises:
        NoPicturesError: the environment does not say where they are.
    """
    if not _FOLDER.exists():
        archive = Path(os.environ.get(_VARIABLE, "")) / "cifar10_jpeg.zip"
        if not archive.is_file():
            raise NoPicturesError(
                f"{_VARIABLE} must name a folder with cifar10_jpeg.zip: CIFAR-10 as pictures, in train/ and val/ with "
                "one folder a class"
            )
        _FOLDER.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_FOLDER.parent) as folder, zipfile.ZipFile(archive) as pictures:
            pictures.extractall(f"{folder}/pictures")
            os.rename(f"{folder}/pictures", _FOLDER)
    return {"dataset": "folder", "data_dir": str(_FOLDER)}
