"""Loaders from loose values, for tests that change one at a time."""

import dataclasses

from mindrepvgg.data.augment import Augmentation
from mindrepvgg.data.loader import EvalLoader
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
