"""How an image becomes a network's input; loads no MindSpore."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

INTERPOLATIONS = ("bilinear", "bicubic")

# Pixels of an input's side; far above, a batch fits no memory.
LARGEST_SIDE = 1 << 14

# Of each side; an image is resized to its size over this before it is cropped.
SMALLEST_CROP = 0.1

# What resizes images in validation. Published accuracies were measured with Pillow, which averages over all pixels
# that a smaller image leaves out. The others are faster and change logits; docs/performance.md says by how much.
RESIZE_BACKENDS = ("pillow", "opencv", "mindspore")

# Of the fields below, those that a checkpoint's description keeps under "preprocessing".
DESCRIBED_KEYS = ("mean", "std", "crop_pct", "interpolation")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes a network's input. The recipe's schema checks the values.

    Attributes:
        image_size: (height, width) of the input, in pixels.
        mean, std: one value for each channel, of pixels scaled to 0 ... 1.
        in_channels: 1 for gray images, 3 for RGB.
        crop_pct: share of each side that the centre crop of validation keeps.
        interpolation: one of `INTERPOLATIONS`.
        resize_backend: one of `RESIZE_BACKENDS`; what resizes images in validation.
    """

    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    in_channels: int
    crop_pct: float = 0.875
    interpolation: str = "bilinear"
    resize_backend: str = "pillow"

    @classmethod
    def of(cls, recipe) -> Preprocessing:
        """The preprocessing that a recipe describes."""
        return cls(**{field.name: getattr(recipe, field.name) for field in dataclasses.fields(cls)})

    def describe(self) -> dict:
        """The entries of a checkpoint's description, in types that JSON has."""
        values = {name: getattr(self, name) for name in DESCRIBED_KEYS}
        values.update(mean=list(self.mean), std=list(self.std))
        return {"image_size": list(self.image_size), "preprocessing": values}

    def gain_and_bias(self):
        """Float32 arrays (in_channels, 1, 1) with which pixel * gain + bias is (pixel / 255 - mean) / std."""
        import numpy as np  # here, because every --help reads the recipe, and that this module

        mean, std = (np.asarray(values, np.float64).reshape(-1, 1, 1) for values in (self.mean, self.std))
        return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)


def described_keys(description: Mapping) -> dict:
    """What a checkpoint's description tells of its preprocessing, as keys of a recipe."""
    keys = dict(description.get("preprocessing") or {})
    if "image_size" in description:
        keys["image_resize"] = description["image_size"]
    return keys
