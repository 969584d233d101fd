"""Mixup and cutmix: a batch is mixed with its own reverse, pictures and labels alike.

As in timm and MindCV one share, or one box, serves the whole batch. Row i meets row N - 1 - i, so two rows can be mixed
as soon as both are there. Label smoothing is no part of this: the loss smooths soft targets t to (1 - s) t + s / C.
"""

import math
from typing import NamedTuple

import numpy as np


class Mix(NamedTuple):
    """How a batch is mixed.

    share: of a row's own picture and label, the part that stays. box: where cutmix replaces a picture; None for mixup.
    """

    share: float
    box: tuple[slice, slice] | None


def draw_mix(
    mixup: float, cutmix: float, probability: float, shape: tuple[int, int], rng: np.random.Generator
) -> Mix | None:
    """Draw how a batch is mixed.

    Args:
        mixup, cutmix: alphas of Beta(alpha, alpha); 0: none. Where both are given, a fair coin decides for each batch.
        probability: of mixing the batch at all.
        shape: (height, width) of its pictures.
        rng: draws the numbers.

    Returns:
        The `Mix`; None when the batch stays as it is.

    Source: arXiv:1710.09412; arXiv:1905.04899, where the share counts only the part of the box inside the picture.
    """
    if rng.random() >= probability:
        return None
    if cutmix and (not mixup or rng.random() < 0.5):
        return _cut(rng.beta(cutmix, cutmix), shape, rng)
    return Mix(rng.beta(mixup, mixup), None)


def _cut(share, shape, rng):
    """Return the cutmix of a box whose sides are sqrt(1 - share) of the picture's, around a uniform place in it."""
    box = []
    for side in shape:
        half = int(side * math.sqrt(1 - share)) // 2
        middle = int(rng.integers(side))
        box.append(slice(max(middle - half, 0), min(middle + half, side)))
    rows, columns = box
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return Mix(1 - area / (shape[0] * shape[1]), (rows, columns))


def mix_pair(first: np.ndarray, second: np.ndarray, mix: Mix):
    """Mix two float32 pictures (C, H, W) with each other, in place."""
    if mix.box is None:
        exchanged = (first - second) * np.float32(1 - mix.share)
        first -= exchanged
        second += exchanged
    else:
        box = (slice(None), *mix.box)
        kept = first[box].copy()
        first[box] = second[box]
        second[box] = kept


def soft_targets(labels: np.ndarray, num_classes: int, mix: Mix | None) -> np.ndarray:
    """Return the targets (N, num_classes) float32 of labels (N,) mixed with their reverse; one-hot when mix is None."""
    share = 1.0 if mix is None else mix.share
    targets = np.zeros((len(labels), num_classes), np.float32)
    rows = np.arange(len(labels))
    targets[rows, labels] = share
    targets[rows, labels[::-1]] += 1 - share
    return targets
