"""The loaders a recipe describes: its training batches, its validation batches, and those that calibrate."""

from __future__ import annotations

from mindrepvgg.data.augment import Augmentation
from mindrepvgg.data.datasets import open_source
from mindrepvgg.data.loader import EvalLoader
from mindrepvgg.data.source import Source
from mindrepvgg.data.train_loader import TrainLoader
from mindrepvgg.errors import DataError


def eval_loader(recipe, ranks=None, as_uint8=False) -> EvalLoader:
    """The validation split as a recipe describes it. Raises DataError when it cannot be read or does not fit."""
    return loader_of(recipe, val_source(recipe), ranks, as_uint8)


def val_source(recipe) -> Source:
    """The pictures of the validation split. Raises DataError when they cannot be read or do not fit."""
    return open_source(recipe.dataset, recipe.data_dir, "val", recipe.num_classes, recipe.val_share)


def loader_of(recipe, source, ranks=None, as_uint8=False) -> EvalLoader:
    """Any source, prepared as a recipe says; of several `ranks` each reads its own part. as_uint8: see `EvalLoader`."""
    return EvalLoader(
        source,
        batch_size=min(recipe.batch_size, len(source)),
        image_size=recipe.image_size,
        crop_pct=recipe.crop_pct,
        mean=recipe.mean,
        std=recipe.std,
        in_channels=recipe.in_channels,
        interpolation=recipe.interpolation,
        num_parallel_workers=recipe.num_parallel_workers,
        resize_backend=recipe.resize_backend,
        on_bad_image=recipe.on_bad_image,
        bad_image_limit=recipe.bad_image_limit,
        as_uint8=as_uint8,
        rank=ranks.rank if ranks else 0,
        rank_size=ranks.size if ranks else 1,
    )


def check_classes(net, source):
    """Refuse data whose classes are not those the network was trained on, where its checkpoint names them."""
    expected, found = net.metadata.get("class_names"), list(source.class_names)
    if expected in (None, found):
        return
    if sorted(expected) == sorted(found):
        raise DataError(
            f"the data's classes are the checkpoint's in another order: {found[:5]}..., not {expected[:5]}..."
        )
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    raise DataError(
        f"the data's {len(found)} classes are not the checkpoint's {len(expected)}: missing {missing[:5]}, "
        f"unknown {extra[:5]}; give the data set the network was trained on"
    )


# Training images, spread over the classes, from which BN and ranges are set before the first step.
CALIBRATION_IMAGES = 1024


def build_train_loader(recipe, ranks) -> TrainLoader:
    """The training split, of which every rank reads its own part; as pixels wherever the augmentation keeps them."""
    augmentation = Augmentation.of(recipe)
    return TrainLoader(
        open_source(recipe.dataset, recipe.data_dir, "train", recipe.num_classes, recipe.val_share),
        batch_size=recipe.batch_size,
        image_size=recipe.image_size,
        mean=recipe.mean,
        std=recipe.std,
        in_channels=recipe.in_channels,
        augmentation=augmentation,
        as_uint8=augmentation.keeps_pixels,
        interpolation=recipe.interpolation,
        seed=recipe.seed,
        num_parallel_workers=recipe.num_parallel_workers,
        drop_remainder=recipe.drop_remainder,
        shuffle=recipe.shuffle,
        num_classes=recipe.num_classes,
        on_bad_image=recipe.on_bad_image,
        bad_image_limit=recipe.bad_image_limit,
        rank=ranks.rank,
        rank_size=ranks.size,
    )


class CalibrationBatches:
    """The images of an `EvalLoader` without those that fill up the last batch; iterate over it as often as needed."""

    def __init__(self, loader):
        self._loader = loader

    def __iter__(self):
        for images, _, valid in self._loader:
            yield images[valid]
