"""A small network that reads digits, for INT8: its shape, its facts, its pictures."""

import numpy as np
from PIL import Image

from mindrepvgg.data.datasets import open_source
from mindrepvgg.data.loaders import loader_of
from mindrepvgg.data.source import spread
from mindrepvgg.recipe.sources import recipe_from_dict

SHAPE = {"num_blocks": [1, 1, 2, 1], "widths": [8, 8, 16, 24, 64]}


LAYERS = ("stage0", "stage1.0", "stage2.0", "stage3.0", "stage3.1", "stage4.0", "linear")


FACTS = {
    "image_size": [16, 16],
    "dataset": "mnist5k",
    "class_names": [str(digit) for digit in range(10)],
    "preprocessing": {"mean": [0.1307], "std": [0.3081], "crop_pct": 1.0, "interpolation": "bilinear"},
    "recipe": {"batch_size": 100, "num_parallel_workers": 2},
}


def digits(split):
    """Digits of a split as the network takes them, (N, 1, 16, 16), by Pillow and NumPy; and their labels."""
    source = open_source("mnist5k", None, split)
    resized = [np.asarray(Image.fromarray(picture[..., 0]).resize((16, 16), 2)) for picture in source.images]
    return ((np.stack(resized)[:, None] / 255 - 0.1307) / 0.3081).astype(np.float32), source.labels


def loader_recipe():
    """How the checkpoint's pictures are prepared."""
    values = {**FACTS["recipe"], **FACTS["preprocessing"], "dataset": "mnist5k", "image_resize": [16, 16]}
    return recipe_from_dict({**values, "model": "repvgg_nano", "num_classes": 10, "in_channels": 1})


def loader(count):
    """Training pictures, spread over the classes and sorted by them."""
    return loader_of(loader_recipe(), spread(open_source("mnist5k", None, "train"), count))
