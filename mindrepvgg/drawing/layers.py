"""What INT8 does to each layer: how uneven its weights are, which of its inputs are dead, and how noisy it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mindrepvgg.drawing.style import BLUE, GREEN, GREY, INK, ORANGE, RED, VIOLET, picture, plain_numbers, title

_LAYER, _LEAST = 0.34, 8.0  # inches: of a layer, and of the whole width


def draw_layers(
    names: Sequence[str],
    spreads: Sequence[float],
    gains: Sequence[float | None],
    dead: Sequence[float],
    noise: Mapping[str, Sequence[float]],
    target: Any,
    heading: str,
    below: str,
) -> None:
    """Draw the layers side by side as a PNG: ratios of their weights, dead input channels, and ratios in dB.

    Args:
        names: of the layers, from the first to the last.
        spreads: of each layer, the largest weight over the weights' standard deviation.
        gains: of each layer, that of the identity's BN; None where there is no such branch.
        dead: of each layer, the share of its input channels that are constant, 0 to 1.
        noise: a curve of signal-to-noise ratios in dB for each of at most four names.
        target: a path or a binary stream.
        heading, below: the title, and the line below it.
    """
    places = range(len(names))
    width = max(_LEAST, 1.2 + _LAYER * len(names))
    with picture(target, width, 8.6) as figure:
        title(figure, heading, below)
        ratios, channels, decibels = figure.subplots(3, sharex=True, height_ratios=(3, 1.4, 4))
        figure.subplots_adjust(left=0.85 / width, right=1 - 0.15 / width, bottom=0.12, top=0.875, hspace=0.32)
        ratios.bar(places, spreads, color=BLUE, label="largest weight over the weights' deviation")
        known = [(place, gain) for place, gain in zip(places, gains, strict=True) if gain]
        if known:
            ratios.plot(*zip(*known, strict=True), "v", color=RED, label="gain of the identity's BN")
        ratios.set_yscale("log")
        plain_numbers(ratios.yaxis)
        ratios.set_ylabel("ratio")
        channels.bar(places, [100 * share for share in dead], color=GREY)
        channels.set_ylim(0, 100)
        channels.set_ylabel("dead inputs (%)")
        if not any(dead):
            channels.text(0.5, 0.5, "none", transform=channels.transAxes, ha="center", va="center", color=GREY)
        for (label, values), colour in zip(noise.items(), (BLUE, ORANGE, GREEN, VIOLET), strict=False):
            decibels.plot(places, values, "o-", ms=3.5, lw=1.4, color=colour, label=label)
        decibels.axhline(0, color=INK, lw=0.8)
        decibels.set_ylabel("signal to noise (dB)")
        decibels.set_xticks(places, names, rotation=90)
        decibels.set_xlim(-0.7, len(names) - 0.3)
        for axes in (ratios, decibels):
            axes.grid(axis="x", visible=False)
            # Above the axes: within them it would hide what stands out.
            axes.legend(ncols=4, loc="lower left", bbox_to_anchor=(-0.01, 0.98))
        channels.grid(axis="x", visible=False)
