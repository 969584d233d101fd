"""The search for the layers that have to stay in float, so that INT8 keeps its accuracy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mindrepvgg.deployment.engine import OnnxEngine
from mindrepvgg.evaluation.loop import evaluate


@dataclass(frozen=True)
class Attempt:
    """An INT8 file that was evaluated.

    Attributes:
        kept: the layers in float.
        top1: in percent.
        drop: points of top-1 below the float file's.
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


class Evaluator:
    """A function that evaluates an INT8 file: (path, the layers it keeps in float) -> `Attempt`.

    Args:
        float_path: the float file, which INT8 files are compared with.
        loader: the images to evaluate on.
        show_progress: whether to show a bar.

    Attributes:
        reference: the `Evaluation` of the float file.
    """

    def __init__(self, float_path, loader, show_progress: bool = False):
        self._loader, self._show = loader, show_progress
        self.reference, self._classes = self._evaluate(float_path)

    def _evaluate(self, path):
        """Return a file's `Evaluation`, and the class that it puts each readable image in."""
        engine, classes = OnnxEngine(path), []

        def run(images):
            logits = engine(images)
            classes.append(logits.argmax(1))
            return logits

        found = evaluate(run, self._loader, self._show)
        of_images = np.concatenate(classes)[: self._loader.num_images]
        return found, np.delete(of_images, sorted(self._loader.bad_images.of(0)))

    def __call__(self, path, kept) -> Attempt:
        """Run the INT8 file at `path`, in which the layers `kept` are float, and compare its accuracy."""
        found, classes = self._evaluate(path)
        agreement = float((classes == self._classes).mean())
        # From the counts: the difference of two rounded percentages may miss the target by a rounding.
        drop = 100 * (self.reference.correct - found.correct) / found.num_images
        return Attempt(tuple(kept), found.top1, drop, agreement, path)


def fewest(count: int, passes: Callable[[int], bool]) -> int | None:
    """Find, by bisection, the least number that passes.

    Args:
        count: the numbers are below it.
        passes: is expected to be true from some number on. Where it is not, the result is a number that passes while
            the one before it does not.

    Returns:
        A number k; `passes` was asked for k, and for k - 1 unless k is 0. None where no number passes.
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
    """Makes INT8 files and evaluates them.

    Args:
        quantizer: a `Quantizer`.
        evaluate: a function (path, layers in float) -> `Attempt`, as an `Evaluator`.
        folder: where the files are written.
        bias_correction: whether to correct their biases.

    Attributes:
        attempts: all files so far, in their order.
    """

    def __init__(self, quantizer, evaluate, folder, bias_correction: bool = False):
        self.attempts: list[Attempt] = []
        self._quantizer, self._evaluate, self._folder = quantizer, evaluate, folder
        self._bias_correction = bias_correction

    def keep(self, kept) -> Attempt:
        """Make and evaluate the file with these layers in float."""
        path = Path(self._folder, f"attempt{len(self.attempts)}.onnx")
        integer = [name for name in self._quantizer.layers if name not in kept]
        self._quantizer.write(path, integer, self._bias_correction)
        self.attempts.append(self._evaluate(path, kept))
        return self.attempts[-1]

    def fewest(self, worst_first, target_drop) -> Attempt:
        """Find how many of the worst layers have to stay in float.

        Args:
            worst_first: all layers, the worst one first.
            target_drop: points of top-1 that may be lost.

        Returns:
            The file with as few of them in float as lose at most `target_drop`; where none does, the one that lost
            least. At least one layer is INT8.
        """
        found = {}

        def passes(count):
            found[count] = self.keep(worst_first[:count])
            return found[count].drop <= target_drop

        count = fewest(len(worst_first), passes)
        return min(found.values(), key=lambda attempt: attempt.drop) if count is None else found[count]
