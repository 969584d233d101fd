"""Sources and loaders from loose values, for tests that change one at a time."""

import dataclasses
import itertools

import numpy as np

from mindrepvgg.data.augment import Augmentation
from mindrepvgg.data.loader import EvalLoader
from mindrepvgg.data.source import ImageFiles, Source
from mindrepvgg.data.train_loader import TrainLoader
from mindrepvgg.models.preprocessing import Preprocessing

GRAY = {"mean": (0.5,), "std": (0.25,), "in_channels": 1}
RGB = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "in_channels": 3}
WHOLE = {"scale": (1, 1), "ratio": (1, 1), "hflip": 0}


def preprocessing(image_size=(8, 8), **changes):
    """How gray images of 8x8 pixels are prepared, apart from the changes."""
    return Preprocessing(image_size=image_size, **{**GRAY, "crop_pct": 1.0, **changes})


def eval_loader(source, batch_size, image_size=(8, 8), **changes):
    """An `EvalLoader`; changes: values of a `Preprocessing`, and options of the loader."""
    prepared = preprocessing(image_size, **_taken(changes, Preprocessing))
    return EvalLoader(source, prepared, batch_size, **{"num_parallel_workers": 2, **changes})


def train_loader(source, batch_size, image_size=(8, 8), **changes):
    """A `TrainLoader`; changes: values of a `Preprocessing` or an `Augmentation`, and options of the loader."""
    prepared = preprocessing(image_size, **_taken(changes, Preprocessing))
    augmentation = Augmentation(**{**WHOLE, **_taken(changes, Augmentation)})
    return TrainLoader(source, prepared, augmentation, batch_size, **{"num_parallel_workers": 2, "seed": 1, **changes})


def _taken(changes, kind):
    """The values of the dataclass `kind`, taken out of `changes`."""
    names = {field.name for field in dataclasses.fields(kind)} & changes.keys()
    return {name: changes.pop(name) for name in names}


def memory_source(count, size=(8, 8), channels=1, seed=0):
    """Make noise pictures; the label is the index."""
    images = np.random.default_rng(seed).integers(256, size=(count, *size, channels), dtype=np.uint8)
    return Source("test", tuple(map(str, range(count))), np.arange(count, dtype=np.int32), images=images)


def file_source(*paths):
    return Source("test", ("a",), np.zeros(len(paths), np.int32), files=ImageFiles(paths))


def normalised(pictures, mean, std):
    """The defining formula in float64: (N, H, W, C) uint8 to (N, C, H, W)."""
    return ((pictures / 255 - mean) / std).transpose(0, 3, 1, 2)


def pixels(images, arguments):
    """Undo the normalisation of (N, C, H, W): (N, H, W, C) uint8."""
    values = images.transpose(0, 2, 3, 1) * np.array(arguments["std"]) + np.array(arguments["mean"])
    return np.round(values * 255).astype(np.uint8)


def flat(lists):
    return list(itertools.chain.from_iterable(lists))


# A program that sets up a loader and can read an epoch from any step on.
RESUME = """
import hashlib, sys
from mindrepvgg.data.augment import Augmentation
from mindrepvgg.data.datasets import open_source
from mindrepvgg.data.train_loader import TrainLoader
from mindrepvgg.models.preprocessing import Preprocessing
augmentation = Augmentation(scale=(0.5, 1), ratio=(0.75, 1.33), hflip=0.5, vflip=0.1, auto_augment="autoaug",
                            re_prob=0.3, mixup=0.8, cutmix=1, cutmix_prob=0.8, aug_repeats=2)
preprocessing = Preprocessing(image_size=(32, 32), mean=(0.13,), std=(0.31,), in_channels=1)
loader = TrainLoader(open_source("mnist5k", None, "train"), preprocessing, augmentation, 256, seed=7,
                     num_parallel_workers=2)
def digests(start):
    return [hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest() for image, label in loader.epoch(4, start)]
"""
