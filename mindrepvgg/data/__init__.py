"""Data: `open_source` says what a split holds, `TrainLoader` and `EvalLoader` turn it into float32 batches."""

from mindrepvgg.data.augment import Augmentation, check_policy
from mindrepvgg.data.pipeline import INTERPOLATIONS, EvalLoader, TrainLoader, random_resized_crop
from mindrepvgg.data.sources import DATASETS, SPLITS, Source, labelled_photos, open_source

__all__ = [
    "DATASETS",
    "INTERPOLATIONS",
    "SPLITS",
    "Augmentation",
    "EvalLoader",
    "Source",
    "TrainLoader",
    "check_policy",
    "labelled_photos",
    "open_source",
    "random_resized_crop",
]
