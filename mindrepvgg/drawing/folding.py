"""What folding does to a block: the kernels of its branches, and the one kernel that they become."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mindrepvgg.drawing.style import BLUE, GREY, INK, ORANGE, picture, title

_MOSAIC = 16  # channels of the mosaic, in and out
_PANEL, _BETWEEN = 2.45, 0.42  # inches
_MOST_NUMBERS = 49  # entries of a kernel that are written out


def draw_fold(branches: Mapping[str, np.ndarray], folded: np.ndarray, target: Any, heading: str, below: str) -> None:
    """Draw the kernels of a block's branches, a plus between them, and the kernel that they are folded into, as a PNG.

    Above is one kernel with its numbers, below the kernels of the first channels. The colours mean the same everywhere.

    Args:
        branches: the kernel (out, in, kh, kw) of each branch with its BN, by what the branch is; all of one shape.
        folded: the kernel of the one convolution.
        target: a path or a binary stream.
        heading, below: the title, and the line below it.
    """
    from matplotlib.colors import LinearSegmentedColormap

    kernels = {**branches, "folded: one convolution": folded}
    channel = _telling_channel(list(branches.values()))
    cmap = LinearSegmentedColormap.from_list("signed", [BLUE, "white", ORANGE])
    limit = max(float(np.abs(kernel[:_MOSAIC, :_MOSAIC]).max()) for kernel in kernels.values())
    count = len(kernels)
    width, height = 0.75 + count * (_PANEL + _BETWEEN), 2 * _PANEL + 1.65
    with picture(target, width, height) as figure:
        title(figure, heading, below)
        rows = {
            f"one kernel: input {channel}, output {channel}": 0.3 + _PANEL + 0.3,
            f"{min(_MOSAIC, folded.shape[0])} outputs, {min(_MOSAIC, folded.shape[1])} inputs": 0.3,
        }
        for row, (label, bottom) in enumerate(rows.items()):
            figure.text(0.3 / width, (bottom + _PANEL / 2) / height, label, rotation=90, ha="center", va="center")
            for column, (name, kernel) in enumerate(kernels.items()):
                left = 0.6 + column * (_PANEL + _BETWEEN)
                axes = figure.add_axes((left / width, bottom / height, _PANEL / width, _PANEL / height))
                last = column == count - 1
                shown = kernel[channel, channel] if row == 0 else _mosaic(kernel)
                # The root makes small weights visible beside the identity's.
                colours = np.sign(shown) * np.sqrt(np.abs(shown) / limit)
                axes.imshow(colours, cmap=cmap, vmin=-1, vmax=1, interpolation="nearest", aspect="auto")
                if row == 0 and shown.size <= _MOST_NUMBERS:
                    _write_numbers(axes, shown, limit)
                _frame(axes, INK if last else GREY, 2 if last else 0.8)
                if row == 0:
                    axes.set_title(name, fontsize=11, fontweight="bold" if last else "normal")
                if not last:
                    sign = "+" if column < count - 2 else "="
                    place = (left + _PANEL + _BETWEEN / 2) / width, (bottom + _PANEL / 2) / height
                    figure.text(*place, sign, fontsize=20, ha="center", va="center", color=GREY)


def _telling_channel(kernels):
    """The channel whose own kernel has something in every branch: where the smallest branch is largest."""
    count = min(kernels[0].shape[:2])
    sizes = [[np.abs(kernel[channel, channel]).max() for channel in range(count)] for kernel in kernels]
    return int(np.min(sizes, axis=0).argmax())


def _mosaic(kernel):
    """The kernels of the first outputs (downwards) and inputs (to the right) side by side, a gap between them."""
    part = kernel[:_MOSAIC, :_MOSAIC]
    out, channels, height, width = part.shape
    tiles = np.full((out, height + 1, channels, width + 1), np.nan)
    tiles[:, :height, :, :width] = part.transpose(0, 2, 1, 3)
    return tiles.reshape(out * (height + 1), channels * (width + 1))[:-1, :-1]


def _write_numbers(axes, kernel, limit):
    for (row, column), value in np.ndenumerate(kernel):
        colour = "white" if abs(value) > 0.5 * limit else INK
        text = "0" if value == 0 else f"{value:.2f}"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=12 if kernel.size <= 9 else 7)


def _frame(axes, colour, width):
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set(visible=True, color=colour, linewidth=width)
