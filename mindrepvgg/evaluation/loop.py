"""The loop over a validation split's batches: accuracy, loss and speed of a network."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import numpy as np
from mindspore import nn
from tqdm import tqdm

from mindrepvgg.data.loader import EvalLoader
from mindrepvgg.errors import DataError
from mindrepvgg.evaluation.inference import ArrayFunction, as_function
from mindrepvgg.evaluation.metrics import ConfusionSum, MetricSum
from mindrepvgg.evaluation.mistakes import MistakeSum
from mindrepvgg.runtime.device import inference_mode
from mindrepvgg.text import counted


@dataclass(frozen=True)
class Evaluation:
    """Figures of a network on a data set.

    Attributes:
        top1, top5: accuracies in percent.
        loss: mean cross-entropy.
        num_images: images that were counted.
        correct: images whose label has the largest logit.
        images_per_second: without the first batch, in which the graph is compiled.
        unreadable: images that could not be read; no other figure counts them.
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
        return f" ({counted(self.unreadable, 'unreadable image')} not counted)" if self.unreadable else ""


def evaluate(
    net: nn.Cell | ArrayFunction,
    loader: EvalLoader,
    show_progress: bool = False,
    ranks=None,
    flip: bool = False,
    confusion: ConfusionSum | None = None,
    mistakes: MistakeSum | None = None,
) -> Evaluation:
    """Run a network over a loader's images and count; every image counts once.

    Args:
        net: a network, which is run in inference and left as it was; or a function, see `as_function`.
        loader: the images. Where it gives pixels, a network's device normalises them.
        show_progress: draw a progress bar on a terminal.
        ranks: the `Ranks` that evaluate together, each with its part of the images; all get the same
            counts and accuracies.
        flip: take the mean of an image's logits and its mirror image's.
        confusion: counts to add to, over all ranks too.
        mistakes: the worst mistakes so far, to add to, over all ranks too.

    Returns:
        The figures. The first batch is left out of the speed where there are others.

    Raises:
        DataError: no image, or too few, can be read.
    """
    total, networks = MetricSum(), [net] if isinstance(net, nn.Cell) else []
    run = as_function(net, loader.preprocessing if loader.as_uint8 else None)
    if flip:
        run = _with_mirror_image(run, axis=2 if loader.as_uint8 else 3)
    hidden = not (show_progress and sys.stderr.isatty())
    bar = tqdm(total=loader.steps, unit="batch", desc="validate", leave=False, disable=hidden)
    start, uncounted = time.perf_counter(), 0
    with inference_mode(*networks), bar:
        for step, (images, labels, valid) in enumerate(loader):
            logits = run(images)
            total.update(logits, labels, valid)
            if confusion is not None:
                confusion.update(logits, labels, valid)
            if mistakes is not None:
                mistakes.update(loader.indices[step * loader.batch_size :], logits, labels, valid)
            bar.update()
            if not uncounted and loader.steps > 1:
                start, uncounted = time.perf_counter(), total.num_images
    seconds, unreadable = time.perf_counter() - start, loader.unreadable
    if ranks is not None:
        total, uncounted, seconds = _over_ranks(ranks, total, uncounted, seconds)
        unreadable = _bad_images_over_ranks(ranks, loader)
        if confusion is not None:
            confusion.add_ranks(ranks)
        if mistakes is not None:
            mistakes.add_ranks(ranks)
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


def _with_mirror_image(run, axis):
    """A function that gives the mean of what `run` gives for images and for their mirror images; axis: the columns."""

    def run_both(images):
        mirrored = np.ascontiguousarray(np.flip(images, axis))
        return (run(images).astype(np.float32) + run(mirrored).astype(np.float32)) / 2

    return run_both


def _over_ranks(ranks, total, uncounted, seconds):
    """The sums over all ranks, added in float64 in the ranks' order, and the slowest one's time."""
    own = [total.loss_sum, total.top1_correct, total.top5_correct, total.num_images, uncounted, seconds]
    rows = ranks.gather(np.array(own, np.float64))
    loss, *counts = rows[:, :-1].sum(axis=0)
    top1, top5, images, uncounted = (int(count) for count in counts)
    return MetricSum(float(loss), top1, top5, images), uncounted, float(rows[:, -1].max())


def _bad_images_over_ranks(ranks, loader) -> int:
    """The number of images that no rank could read, checked against the limit; each rank knows only its own."""
    found = ranks.union(loader.bad_images.of(0))
    loader.bad_images.check(0, found)
    return len(found)
