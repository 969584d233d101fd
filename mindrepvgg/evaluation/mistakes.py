"""The worst mistakes of a validation: the wrong images of which the network was most sure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mindrepvgg.drawing.sheet import Line, draw_sheet
from mindrepvgg.drawing.style import BLUE, GREY, ORANGE
from mindrepvgg.evaluation.metrics import softmax
from mindrepvgg.text import counted, printable

MOST = 24  # on a sheet

_LONGEST_NAME = 200


class Mistake(NamedTuple):
    """An image that was taken for another class.

    Attributes:
        image_index: of the image in its source.
        file: what messages call it.
        true_class, predicted_class: the classes' names.
        confidence: the probability of the predicted class, from 0 to 1.
        true_confidence: that of the true class.
    """

    image_index: int
    file: str
    true_class: str
    predicted_class: str
    confidence: float
    true_confidence: float


class MistakeSum:
    """The mistakes of the largest confidence among the images seen so far; an image with a NaN logit is none.

    Args:
        most: how many are kept.

    Attributes:
        rows: (most, 5) float64: index, label, predicted class, confidence and the label's probability of each, the
            most confident first; confidence 0 where there is no further mistake.
    """

    def __init__(self, most: int = MOST):
        self.rows = np.zeros((most, 5))

    def update(self, indices, logits, labels, valid):
        """Add a batch.

        Args:
            indices: of the images in their source; at least as many as are valid.
            logits: (N, classes).
            labels: (N,), class indices.
            valid: (N,) bool, the images that count.
        """
        wrong = np.flatnonzero(valid & ~np.isnan(logits).any(axis=1) & (logits.argmax(axis=1) != labels))
        probabilities = softmax(logits[wrong])
        predicted = logits[wrong].argmax(axis=1)
        each = np.arange(len(wrong))
        columns = (np.asarray(indices)[wrong], labels[wrong], predicted)
        self._keep(np.stack([*columns, probabilities[each, predicted], probabilities[each, labels[wrong]]], axis=1))

    def add_ranks(self, ranks):
        """Add what the other ranks have found; every one of them gets the same mistakes."""
        found = ranks.gather(self.rows).reshape(-1, 5)
        self.rows = np.zeros_like(self.rows)
        self._keep(found)

    def _keep(self, rows):
        rows = np.concatenate([self.rows, rows])
        self.rows = rows[np.lexsort((rows[:, 0], -rows[:, 3]))][: len(self.rows)]

    def report(self, source, pictures_of) -> MistakeReport:
        """The mistakes with their pictures.

        Args:
            source: the images' `Source`.
            pictures_of: gives the pictures (n, H, W, C) uint8 of some images of the source, as the network saw them.
        """
        rows = self.rows[self.rows[:, 3] > 0]
        indices = rows[:, 0].astype(int)
        names = source.class_names
        found = tuple(
            Mistake(int(index), source.name(int(index)), names[int(label)], names[int(other)], float(sure), float(own))
            for index, label, other, sure, own in rows
        )
        return MistakeReport(found, pictures_of(source.take(indices)) if len(found) else None)


@dataclass(frozen=True, eq=False)
class MistakeReport:
    """The worst mistakes, the most confident first, and their pictures (n, H, W, C) uint8; None where there is none."""

    mistakes: tuple[Mistake, ...]
    pictures: np.ndarray | None

    def draw(self, target: Any, network: str = "") -> None:
        """Draw a sheet of them as a PNG.

        Args:
            target: a path or a binary stream.
            network: what was validated on what, for the title.
        """
        head = f"{network}: the worst mistakes" if network else "the worst mistakes"
        wrong = counted(len(self.mistakes), "wrong image")
        below = f"the {wrong} of which the network was most sure" if self.mistakes else "every image is right"
        pictures = [] if self.pictures is None else list(self.pictures)
        draw_sheet(pictures, [_caption(mistake) for mistake in self.mistakes], target, head, below, columns=6)


def _caption(mistake):
    return (
        Line(f"{mistake.confidence:.0%}: {printable(mistake.predicted_class, _LONGEST_NAME)}", ORANGE, True),
        Line(f"{mistake.true_confidence:.0%}: {printable(mistake.true_class, _LONGEST_NAME)} (true)", BLUE),
        Line(printable(Path(mistake.file).name, _LONGEST_NAME), GREY),
    )
