"""Running a network over a data set's validation split."""

from __future__ import annotations

import functools
import sys
import time
from dataclasses import dataclass

import numpy as np
from mindspore import Tensor, nn
from tqdm import tqdm

from mindrepvgg.data.normalize import Normalize
from mindrepvgg.errors import DataError
from mindrepvgg.evaluation.metrics import MetricSum
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
        raise DataError(f"none of the {unreadable} images could be read; mindrepvgg check-data says why")
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
    prepare = _normalize(loader.preprocessing) if loader.as_uint8 else lambda images: images

    def run(images):
        return net(prepare(Tensor(images))).asnumpy() if isinstance(net, nn.Cell) else net(images)

    def run_both(images):
        columns = 2 if loader.as_uint8 else 3
        mirrored = np.ascontiguousarray(np.flip(images, columns))
        return (run(images).astype(np.float32) + run(mirrored).astype(np.float32)) / 2

    return run_both if flip else run


@functools.lru_cache(maxsize=1)
def _normalize(preprocessing):
    """The cell that normalises, compiled once for all the validations of a run."""
    return Normalize(preprocessing)


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
