"""What became of each class: accuracies, confusions, a table and a picture of them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mindrepvgg.errors import UserError
from mindrepvgg.evaluation.metrics import ConfusionSum
from mindrepvgg.files import atomic_write
from mindrepvgg.text import counted

TABLE, TABLE_OR_PICTURE = (".csv",), (".csv", ".png")

# Up to this many classes, a drawn matrix has names and numbers; beyond, a cell is hardly larger than a pixel.
_MOST_LABELLED = 30
_LONGEST_LABEL = 24
_DPI = 110


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

    def write_confusion(self, path):
        """Write the confusion matrix, rows the true class, atomically: CSV with names, or a drawing as PNG."""
        if check_suffix(path, TABLE_OR_PICTURE).suffix.lower() == ".png":
            self._draw(path)
            return
        rows = ([name, *row] for name, row in zip(self.names, self.confusion.matrix.tolist(), strict=True))
        _write_csv(path, ["true class", *self.names], rows)

    def _draw(self, path):
        """Draw the matrix, coloured by the share of the true class's images."""
        # Drawn without pyplot: no global state, no display.
        from matplotlib.colors import PowerNorm
        from matplotlib.figure import Figure

        matrix, count = self.confusion.matrix, len(self.names)
        share = matrix / self.confusion.images.clip(1)[:, None]
        labelled = count <= _MOST_LABELLED
        side = 3 + 0.5 * count if labelled else max(8, 1.25 * count / _DPI)  # inches; the rest is for the legend
        figure = Figure(figsize=(side, side), dpi=_DPI, layout="constrained")
        axes = figure.subplots()
        # The root makes a few confusions among many classes visible.
        norm = PowerNorm(1 if labelled else 1 / 3, 0, 1)
        picture = axes.imshow(share, cmap="Blues", norm=norm, interpolation="nearest")
        figure.colorbar(picture, ax=axes, shrink=0.7, label="share of the true class's images")
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        correct, images = int(self.confusion.correct.sum()), int(self.confusion.images.sum())
        axes.set_title(f"{correct} of {counted(images, 'image')} right, {counted(count, 'class')}")
        if labelled:
            labels = [name if len(name) <= _LONGEST_LABEL else f"{name[: _LONGEST_LABEL - 1]}…" for name in self.names]
            axes.set_xticks(range(count), labels, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
            axes.set_yticks(range(count), labels, parse_math=False)
            for (row, column), number in _cells(matrix):
                colour = "white" if share[row, column] > 0.5 else "black"
                axes.text(column, row, str(number), ha="center", va="center", color=colour, fontsize=9)
        with atomic_write(path) as stream:
            figure.savefig(stream, format="png")


def check_suffix(path, suffixes) -> Path:
    """Return the path. Raises UserError unless its name ends in one of the suffixes."""
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{path} must end in {' or '.join(suffixes)}")
    return path


def _cells(matrix):
    """(row, column) and the number of every cell that is not zero."""
    rows, columns = matrix.nonzero()
    return zip(zip(rows, columns, strict=True), matrix[rows, columns], strict=True)


def _write_csv(path, header, rows):
    with atomic_write(path, "w") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
