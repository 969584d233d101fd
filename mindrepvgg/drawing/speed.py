"""Accuracy over speed: networks in their forms, under their engines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from mindrepvgg.drawing.style import BLUE, GREEN, GREY, ORANGE, RED, VIOLET, picture, plain_numbers, title

_COLOURS = {"RepVGG": BLUE, "ResNet": ORANGE, "QARepVGG": GREEN, "MobileOne": VIOLET}
_MARKERS, _LINES = "os^D", ("-", "--", "-.", ":")

_LETTERS = 9  # points
# Where a name may stand beside its point, the first free place first: to the right or left, above or below; in points.
_PLACES = ((8, 4, "left"), (-8, 4, "right"), (-8, -11, "right"), (8, -11, "left"))


class SpeedPoint(NamedTuple):
    """A network as it was measured.

    Attributes:
        network, family: names.
        way: the form and the engine, in words.
        images_per_second: its speed.
        top1: its accuracy in percent; None where it is not known.
    """

    network: str
    family: str
    way: str
    images_per_second: float
    top1: float | None


def draw_speed(points: Sequence[SpeedPoint], target: Any, heading: str, below: str, xlabel: str, ylabel: str) -> None:
    """Draw accuracy over speed as a PNG: a colour for each family, a line and a marker for each form and engine.

    Points of one network lie on a level, and its name stands once, at the fastest. A network without a known accuracy
    is a vertical line at its speed.

    Args:
        points: what was measured.
        target: a path or a binary stream.
        heading, below: the title, and the line below it.
        xlabel, ylabel: what the axes show.
    """
    known = [point for point in points if point.top1 is not None]
    ways = list(dict.fromkeys((point.family, point.way) for point in known))
    with picture(target, 9, 5.6) as figure:
        axes = figure.add_axes((0.075, 0.11, 0.9, 0.74))
        title(figure, heading, below)
        axes.set_xscale("log")
        for family, way in ways:
            line = sorted((p.images_per_second, p.top1) for p in known if (p.family, p.way) == (family, way))
            number = [other for name, other in ways if name == family].index(way)
            style: dict[str, Any] = {"color": _COLOURS.get(family, RED), "marker": _MARKERS[number % len(_MARKERS)]}
            style |= {"ls": _LINES[number % len(_LINES)], "label": f"{family}, {way}" if way else family}
            axes.plot(*zip(*line, strict=True), lw=1.6, ms=6.5, **style)
        for point in points:
            if point.top1 is None:
                axes.axvline(point.images_per_second, color=GREY, lw=0.8, ls=":")
                aside: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
                text = point.network, (point.images_per_second, 0.02), (-10, 0)
                axes.annotate(*text, rotation=90, color=GREY, fontsize=8, **aside)
        _set_ticks(axes, [point.images_per_second for point in points])
        axes.margins(y=0.1)
        _write_names(axes, known)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        if known:
            axes.legend(loc="best")


def _write_names(axes, known):
    """Join the points of each network by a dotted line, and write its name at the fastest, where there is room."""
    axes.autoscale_view()
    scale = 72 / axes.figure.dpi
    taken = [axes.transData.transform((point.images_per_second, point.top1)) * scale for point in known]
    boxes = []
    for network in dict.fromkeys(point.network for point in known):
        own = [point for point in known if point.network == network]
        slow, fast = (pick(own, key=lambda point: point.images_per_second) for pick in (min, max))
        speeds = slow.images_per_second, fast.images_per_second
        axes.plot(speeds, (fast.top1, fast.top1), color=GREY, lw=0.7, ls=":", zorder=1)
        x, y = axes.transData.transform((fast.images_per_second, fast.top1)) * scale
        tried = [(place, _box(x, y, place, len(network))) for place in _PLACES]
        free = [entry for entry in tried if not any(_meets(entry[1], other, taken) for other in [*boxes, entry[1]])]
        (right, up, side), box = (free or tried)[0]
        boxes.append(box)
        style: dict[str, Any] = {"color": _COLOURS.get(fast.family, RED), "fontsize": _LETTERS, "ha": side}
        place = fast.images_per_second, fast.top1
        axes.annotate(network, place, xytext=(right, up), textcoords="offset points", **style)


def _box(x, y, place, letters):
    """The (left, bottom, right, top) of a name beside a point, in points."""
    right, up, side = place
    width = 0.65 * _LETTERS * letters
    left = x + right - (width if side == "right" else 0)
    return left, y + up, left + width, y + up + _LETTERS


def _meets(box, other, markers):
    """Whether a name's box meets another one, or has a marker in it."""
    left, bottom, right, top = box
    if any(left - 4 < x < right + 4 and bottom - 4 < y < top + 4 for x, y in markers):
        return True
    return box != other and left < other[2] and other[0] < right and bottom < other[3] and other[1] < top


def _set_ticks(axes, speeds):
    """Room for the names at the right, and ticks at 1, 2, 5, 10 ... as plain numbers."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xlim(0.85 * min(speeds), 1.45 * max(speeds))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axes.xaxis.set_minor_locator(NullLocator())
    plain_numbers(axes.xaxis)
    plain_numbers(axes.yaxis)
