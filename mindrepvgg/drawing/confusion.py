"""The confusion matrix: with names and numbers for a few classes; for many, what is wrong with its names beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mindrepvgg.drawing.style import BLUE, GREY, INK, ORANGE, PALE, picture, title
from mindrepvgg.text import counted

# Up to this many classes, the matrix has names and numbers; beyond, a cell is hardly larger than a pixel.
_MOST_LABELLED = 30
_LONGEST_LABEL, _LONGEST_LISTED = 24, 20  # letters of a name, at the matrix and in the list
_LISTED = 20  # confusions, by name


def draw_confusion(
    matrix: np.ndarray, images: np.ndarray, names: Sequence[str], target: Any, network: str = ""
) -> None:
    """Draw a confusion matrix as a PNG: what is right in blue, what is wrong in orange.

    Args:
        matrix: (classes, classes), counts; rows are the true class, columns the predicted one.
        images: (classes,), of each true class; an image of no predicted class is in no column.
        names: of the classes.
        target: a path or a binary stream.
        network: for the title.
    """
    correct, total = int(np.trace(matrix)), int(images.sum())
    head = network or "confusion matrix"
    below = f"{correct:,} of {counted(total, 'image')} right, {counted(len(names), 'class')}"
    share = matrix / images.clip(1)[:, None]
    (_draw_cells if len(names) <= _MOST_LABELLED else _draw_points)(matrix, share, names, target, (head, below))


def _short(name, most=_LONGEST_LABEL):
    """A class's name, cut to what a label has room for."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _draw_cells(matrix, share, names, target, heading):
    """A cell for each pair of classes, with its number."""
    from matplotlib.colors import LinearSegmentedColormap

    count, labels = len(names), list(map(_short, names))
    longest = max(map(len, labels))
    side, room = max(3.2, 0.46 * count), 0.55 + 0.075 * longest  # inches: of the matrix, of the names beside it
    tilted = longest > 3
    below = 0.65 + 0.055 * longest * tilted
    width, height = max(room + side + 0.4, 4.6), side + below + 0.8
    with picture(target, width, height) as figure:
        axes = figure.add_axes((room / width, below / height, side / width, side / height))
        title(figure, *heading)
        right = np.eye(count, dtype=bool)
        for colour, hidden in ((BLUE, ~right), (ORANGE, right)):
            cmap = LinearSegmentedColormap.from_list("share", ["white", colour])
            axes.imshow(np.ma.array(share, mask=hidden), cmap=cmap, vmin=0, vmax=1 if colour == BLUE else 0.5)
        tilt: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if tilted else {}
        axes.set_xticks(range(count), labels, **tilt)
        axes.set_yticks(range(count), labels)
        axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
        axes.grid(False)
        axes.grid(which="minor", color=PALE, lw=0.8)
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        for row, column in zip(*matrix.nonzero(), strict=True):
            dark = share[row, column] > (0.5 if row == column else 0.3)
            number = str(matrix[row, column])
            size = 10 if len(number) < 4 else 8
            axes.text(column, row, number, ha="center", va="center", color="white" if dark else INK, fontsize=size)


def _draw_points(matrix, share, names, target, heading):
    """A point for each confusion; beside it the most frequent ones by name, and how many classes are how good."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    rows, columns = wrong.nonzero()
    # By the share of the class: among classes of one size the same as by number.
    order = np.argsort(-share[rows, columns], kind="stable")
    rows, columns = rows[order], columns[order]
    count = len(names)
    with picture(target, 13, 8.2) as figure:
        axes = figure.add_axes((0.065, 0.085, 0.51, 0.81))
        title(figure, *heading)
        axes.plot([0, count - 1], [0, count - 1], color=BLUE, lw=1.2, alpha=0.5)
        sizes = 2 + 90 * share[rows, columns]
        axes.scatter(columns, rows, sizes, color=ORANGE, alpha=0.6, lw=0)
        listed = list(zip(rows.tolist(), columns.tolist(), strict=True))[:_LISTED]
        for number, (row, column) in enumerate(listed, 1):
            # Away from the diagonal, beside which most of them are.
            aside: dict[str, Any] = {"xytext": (5, 2)} if column > row else {"xytext": (-5, -7), "ha": "right"}
            place: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7.5, "fontweight": "bold", **aside}
            axes.annotate(str(number), (column, row), color=INK, **place)
        axes.set_xlim(-0.01 * count, 1.01 * count)
        axes.set_ylim(1.01 * count, -0.01 * count)
        axes.set_xlabel("predicted class, by index")
        axes.set_ylabel("true class, by index; a point's area: the share of its images")
        _list_confusions(figure, matrix, share, names, listed)
        _draw_histogram(figure.add_axes((0.635, 0.085, 0.345, 0.16)), matrix, share)


def _list_confusions(figure, matrix, share, names, listed):
    left, top, step = 0.615, 0.875, 0.0275
    figure.text(left, top + 0.012, "most frequent confusions" if listed else "no confusions", fontweight="bold")
    for number, (row, column) in enumerate(listed, 1):
        y = top - step * number
        of = round(matrix[row, column] / share[row, column])
        figure.text(left + 0.018, y, str(number), ha="right", fontsize=8.5, fontweight="bold", color=ORANGE)
        name, other = (_short(names[label], _LONGEST_LISTED) for label in (row, column))
        figure.text(left + 0.024, y, f"{name} taken for {other}", fontsize=8.5)
        figure.text(0.985, y, f"{matrix[row, column]} of {of}", ha="right", fontsize=8.5, color=GREY)


def _draw_histogram(axes, matrix, share):
    """How many classes have which accuracy."""
    known = share.sum(axis=1) > 0
    axes.hist(100 * share.diagonal()[known], bins=np.arange(0, 101, 5), color=BLUE, rwidth=0.9)
    axes.set_xlabel("top-1 of a class (%)")
    axes.set_ylabel("classes")
    axes.grid(axis="x", visible=False)
