"""What became of each class: accuracies, confusions, a table and a picture of them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mindrepvgg.drawing.confusion import draw_confusion
from mindrepvgg.errors import UserError
from mindrepvgg.evaluation.metrics import ConfusionSum
from mindrepvgg.files import atomic_write

# Of the files that a validation writes: how their names end.
SUFFIXES = {"per_class": (".csv",), "confusion": (".csv", ".png"), "mistakes": (".png",), "report": (".html",)}


class ClassResult(NamedTuple):
    """What became of a class.

    Attributes:
        name: the class's.
        images: its images.
        correct: those of them that were right.
        top1, top5: accuracies in percent; None without images.
        taken_for: the class that it was most often taken for; None when it was never taken for another.
        times: how often it was taken for that class.
    """

    name: str
    images: int
    correct: int
    top1: float | None
    top5: float | None
    taken_for: str | None
    times: int


@dataclass(frozen=True, eq=False)
class ClassReport:
    """The `ConfusionSum` of a validation with the classes' names, which are in the order of their indices."""

    names: tuple[str, ...]
    confusion: ConfusionSum

    @property
    def results(self) -> list[ClassResult]:
        """A `ClassResult` for each class, in their order; `taken_for` is the first of several equally frequent ones."""
        others = self.confusion.matrix.copy()
        others.flat[:: len(others) + 1] = 0
        columns = (self.confusion.images, self.confusion.correct, self.confusion.top5_correct, others.argmax(axis=1))
        found = []
        for label, (images, correct, top5, other) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
            times = int(others[label, other])
            top1, rate5 = (100 * correct / images, 100 * top5 / images) if images else (None, None)
            taken_for = self.names[other] if times else None
            found.append(ClassResult(self.names[label], images, correct, top1, rate5, taken_for, times))
        return found

    def worst(self, count=3) -> list[ClassResult]:
        """The classes of the lowest top-1, the lowest first, among those with a wrong image."""
        wrong = [result for result in self.results if result.correct < result.images]
        return sorted(wrong, key=lambda result: result.top1 or 0)[:count]

    def format(self) -> str:
        """One line: the worst classes."""
        shown = [
            f"{result.name!r} {result.top1:.1f}%"
            + (f" ({result.times} of {result.images} taken for {result.taken_for!r})" if result.times else "")
            for result in self.worst()
        ]
        return f"worst classes: {', '.join(shown)}" if shown else "no class has an image wrong"

    def write_classes(self, path):
        """Write a line for each class as CSV, atomically; the columns are those of `ClassResult`."""
        rows = [
            [
                *result[:3],
                *("" if rate is None else f"{rate:.4f}" for rate in (result.top1, result.top5)),
                result.taken_for or "",
                result.times,
            ]
            for result in self.results
        ]
        _write_csv(path, ["class", "images", "correct", "top1", "top5", "most_taken_for", "times"], rows)

    def write_confusion(self, path, network=""):
        """Write the confusion matrix, rows the true class, atomically: CSV with names, or a drawing as PNG.

        network: what was validated on what, for the drawing's title.
        """
        if check_suffix(path, SUFFIXES["confusion"]).suffix.lower() == ".png":
            self.draw(path, network)
            return
        rows = ([name, *row] for name, row in zip(self.names, self.confusion.matrix.tolist(), strict=True))
        _write_csv(path, ["true class", *self.names], rows)

    def draw(self, target, network=""):
        """Draw the confusion matrix, see `drawing.confusion.draw_confusion`."""
        draw_confusion(self.confusion.matrix, self.confusion.images, self.names, target, network)


def check_suffix(path, suffixes) -> Path:
    """Return the path. Raises UserError unless its name ends in one of the suffixes."""
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{path} must end in {' or '.join(suffixes)}")
    return path


def _write_csv(path, header, rows):
    with atomic_write(path, "w") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
