"""The search for the repairs, and the layers in float, by which INT8 keeps its accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mindrepvgg.deployment.engine import OnnxEngine, open_engine
from mindrepvgg.deployment.engine_base import ONNXRUNTIME
from mindrepvgg.deployment.int8.progress import INT8_SHARE, Progress
from mindrepvgg.deployment.int8.repairs import Builder, Repairs
from mindrepvgg.evaluation.loop import evaluate
from mindrepvgg.text import counted


@dataclass(frozen=True)
class Attempt:
    """An INT8 file that was evaluated.

    Attributes:
        repairs: what it was made with.
        top1: in percent.
        drop: points of top-1 below the float file's.
        agreement: the share of images that it puts in the same class as the float file.
        step: what this file was to try, in words.
    """

    repairs: Repairs
    top1: float
    drop: float
    agreement: float
    path: Path = field(repr=False)
    step: str = ""

    @property
    def kept(self) -> tuple[str, ...]:
        """The layers in float."""
        return self.repairs.keep_float

    def better_than(self, other: Attempt) -> bool:
        """Whether it loses less; where both lose the same, whether more images get the float file's class."""
        return (self.drop, -self.agreement) < (other.drop, -other.agreement)

    def to_dict(self) -> dict:
        """Plain types, for JSON."""
        return {
            "step": self.step,
            "kept": list(self.kept),
            "split": list(self.repairs.split),
            "repairs": self.repairs.words(),
            "top1": self.top1,
            "drop": self.drop,
            "agreement": self.agreement,
        }


class Evaluator:
    """A function that evaluates an INT8 file: (path, its `Repairs`, the step) -> `Attempt`.

    Args:
        float_path: the float file, which INT8 files are compared with.
        loader: the images to evaluate on.
        progress: the work's bar.
        float_logits: the float file's logits of each of the loader's batches, where they are known already.

    Attributes:
        reference: the `Evaluation` of the float file.
    """

    def __init__(self, float_path, loader, progress: Progress, float_logits=None):
        self._loader, self._progress = loader, progress
        known = iter(float_logits or ())
        engine = OnnxEngine(float_path) if float_logits is None else lambda _: next(known)
        self.reference, self._classes = self._evaluate(engine, 1)

    @property
    def num_images(self) -> int:
        """The images of one evaluation."""
        return self._loader.num_images

    def _evaluate(self, engine, share=INT8_SHARE):
        """Return the `Evaluation` of a function of images, and the class that it puts each readable image in."""
        classes = []

        def run(images):
            logits = engine(images)
            classes.append(logits.argmax(1))
            self._progress.step(len(images) * share)
            return logits

        found = evaluate(run, self._loader)
        of_images = np.concatenate(classes)[: self._loader.num_images]
        return found, np.delete(of_images, sorted(self._loader.bad_images.of(0)))

    def __call__(self, path, repairs: Repairs, step: str = "", engine: str = ONNXRUNTIME) -> Attempt:
        """Run the INT8 file at `path` and compare its accuracy."""
        found, classes = self._evaluate(open_engine(path, engine))
        agreement = float((classes == self._classes).mean())
        # From the counts: the difference of two rounded percentages may miss the target by a rounding.
        drop = 100 * (self.reference.correct - found.correct) / found.num_images
        return Attempt(repairs, found.top1, drop, agreement, path, step)


def fewest(count: int, passes: Callable[[int], bool], most: float = math.inf) -> int | None:
    """Find, by bisection, the least number that passes.

    Args:
        count: the numbers are below it.
        passes: is expected to be true from some number on. Where it is not, the result is a number that passes while
            the one before it does not.
        most: how often `passes` may be asked. With fewer than it takes, the result passes and may not be the least.

    Returns:
        A number k; `passes` was asked for k, and for k - 1 unless k is 0. None where no number passes.
    """
    if most < 1:
        return None
    if passes(0):
        return 0
    asked, fails, good = 1, 0, count
    while good - fails > 1 and asked < most:
        middle = (fails + good) // 2
        asked += 1
        if passes(middle):
            good = middle
        else:
            fails = middle
    return good if good < count else None


class Search:
    """Makes INT8 files and evaluates them.

    Args:
        builder: makes the files.
        evaluate: a function (path, repairs, step) -> `Attempt`, as an `Evaluator`.
        progress: the work's bar.
        budget: how many files may be evaluated; None: as many as it takes.

    Attributes:
        attempts: all files so far, in their order.
    """

    def __init__(self, builder: Builder, evaluate, progress: Progress, budget: int | None = None):
        self.attempts: list[Attempt] = []
        self._builder, self._evaluate, self._progress = builder, evaluate, progress
        self._budget = math.inf if budget is None else budget

    @property
    def left(self) -> float:
        """How many files may still be evaluated."""
        return self._budget - len(self.attempts)

    def attempt(self, repairs: Repairs, step: str) -> Attempt:
        """Make and evaluate the file with these repairs."""
        most = "" if self._budget == math.inf else f" of at most {self._budget}"
        self._progress.phase(f"file {len(self.attempts) + 1}{most}, {step}")
        if self.attempts:  # the first is expected from the beginning
            self._progress.expect(self._builder.pictures(repairs) + self._evaluate.num_images * INT8_SHARE)
        self.attempts.append(self._evaluate(self._builder.write(repairs), repairs, step))
        return self.attempts[-1]

    def repair(self, start: Repairs, target_drop: float) -> Attempt:
        """Try the repairs one after the other, those that cost no time first; each stays where it loses less.

        Args:
            start: the repairs that are there from the beginning.
            target_drop: points of top-1 that may be lost; with no more than these lost, nothing further is tried.

        Returns:
            The best file.
        """
        best = self.attempt(start, "as it is" if start == Repairs() else "as asked for")
        for change, step in self._steps(start):
            if best.drop <= target_drop or self.left < 1:
                break
            changed = change(best.repairs)
            if changed != best.repairs and (found := self.attempt(changed, step)).better_than(best):
                best = found
        return best

    def _steps(self, start) -> Iterator[tuple[Callable[[Repairs], Repairs], str]]:
        """Yield what to change, and what that is in words."""
        if not start.zero_dead and (dead := self._builder.dead()):
            count = sum(map(len, dead.values()))
            yield lambda repairs: replace(repairs, zero_dead=True), f"{counted(count, 'dead channel')} zeroed"
        yield lambda repairs: replace(repairs, bias_correction=True), "biases corrected"
        yield lambda repairs: replace(repairs, equalize=True), "equalised"
        yield self._with_split, "centre split"

    def _with_split(self, repairs) -> Repairs:
        return replace(repairs, split=repairs.split or self._builder.worth_splitting(repairs))

    def fewest(self, best: Attempt | None, repairs: Repairs, worst_first, target_drop) -> Attempt:
        """Find how many of the worst layers have to stay in float.

        Args:
            best: the file without any in float, where it was evaluated already.
            repairs: the other repairs.
            worst_first: all layers, the worst one first.
            target_drop: points of top-1 that may be lost.

        Returns:
            The file with as few of them in float as lose at most `target_drop`; where none does, the one that lost
            least. At least one layer is INT8.
        """
        found = {} if best is None else {0: best}

        def passes(count):
            if count not in found:
                kept = tuple(worst_first[:count])
                found[count] = self.attempt(replace(repairs, keep_float=kept), f"{count} in float")
            return found[count].drop <= target_drop

        count = fewest(len(worst_first), passes, self.left + len(found))
        return min(found.values(), key=lambda attempt: attempt.drop) if count is None else found[count]
