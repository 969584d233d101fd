"""Running a network over a data set's validation split."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from mindspore import Tensor, nn
from tqdm import tqdm

from mindrepvgg.data.datasets import Source, open_source
from mindrepvgg.data.loader import EvalLoader
from mindrepvgg.data.normalize import Normalize
from mindrepvgg.errors import DataError
from mindrepvgg.evaluation.metrics import MetricSum
from mindrepvgg.recipe.schema import Recipe, check_data_dir
from mindrepvgg.recipe.sources import recipe_from_dict
from mindrepvgg.runtime.device import inference_mode


@dataclass(frozen=True)
class Evaluation:
    """Accuracies in percent, mean cross-entropy, the number of images, and images a second without the first batch.

    unreadable: images that could not be read; none of the other figures counts them.
    """

    top1: float
    top5: float
    loss: float
    num_images: int
    correct: int
    images_per_second: float
    unreadable: int = 0

    @property
    def not_counted(self) -> str:
        """What to add to a line about the accuracies; empty when every image was read."""
        return f" ({self.unreadable} unreadable images not counted)" if self.unreadable else ""


def evaluate(net, loader, show_progress=False, ranks=None, flip=False, confusion=None) -> Evaluation:
    """Validate `net` on an `EvalLoader`: every image counts once.

    net: a network, which is run in inference and left as it was, or any function of images (N, C, H, W) float32 that
    returns logits (N, classes), both arrays. What an `as_uint8` loader hands out is normalised on a network's device.
    flip: judge by the mean of an image's logits and its mirror image's.
    ranks: the `Ranks` that validate together, each with its part of the images; all get the same counts and accuracies.
    confusion: a `ConfusionSum` to add to, over all ranks too.
    Raises DataError when no image, or too few, can be read.
    The first batch is left out of the speed where there are others, as the graph is compiled in it.
    """
    total = MetricSum()
    bar = tqdm(total=loader.steps, unit="batch", desc="validate", leave=False, disable=not _shown(show_progress))
    start, uncounted = time.perf_counter(), 0
    run, cells = _function_of(net, loader, flip), [net] if isinstance(net, nn.Cell) else []
    with inference_mode(*cells), bar:
        for images, labels, valid in loader:
            logits = run(images)
            total.update(logits, labels, valid)
            if confusion is not None:
                confusion.update(logits, labels, valid)
            bar.update()
            if not uncounted and loader.steps > 1:
                start, uncounted = time.perf_counter(), total.num_images
    seconds, unreadable = time.perf_counter() - start, loader.unreadable
    if ranks is not None:
        total, uncounted, seconds = _over_ranks(ranks, total, uncounted, seconds)
        unreadable = _bad_images_over_ranks(ranks, loader)
        if confusion is not None:
            confusion.add_ranks(ranks)
    if not total.num_images:
        raise DataError(f"none of the {unreadable} images could be read; tools/check_data.py says why")
    return Evaluation(
        top1=100 * total.top1,
        top5=100 * total.top5,
        loss=total.loss,
        num_images=total.num_images,
        correct=total.top1_correct,
        images_per_second=(total.num_images - uncounted) / seconds,
        unreadable=unreadable,
    )


def _function_of(net, loader, flip):
    """A network, or a function of arrays already, as a function of arrays; with flip over both views of an image."""
    # A graph of its own, so that the network's, which others may have compiled, stays.
    prepare = _normalize(loader.mean, loader.std) if loader.as_uint8 else lambda images: images

    def run(images):
        return net(prepare(Tensor(images))).asnumpy() if isinstance(net, nn.Cell) else net(images)

    def run_both(images):
        columns = 2 if loader.as_uint8 else 3
        mirrored = np.ascontiguousarray(np.flip(images, columns))
        return (run(images).astype(np.float32) + run(mirrored).astype(np.float32)) / 2

    return run_both if flip else run


@functools.lru_cache(maxsize=1)
def _normalize(mean, std):
    """The cell that normalises, compiled once for all the validations of a run."""
    return Normalize(mean, std)


def _over_ranks(ranks, total, uncounted, seconds):
    """The sums over all ranks, added in float64 in the ranks' order, and the slowest one's time."""
    own = [total.loss_sum, total.top1_correct, total.top5_correct, total.num_images, uncounted, seconds]
    rows = ranks.gather(np.array(own, np.float64))
    loss, *counts = rows[:, :-1].sum(axis=0)
    top1, top5, images, uncounted = (int(count) for count in counts)
    return MetricSum(float(loss), top1, top5, images), uncounted, float(rows[:, -1].max())


def _bad_images_over_ranks(ranks, loader) -> int:
    """The number of images no rank could read, checked against the limit: each knew its own alone."""
    found = ranks.union(loader.bad_images.of(0))
    loader.bad_images.check(0, found)
    return len(found)


def _shown(show_progress):
    return show_progress and sys.stderr.isatty()


def eval_loader(recipe, ranks=None, as_uint8=False) -> EvalLoader:
    """The validation split as a recipe describes it. Raises DataError when it cannot be read or does not fit."""
    return loader_of(recipe, val_source(recipe), ranks, as_uint8)


def val_source(recipe) -> Source:
    """The pictures of the validation split. Raises DataError when they cannot be read or do not fit."""
    return open_source(recipe.dataset, recipe.data_dir, "val", recipe.num_classes, recipe.val_share)


def spread(source, limit) -> Source:
    """At most `limit` pictures of a source, in its order: every class keeps its share of them, to within one.

    They are evenly spaced over the pictures sorted by class. None: all of them.
    """
    count = len(source)
    if limit is None or limit >= count:
        return source
    by_class = np.argsort(source.labels, kind="stable")
    chosen = np.sort(by_class[(2 * np.arange(limit) + 1) * count // (2 * limit)])
    return source.take(chosen)


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


def recipe_of(net, overrides: Mapping) -> Recipe:
    """How to validate a network: what its checkpoint tells, with the command line's `overrides` on top.

    Raises RecipeError when the two do not go together, or the data set's folder is named nowhere.
    """
    known = net.metadata
    values = dict(known.get("recipe") or {})
    values.update(known.get("preprocessing") or {})
    if "image_size" in known:
        values["image_resize"] = known["image_size"]
    if "dataset" in known:
        values["dataset"] = known["dataset"]
    values["model"] = net.variant.name
    values["model_args"] = net.variant.to_dict() if net.variant.name == "repvgg" else {}
    values["num_classes"], values["in_channels"] = net.num_classes, net.in_channels
    recipe = recipe_from_dict(values, overrides=overrides)
    check_data_dir(recipe)
    return recipe


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
