"""The loaders a recipe describes: its training batches, its validation batches, and those that calibrate."""

from __future__ import annotations

import os

from mindrepvgg.data.augment import Augmentation
from mindrepvgg.data.datasets import open_source
from mindrepvgg.data.loader import EvalLoader
from mindrepvgg.data.source import Source, spread
from mindrepvgg.data.train_loader import TrainLoader
from mindrepvgg.errors import DataError
from mindrepvgg.recipe.provenance import CHECKPOINT, describe
from mindrepvgg.recipe.rules import check_data_dir
from mindrepvgg.recipe.schema import Recipe
from mindrepvgg.text import counted

LOOKED_AT = 2000


def open_split(recipe: Recipe, split: str) -> Source:
    """The pictures of a recipe's split, "train" or "val".

    Raises RecipeError when the data set's folder was not named, DataError when the pictures cannot be read or do not
    fit the recipe.
    """
    check_data_dir(recipe)
    source = recipe.sources["data_dir"]
    if source == CHECKPOINT and recipe.data_dir and not os.path.isdir(os.path.expanduser(recipe.data_dir)):
        place = describe("data_dir", recipe.data_dir, source)
        raise DataError(f"{place} is not here, or no longer; add --data_dir FOLDER with the folder's place now")
    return open_source(recipe.dataset, recipe.data_dir, split, recipe.num_classes, recipe.val_share)


def _shared_options(recipe, ranks):
    """What a recipe says to every `Loader`; of several `ranks` each reads its own part."""
    return {
        "num_parallel_workers": recipe.num_parallel_workers,
        "on_bad_image": recipe.on_bad_image,
        "bad_image_limit": recipe.bad_image_limit,
        "rank": ranks.rank if ranks else 0,
        "rank_size": ranks.size if ranks else 1,
    }


def eval_loader(recipe: Recipe, ranks=None, as_uint8=False) -> EvalLoader:
    """The validation split as a recipe describes it; raises what `open_split` does."""
    return loader_of(recipe, open_split(recipe, "val"), ranks, as_uint8)


def look_at_validation(recipe: Recipe, source: Source, ranks):
    """Decode pictures of a validation split ahead of a run, which would otherwise end after its first epoch.

    All are decoded, of a large split `LOOKED_AT`, spread over its classes. Unreadable ones are named in the log.

    Raises DataError when one cannot be read and `on_bad_image` is "error", or more than the whole split may have.
    """
    if source.files is None:
        return
    few = spread(source, LOOKED_AT)
    options = _shared_options(recipe, ranks)
    options["bad_image_limit"] = min(1, recipe.bad_image_limit * len(source) / len(few))
    loader = EvalLoader(few, recipe.preprocessing, min(recipe.batch_size, len(few)), as_uint8=True, **options)
    for _ in loader:
        pass
    loader.bad_images.check(0, ranks.union(loader.bad_images.of(0)))


def loader_of(recipe: Recipe, source: Source, ranks=None, as_uint8=False) -> EvalLoader:
    """Any source, prepared as a recipe says; of several `ranks` each reads its own part. as_uint8: see `Loader`."""
    batch_size = min(recipe.batch_size, len(source))
    options = _shared_options(recipe, ranks)
    return EvalLoader(source, recipe.preprocessing, batch_size, as_uint8=as_uint8, **options)


def train_loader(recipe: Recipe, ranks) -> TrainLoader:
    """The training split, of which every rank reads its own part; as pixels wherever the augmentation keeps them."""
    augmentation = Augmentation.of(recipe)
    return TrainLoader(
        open_split(recipe, "train"),
        recipe.preprocessing,
        augmentation,
        recipe.batch_size,
        seed=recipe.seed,
        shuffle=recipe.shuffle,
        drop_remainder=recipe.drop_remainder,
        num_classes=recipe.num_classes,
        as_uint8=augmentation.keeps_pixels,
        **_shared_options(recipe, ranks),
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
        f"the data have {counted(len(found), 'class')}, not the checkpoint's {len(expected)}: missing {missing[:5]}, "
        f"unknown {extra[:5]}; give the data set the network was trained on"
    )


# Training images, spread over the classes, from which BN and ranges are set before the first step.
CALIBRATION_IMAGES = 1024


class CalibrationBatches:
    """The images of an `EvalLoader` without those that fill up the last batch; iterate over it as often as needed."""

    def __init__(self, loader):
        self._loader = loader

    def __iter__(self):
        for images, _, valid in self._loader:
            yield images[valid]
