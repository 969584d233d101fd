"""Taking one update after the other: batches in, a loss out, with the time that each part took."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from mindrepvgg.runtime.compile_cache import kept_graphs
from mindrepvgg.training.monitor import Meter, Profile, Progress


class Stepper:
    """Takes the updates of a run, each from as many batches as are accumulated.

    run: the `Trainer`. The first update compiles the graphs; how long that took is said. `meter` measures from the
    second on, and the profiler records from there.
    """

    def __init__(self, run, progress: Progress, profile: Profile | None = None):
        self.meter = Meter()
        self._run = run
        self._progress = progress
        self._profile = profile
        self._compiled = False

    def take(self, batches: Iterator):
        """Take one update; its (loss, whether it was made), both on the device."""
        run = self._run
        last = run.recipe.gradient_accumulation_steps - 1
        start = time.perf_counter()
        with self._kept_graphs():
            for number in range(last + 1):
                with self.meter.waiting():
                    images, targets = next(batches)
                outcome = run.step(images, targets) if number == last else run.step.accumulate(images, targets)
                self.meter.count(len(targets) * run.ranks.size)
        if not self._compiled:
            outcome[0].asnumpy()
            self._compiled = True
            self._progress.say(f"first step, with graph compilation: {time.perf_counter() - start:.1f} s")
            self.meter.restart()
            if self._profile:
                self._profile.start()
        elif self._profile:
            self._profile.step()
        return outcome

    def _kept_graphs(self):
        """The compile cache, of the step's graphs alone: validation and the rest come in no fixed order."""
        run = self._run
        if self._compiled or not run.recipe.compile_cache:
            return contextlib.nullcontext()
        facts = [run.recipe.to_dict(), run.steps_per_epoch, run.ranks.size, run.device]
        return kept_graphs(run.folder.compile_cache, facts)
