"""Networks to export, and pictures for them."""

import mindspore as ms
import numpy as np

from mindrepvgg import create_model
from support import SMALL, randomise_bn

SIZE = (32, 40)


CLASSES = [f"class {i}, or «ä»" for i in range(10)]


FACTS = {
    "image_size": list(SIZE),
    "class_names": CLASSES,
    "preprocessing": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "crop_pct": 0.9, "interpolation": "bicubic"},
}


KINDS = [*SMALL, "nano"]


def make(kind, **options):
    """A network of ten classes with a history, the same at every call."""
    ms.set_seed(0)
    if kind == "nano":
        return randomise_bn(create_model("repvgg_nano", 10, 1, **options))
    return randomise_bn(create_model("repvgg", 10, 3, **SMALL[kind], **options))


def pixels(*shape):
    """Random uint8 pictures (N, H, W, C)."""
    return np.random.default_rng(3).integers(0, 256, shape, np.uint8)


def normalised(pictures, preprocessing=FACTS["preprocessing"]):
    """As the network takes them, (N, C, H, W)."""
    x = (pictures / 255 - np.array(preprocessing["mean"])) / np.array(preprocessing["std"])
    return x.transpose(0, 3, 1, 2).astype(np.float32)
