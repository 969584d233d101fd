"""Which layers of a network stay in float, so that INT8 keeps its accuracy: as few of the worst as do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mindrepvgg.deployment.engine import OnnxEngine
from mindrepvgg.evaluation.evaluate import evaluate


@dataclass(frozen=True)
class Attempt:
    """An INT8 file with some layers `kept` in float; top1 and the `drop` from the float file's in percent and points.

    agreement: the share of images that it puts in the same class as the float file.
    """

    kept: tuple[str, ...]
    top1: float
    drop: float
    agreement: float
    path: Path = field(repr=False)

    def describe(self) -> str:
        """The layers in float, in words."""
        return f"{', '.join(self.kept)} in float" if self.kept else "every layer in INT8"

    def to_dict(self) -> dict:
        """Plain types, for JSON."""
        return {"kept": list(self.kept), "top1": self.top1, "drop": self.drop, "agreement": self.agreement}


class Judge:
    """A function: the path of an ONNX file and the layers it keeps in float -> `Attempt`, on a loader's images.

    reference: the `Evaluation` of the float file at `float_path`, with which it is compared.
    """

    def __init__(self, float_path, loader, show_progress=False):
        self._loader, self._show = loader, show_progress
        self.reference, self._classes = self._judge(float_path)

    def _judge(self, path):
        engine, classes = OnnxEngine(path), []

        def run(images):
            logits = engine(images)
            classes.append(logits.argmax(1))
            return logits

        found = evaluate(run, self._loader, self._show)
        of_images = np.concatenate(classes)[: self._loader.num_images]
        return found, np.delete(of_images, sorted(self._loader.bad_images.of(0)))

    def __call__(self, path, kept) -> Attempt:
        found, classes = self._judge(path)
        agreement = float((classes == self._classes).mean())
        # From the counts: a difference of two rounded percentages may miss the target by a rounding.
        drop = 100 * (self.reference.correct - found.correct) / found.num_images
        return Attempt(tuple(kept), found.top1, drop, agreement, path)


def fewest(count: int, passes: Callable[[int], bool]) -> int | None:
    """The least k below `count` with passes(k) and not passes(k - 1), by bisection; None where there is none.

    passes must be true from some k on; where it is not, k is one of the places where it becomes true, and both k and
    k - 1 have been asked.
    """
    if passes(0):
        return 0
    fails, good = 0, count
    while good - fails > 1:
        middle = (fails + good) // 2
        if passes(middle):
            good = middle
        else:
            fails = middle
    return good if good < count else None


class Search:
    """Makes INT8 files in `folder` and judges them; `attempts` holds all of them in the order they were made."""

    def __init__(self, quantizer, judge, folder, bias_correction=False):
        self.attempts = []
        self._quantizer, self._judge, self._folder = quantizer, judge, folder
        self._bias_correction = bias_correction

    def keep(self, kept) -> Attempt:
        """The file with these layers in float."""
        path = Path(self._folder, f"attempt{len(self.attempts)}.onnx")
        integer = [name for name in self._quantizer.layers if name not in kept]
        self._quantizer.write(path, integer, self._bias_correction)
        self.attempts.append(self._judge(path, kept))
        return self.attempts[-1]

    def fewest(self, worst_first, target_drop) -> Attempt:
        """The first layers of `worst_first` in float, as few as lose at most `target_drop` points of top-1.

        Where no number of them does, what lost least; at least one layer is INT8.
        """
        found = {}

        def passes(count):
            found[count] = self.keep(worst_first[:count])
            return found[count].drop <= target_drop

        count = fewest(len(worst_first), passes)
        return min(found.values(), key=lambda attempt: attempt.drop) if count is None else found[count]
