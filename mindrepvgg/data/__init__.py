"""Data: `open_source` says what a split holds, `TrainLoader` and `EvalLoader` turn it into float32 batches."""

from mindrepvgg.data.pipeline import INTERPOLATIONS, EvalLoader, TrainLoader, random_resized_crop
from mindrepvgg.data.sources import DATASETS, SPLITS, Source, labelled_photos, open_source

__all__ = [
    "DATASETS",
    "INTERPOLATIONS",
    "SPLITS",
    "EvalLoader",
    "Source",
    "TrainLoader",
    "labelled_photos",
    "open_source",
    "random_resized_crop",
]
