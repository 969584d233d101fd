"""Data: `open_source` says what a split holds, `TrainLoader` and `EvalLoader` turn it into float32 batches."""

from mindrepvgg.data.augment import Augmentation
from mindrepvgg.data.decode import decode, read_file
from mindrepvgg.data.faults import ON_BAD_IMAGE
from mindrepvgg.data.pipeline import EvalLoader, TrainLoader
from mindrepvgg.data.policies import check_policy
from mindrepvgg.data.sources import DATASETS, IMAGE_SUFFIXES, SPLITS, ImageFiles, Source, labelled_photos, open_source
from mindrepvgg.data.transform import INTERPOLATIONS, RESIZE_BACKENDS, CentreCrop, gain_and_bias, random_resized_crop

__all__ = [
    "DATASETS",
    "IMAGE_SUFFIXES",
    "INTERPOLATIONS",
    "ON_BAD_IMAGE",
    "RESIZE_BACKENDS",
    "SPLITS",
    "Augmentation",
    "CentreCrop",
    "EvalLoader",
    "ImageFiles",
    "Source",
    "TrainLoader",
    "check_policy",
    "decode",
    "gain_and_bias",
    "labelled_photos",
    "open_source",
    "random_resized_crop",
    "read_file",
]
