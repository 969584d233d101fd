"""Real pictures, prepared as a network's checkpoint says, on which an exported file is compared with the network."""

from __future__ import annotations

import numpy as np

from mindrepvgg.data.datasets import open_source
from mindrepvgg.data.loaders import loader_of
from mindrepvgg.data.samples import labelled_photos
from mindrepvgg.data.source import spread
from mindrepvgg.errors import DataError, UserError
from mindrepvgg.models.preprocessing import Preprocessing
from mindrepvgg.recipe.network import recipe_of

_BATCH, _DIGITS = 8, 20


class Pictures:
    """Photos or digits where their package is installed, otherwise seeded noise.

    Args:
        net: the network; its metadata tell how pictures are prepared.
        overrides: recipe keys that stand above the metadata.

    Attributes:
        pixels: the pictures, uint8 (N, H, W, C), cut as the checkpoint says.
        preprocessing: how they are prepared.
        known: whether mean and std are the network's own; a colour network that does not tell has ImageNet's.
        origin: what the pictures are, in words.
    """

    def __init__(self, net, overrides: dict):
        channels = net.in_channels
        told = (overrides, net.metadata.get("recipe") or {}, net.metadata.get("preprocessing") or {})
        self.known = channels == 3 or any("mean" in place for place in told)
        plain = {} if self.known else {"mean": [0.0] * channels, "std": [1.0] * channels}
        recipe = recipe_of(net, {"batch_size": _BATCH, **overrides, **plain}, maps=True)
        self.preprocessing = recipe.preprocessing
        source, self.origin = _real_pictures(channels)
        if source:
            loader = loader_of(recipe, source, as_uint8=True)
            self.pixels = np.concatenate([images[valid] for images, _, valid in loader])
        else:
            shape = (_BATCH, *recipe.image_size, channels)
            self.pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        self.origin = f"{len(self.pixels)} {self.origin}"

    def known_preprocessing(self, option: str) -> Preprocessing:
        """Return the preprocessing for a graph that normalises; raise UserError where mean and std are not known.

        Args:
            option: of the command, which asked for it.
        """
        if not self.known:
            raise UserError(f"the checkpoint does not tell mean and std: give --mean and --std, or no {option}")
        return self.preprocessing

    def normalised(self, pixels):
        """Convert pixels (N, H, W, C) into what the network takes: float32 (N, C, H, W)."""
        images = (pixels / 255 - np.asarray(self.preprocessing.mean)) / np.asarray(self.preprocessing.std)
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)

    def batches(self, options):
        """Return batches of every kind that the file takes: of its size and others, full and of one picture."""
        count = options.batch_size or _BATCH
        pixels = self.pixels
        if options.batch_size:  # all pictures, in whole batches
            pixels = pixels[np.arange(max(count, len(pixels) // count * count)) % len(pixels)]
        batches = [pixels[start : start + count] for start in range(0, len(pixels), count)]
        if options.image_size is None:
            height, width = (max(1, side * 3 // 4) for side in pixels.shape[1:3])
            batches.append(pixels[:count, :height])
            batches.append(pixels[:count, :, :width])
        if options.batch_size is None:
            batches.append(pixels[:1])
        return batches


def _real_pictures(channels):
    """Return a source of real pictures of this many channels, or None; and what they are, in words."""
    if channels == 3 and (photos := labelled_photos()) is not None:
        return photos, "photos of the package foolbox"
    if channels == 1:
        try:
            digits = open_source("mnist5k", None, "val")
        except DataError:  # the package that carries them is not installed
            digits = None
        if digits:
            return spread(digits, _DIGITS), "digits of mnist5k"
    return None, "images of seeded noise"
