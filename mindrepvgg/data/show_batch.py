"""A sheet of training pictures as the network sees them: cropped, augmented and mixed."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from mindrepvgg.data.loaders import train_loader
from mindrepvgg.drawing.sheet import Line, draw_sheet
from mindrepvgg.drawing.style import GREY, INK
from mindrepvgg.models.preprocessing import Preprocessing
from mindrepvgg.recipe.schema import Recipe
from mindrepvgg.runtime.ranks import Ranks
from mindrepvgg.text import counted, printable

_MOST = 32  # on a sheet
_SHOWN = 0.005  # the smallest share of a mixed picture that its caption tells


def draw_batch(recipe: Recipe, target: Any) -> str:
    """Draw the first batch of a recipe's training as a PNG, at most 32 pictures of it.

    They are the very pictures that a run of the recipe in one process starts with.

    Args:
        recipe: how to train, on which data.
        target: a path or a binary stream.

    Returns:
        A line that says what was drawn.

    Raises:
        UserError: recipe and data do not go together, or a picture cannot be read.
    """
    loader = train_loader(recipe, Ranks())
    with contextlib.closing(loader.epoch(0)) as batches:
        images, targets = next(batches)
    pictures = as_pixels(images, loader.preprocessing)[:_MOST]
    captions = [_caption(target, loader.source.class_names) for target in targets[: len(pictures)]]
    height, width = recipe.image_size
    part = f"{len(pictures)} of " if len(pictures) < len(images) else ""
    what = f"{part}the {counted(len(images), 'picture')} of the first batch, {width}x{height} pixels"
    heading = f"{recipe.model} on {loader.source.title}: what training sees"
    draw_sheet(pictures, captions, target, heading, f"{what}, after augmentation")
    return what


def as_pixels(images: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """A batch of a loader as uint8 (N, H, W, C): normalised (N, C, H, W) float32 is turned back, pixels stay."""
    if images.dtype == np.uint8:
        return images
    gain, bias = preprocessing.gain_and_bias()
    pixels = (images.astype(np.float64) - bias) / gain
    return np.rint(pixels).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def _caption(target, names):
    """The class of a picture; of a mixed one the two classes, with their shares."""
    if np.ndim(target) == 0:
        return (Line(printable(names[int(target)])),)
    # More outputs than the data have classes: none of the further ones is in a picture.
    shares = target[: len(names)]
    first = [label for label in np.argsort(-shares, kind="stable")[:2] if shares[label] > _SHOWN]
    if len(first) == 1:
        return (Line(printable(names[first[0]])),)
    colours = (INK, GREY)
    return tuple(
        Line(f"{shares[label]:.0%} {printable(names[label])}", colour)
        for label, colour in zip(first, colours, strict=True)
    )
