"""The pictures that activation ranges are taken from."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from mindrepvgg.data.datasets import DATASETS, class_folders, folder_title, open_source
from mindrepvgg.data.inputs import InputFiles
from mindrepvgg.data.mindrecord import is_record_folder
from mindrepvgg.data.source import Source, spread
from mindrepvgg.deployment.engine import OnnxEngine
from mindrepvgg.errors import DataError
from mindrepvgg.recipe.choices import DATASET_ALIASES
from mindrepvgg.text import counted, quoted


def calibration_source(recipe, given: str | None, count: int, validation: Source) -> tuple[Source, str]:
    """Choose pictures to calibrate on.

    Args:
        recipe: tells the data set, and where it lies.
        given: a data set's name, for its training split, or a folder of pictures, with or without classes; None: the
            training split of the recipe's data set.
        count: how many pictures, spread over the classes. The classes of a folder are the folders inside of it.
        validation: the pictures that accuracy is measured on.

    Returns:
        The pictures in a mixed order, and what they are in words.

    Raises:
        DataError: there are no such pictures, or some of them are among `validation`.
    """
    name = recipe.dataset if given is None else DATASET_ALIASES.get(given, given)
    if given is None or (name in DATASETS and not Path(given).is_dir()):
        data_dir = recipe.data_dir if name == recipe.dataset else None
        source = open_source(name, data_dir, "train", None, recipe.val_share)
        what = f"training images of {source.title}"
    elif Path(given).is_dir():
        files = InputFiles([given])
        folders, labels = np.unique([os.path.dirname(path) for path in files.paths], return_inverse=True)
        source = Source("pictures", tuple(folders.tolist()), labels.astype(np.int32), files=files)
        what = f"images of {given}"
    else:
        raise DataError(f"calibration (={quoted(given)}) is neither a folder nor a data set: {', '.join(DATASETS)}")
    _check_apart(source, validation)
    chosen = spread(source, count)
    # Mixed, so that every batch holds all classes: the first batch alone is used in several places.
    return chosen.take(np.random.default_rng(0).permutation(len(chosen))), what


def unlabelled_pictures(recipe) -> Source | None:
    """The pictures of a recipe's folder that has neither splits nor classes; None where it has, or is no folder."""
    root = os.path.expanduser(recipe.data_dir)
    if recipe.dataset != "folder" or not os.path.isdir(root) or class_folders(root) or is_record_folder(Path(root)):
        return None
    files = InputFiles([root])
    names = tuple(str(index) for index in range(recipe.num_classes))
    title = f"{folder_title(root)} without labels (float32's classes count as right)"
    return Source(title, names, np.zeros(len(files), np.int32), files=files)


def halves(pictures: Source, count: int) -> tuple[Source, Source]:
    """Every second of some unlabelled pictures, at most `count`, to calibrate on, and the others to judge on."""
    numbers = np.arange(len(pictures))
    if len(numbers) < 2:
        raise DataError("one picture without a label cannot both calibrate and judge; give others with --calibration")
    return spread(pictures.take(numbers[1::2]), count), pictures.take(numbers[::2])


def labelled_by(float_path, loader) -> tuple[Source, list[np.ndarray]]:
    """Take what the float file says for right: what INT8 changes is what it loses.

    Returns:
        A loader's pictures, each with the class that the float file gives it; and its logits of each batch.
    """
    engine = OnnxEngine(float_path)
    logits = [engine(images) for images, _, _ in loader]
    classes = np.concatenate([batch.argmax(1) for batch in logits])[: len(loader.source)]
    return replace(loader.source, labels=classes.astype(np.int32)), logits


def _check_apart(source, validation):
    """Raise DataError where a file of `source` is also a file of `validation`."""
    if source.files is None or validation.files is None:
        return
    validated = {os.path.realpath(validation.name(index)) for index in range(len(validation))}
    both = [name for name in map(source.name, range(len(source))) if os.path.realpath(name) in validated]
    if both:
        raise DataError(
            f"calibration and accuracy share {counted(len(both), 'picture')}, {both[0]} the first; give others to "
            "calibrate on"
        )


def calibration_batches(loader) -> list[np.ndarray]:
    """Read a loader's pictures.

    Args:
        loader: gives (images, labels, which of the images were read).

    Returns:
        A batch of images each, without the filling of the last batch and without unreadable pictures.

    Raises:
        DataError: none of the pictures can be read.
    """
    batches = [images[valid] for images, _, valid in loader if valid.any()]
    if not batches:
        raise DataError(f"none of the {loader.num_images} calibration pictures can be read")
    return batches
