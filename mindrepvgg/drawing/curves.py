"""The curves of a run: loss, accuracy and learning rate over the epochs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mindrepvgg.drawing.style import BLUE, GREEN, GREY, ORANGE, VIOLET, picture, plain_numbers, title

LEAST_CLASSES_FOR_TOP5 = 20  # with fewer, almost any network has the label among its first five classes
_SMOOTHED = 40  # a mean of so many pieces of the training curve is drawn over it


def draw_curves(records: Sequence[dict], target: Any, name: str = "", num_classes: int | None = None) -> None:
    """Draw a run's curves as a PNG.

    Args:
        records: of the run's log, see `evaluation.run_log`.
        target: a path or a binary stream.
        name: what was trained on what, for the title.
        num_classes: top-5 is drawn from 20 classes on; None: never.
    """
    from matplotlib.ticker import MaxNLocator

    trained = [record for record in records if record["event"] == "train" and record["loss"] is not None]
    judged = [record for record in records if record["event"] == "validate"]
    averaged = [record for record in records if record["event"] == "validate_ema"]
    rates = {"top1": ("top-1", judged, BLUE)}
    if num_classes is not None and num_classes >= LEAST_CLASSES_FOR_TOP5:
        rates["top5"] = ("top-5", judged, GREEN)
    # Fixed margins: a layout that measures every label takes as long again as the drawing, after every epoch.
    with picture(target, 12, 3.7) as figure:
        loss, accuracy, rate = figure.subplots(1, 3)
        figure.subplots_adjust(left=0.055, right=0.985, bottom=0.145, top=0.78, wspace=0.22)
        title(figure, name or "training", _verdict(judged))
        _draw_loss(loss, trained, judged)
        for key, (label, found, colour) in rates.items():
            _draw_points(accuracy, found, key, label, colour)
        if averaged:
            _draw_points(accuracy, averaged, "top1", "top-1 of the moving average", VIOLET)
        values = [[record[key] for record in found] for key, (_, found, _) in rates.items()]
        _set_window(accuracy, [*values, [record["top1"] for record in averaged]], lowest=True, bounds=(0, 100))
        if len(accuracy.lines) > 1:
            accuracy.legend(loc="lower right")
        accuracy.set_ylabel("top-1 (%)" if len(rates) == 1 else "accuracy (%)")
        rate.plot([r["progress"] for r in trained], [r["lr"] for r in trained], color=GREY, lw=1.8)
        rate.set_ylabel("learning rate")
        rate.set_ylim(bottom=0)
        end = max([r["progress"] for r in trained] + [r["epoch"] for r in judged], default=1)
        for axes in (loss, accuracy, rate):
            axes.set_xlim(0, 1.02 * end or 1)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            plain_numbers(axes.xaxis)
            plain_numbers(axes.yaxis)


def _verdict(judged) -> str:
    if not judged:
        return "not validated yet"
    best, last = max(judged, key=lambda record: record["top1"]), judged[-1]
    at_last = "" if best is last else f"; {last['top1']:.2f}% after epoch {last['epoch']}"
    return f"best top-1 {best['top1']:.2f}%, after epoch {best['epoch']}{at_last}"


def _draw_loss(axes, trained, judged):
    """The training loss, pale, its running mean over it, and the validation's loss."""
    progress, values = [r["progress"] for r in trained], [r["loss"] for r in trained]
    shown = []
    if trained:
        axes.plot(progress, values, color=ORANGE, lw=0.7, alpha=0.35)
        pieces = min(_SMOOTHED, max(1, len(trained) // 3))
        x, y = ([np.mean(part) for part in np.array_split(column, pieces)] for column in (progress, values))
        axes.plot(x, y, color=ORANGE, lw=1.8, label="training")
        shown.append(y)
    if judged:
        _draw_points(axes, judged, "loss", "validation", BLUE)
        shown.append([r["loss"] for r in judged])
    _set_window(axes, shown, lowest=False, bounds=(0, np.inf))
    axes.set_ylabel("loss")
    if axes.lines:
        axes.legend(loc="upper right")


def _draw_points(axes, records, key, label, colour):
    size = 4 if len(records) <= 40 else 0
    epochs = [record["epoch"] for record in records]
    axes.plot(epochs, [record[key] for record in records], "o-", ms=size, lw=1.8, color=colour, label=label)


def _set_window(axes, curves, lowest, bounds):
    """Set the range of y so that untrained first epochs do not flatten the rest.

    The first tenth of a curve is left out of the range where the others span less than half of the whole.
    lowest: whether the bad end, which is written on the axis where it is cut off, is the lower one.
    """
    curves = [np.asarray(values, float) for values in curves]
    curves = [values[np.isfinite(values)] for values in curves if np.isfinite(values).any()]
    kept = [_settled(values) for values in curves]
    if not kept:
        return
    low, high = min(values.min() for values in kept), max(values.max() for values in kept)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1
    low, high = max(low - room, bounds[0]), min(high + room, bounds[1])
    axes.set_ylim(low, high if high > low else low + 1)
    worst = min(values.min() for values in curves) if lowest else max(values.max() for values in curves)
    if lowest and worst < low:
        _say_from(axes, f"\N{DOWNWARDS ARROW} from {worst:.1f}", 0.03, "bottom")
    if not lowest and worst > high:
        _say_from(axes, f"\N{UPWARDS ARROW} from {worst:.2f}", 0.98, "top")


def _say_from(axes, text, height, side):
    """Say from where a curve comes that starts outside; it is steep there, so that the place beside it is free."""
    axes.text(0.3, height, text, transform=axes.transAxes, color=GREY, fontsize=9, va=side)


def _settled(values):
    """The values without the first tenth, where the others span less than half of all."""
    rest = values[max(1, len(values) // 10) :]
    if len(values) >= 4 and np.ptp(rest) < np.ptp(values) / 2:
        return rest
    return values
