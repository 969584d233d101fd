"""Metrics on NumPy arrays: counts and sums that add up exactly over batches and ranks, rates at the end."""

from dataclasses import dataclass

import numpy as np

# Rows of a confusion matrix that ranks exchange at once: each holds everyone's, 8 bytes a class and rank.
_ROWS_AT_ONCE = 64


def topk_correct(
    logits: np.ndarray, labels: np.ndarray, valid: np.ndarray | None = None, ks: tuple[int, ...] = (1, 5)
) -> tuple[int, ...]:
    """Count the images whose label is among their k largest logits, for each k.

    Among equal logits the lower class index comes first. An image with a NaN among its logits is wrong.

    Args:
        logits: (N, classes).
        labels: (N,), class indices.
        valid: (N,) bool, the images that count; None: all.
        ks: a k above the number of classes counts as that number.

    Raises:
        ValueError: a label is no class index.
    """
    logits, labels, valid = _checked(logits, labels, valid)
    rank = _rank_of_label(logits, labels)
    countable = valid & ~np.isnan(logits).any(axis=1)
    return tuple(int(np.count_nonzero(countable & (rank < k))) for k in ks)


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """-log softmax(logits)[label] of each image, (N,) float64. NaN where a logit is NaN or the largest is infinite."""
    logits, labels, _ = _checked(logits, labels, None)
    logits = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):  # inf - inf, reported as NaN
        shifted = logits - logits.max(axis=1, keepdims=True)
    return np.log(np.exp(shifted).sum(axis=1)) - np.take_along_axis(shifted, labels[:, None], axis=1)[:, 0]


def softmax(logits: np.ndarray) -> np.ndarray:
    """The probabilities (N, classes) of logits, in float64."""
    logits = np.asarray(logits, np.float64)
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


@dataclass
class MetricSum:
    """Loss and top-k counts over images seen so far; add batches with `update`, ranks with `+`.

    The rates are shares from 0 to 1, the loss is the mean cross entropy; all are NaN before the first image.
    With fewer than five classes top5 is the share of images without NaN, since every class is among the first five.
    """

    loss_sum: float = 0.0
    top1_correct: int = 0
    top5_correct: int = 0
    num_images: int = 0

    def update(self, logits, labels, valid=None):
        """Add a batch; see `topk_correct` for the arguments."""
        logits, labels, valid = _checked(logits, labels, valid)
        logits, labels = logits[valid], labels[valid]
        top1, top5 = topk_correct(logits, labels)
        self.loss_sum += float(cross_entropy(logits, labels).sum())
        self.top1_correct += top1
        self.top5_correct += top5
        self.num_images += len(labels)

    def __add__(self, other):
        return MetricSum(
            self.loss_sum + other.loss_sum,
            self.top1_correct + other.top1_correct,
            self.top5_correct + other.top5_correct,
            self.num_images + other.num_images,
        )

    @property
    def loss(self):
        """Mean cross entropy in nats."""
        return self._per_image(self.loss_sum)

    @property
    def top1(self):
        """Share of images whose label has the largest logit."""
        return self._per_image(self.top1_correct)

    @property
    def top5(self):
        """Share of images whose label is among the five largest logits."""
        return self._per_image(self.top5_correct)

    def _per_image(self, total):
        return total / self.num_images if self.num_images else float("nan")


@dataclass(frozen=True, eq=False)
class ConfusionSum:
    """Which class was taken for which, over images seen so far; batches and ranks are added in place.

    An image with a NaN among its logits is wrong and was taken for no class: it counts in `images` and nowhere else.

    Attributes:
        matrix: (classes, classes) int64; rows are the true class, columns the class of the largest logit, the lower
            index among equal ones.
        images: (classes,) int64, by true class.
        top5_correct: (classes,) int64, by true class, as `topk_correct` counts.
    """

    matrix: np.ndarray
    images: np.ndarray
    top5_correct: np.ndarray

    @classmethod
    def of(cls, num_classes):
        """Nothing counted yet."""
        return cls(*(np.zeros(shape, np.int64) for shape in ((num_classes, num_classes), num_classes, num_classes)))

    def update(self, logits, labels, valid=None):
        """Add a batch, in place; see `topk_correct` for the arguments."""
        logits, labels, valid = _checked(logits, labels, valid)
        if logits.shape[1] != len(self.images):
            raise ValueError(f"logits of {logits.shape[1]} classes do not add to {len(self.images)} classes")
        np.add.at(self.images, labels[valid], 1)
        countable = valid & ~np.isnan(logits).any(axis=1)
        logits, labels = logits[countable], labels[countable]
        np.add.at(self.matrix, (labels, logits.argmax(axis=1)), 1)
        np.add.at(self.top5_correct, labels[_rank_of_label(logits, labels) < 5], 1)

    def add_ranks(self, ranks):
        """Add what the other ranks have counted; every one of them gets the same sums."""
        for counts in (self.matrix, self.images, self.top5_correct):
            for start in range(0, len(counts), _ROWS_AT_ONCE):
                rows = counts[start : start + _ROWS_AT_ONCE]
                rows[...] = ranks.gather(rows).sum(axis=0)

    @property
    def correct(self):
        """(classes,) int64: the images of each class whose label has the largest logit."""
        return self.matrix.diagonal()


def _rank_of_label(logits, labels):
    """How many classes come before the label: those of a larger logit, and of an equal one with a lower index."""
    of_label = np.take_along_axis(logits, labels[:, None], axis=1)
    larger = logits > of_label
    tied_before = (logits == of_label) & (np.arange(logits.shape[1]) < labels[:, None])
    return np.count_nonzero(larger | tied_before, axis=1)


def _checked(logits, labels, valid):
    """Return the three as arrays of matching shapes, `valid` being all true when None."""
    logits, labels = np.asarray(logits), np.asarray(labels)
    valid = np.ones(labels.shape, bool) if valid is None else np.asarray(valid, bool)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or valid.shape != labels.shape:
        raise ValueError(
            f"logits {logits.shape}, labels {labels.shape} and valid {valid.shape} must be (N, classes), (N,) and (N,)"
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < logits.shape[1]:
        raise ValueError(f"labels {labels.min()} ... {labels.max()} must be in 0 ... {logits.shape[1] - 1}")
    return logits, labels, valid
