"""The loop of a run: epochs of steps, the log, validation and checkpoints, and an end that loses nothing."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator

import numpy as np

from mindrepvgg.drawing.curves import draw_curves
from mindrepvgg.errors import RecipeError
from mindrepvgg.runtime.compile_cache import kept_graphs
from mindrepvgg.text import counted
from mindrepvgg.training.batches import DeviceQueue, host_batches
from mindrepvgg.training.checkpointer import Checkpointer
from mindrepvgg.training.loss_watch import Losses
from mindrepvgg.training.monitor import Meter, Profile, Progress, RunLog, StopRequest, estimate

# The share of the time spent waiting for data from which on it is said.
_MUCH_WAITING = 0.25
_STEPS_TO_ESTIMATE_FROM = 20


class Loop:
    """Trains to the end, or until it is asked to stop.

    Args:
        run: the `Trainer`, in which everything is built.
        log, progress: where the run is told.
        stop: the request to stop.
        profile: records the first steps; None for no profile.
    """

    def __init__(self, run, log: RunLog, progress: Progress, stop: StopRequest, profile: Profile | None):
        self.checkpoints = Checkpointer(run, log)
        self._run = run
        self._log = log
        self._progress = progress
        self._stop = stop
        self._stepper = Stepper(run, progress, profile)
        self._losses = Losses(run.position, run.lr, run.loss_scale, self.checkpoints.last_good)
        self._queue = self._device_queue()
        self._stopping = False
        self._said_waiting = self._said_no_curves = self._said_duration = False
        self._first_step, self._profiled = run.steps_done, profile is not None  # which takes its time

    def train(self):
        """Run the epochs that are left; a run that is stopped in the middle of one is saved as it is then."""
        recipe, position = self._run.recipe, self._run.position
        while position.epoch < recipe.epoch_size and not self._stopping:
            if self._train_epoch():
                position.epoch, position.step_in_epoch = position.epoch + 1, 0
                self._end_epoch()
            else:
                self.checkpoints.save_midway()
                self._draw()
        if position.epoch == recipe.epoch_size and recipe.precise_bn_steps:
            line = self.checkpoints.take_precise_bn()
            if line:
                self._progress.say(line)

    def _device_queue(self) -> DeviceQueue | None:
        """The queue the device fetches its batches from, None where they are handed over one by one."""
        run, recipe = self._run, self._run.recipe
        if not recipe.dataset_sink_mode or run.device != "Ascend":
            return None
        if not recipe.drop_remainder:
            raise RecipeError("dataset_sink_mode (=True) needs drop_remainder: the device takes batches of one size")
        batches = run.steps_per_epoch * recipe.gradient_accumulation_steps
        return DeviceQueue(run.train_loader, run.position.epoch, self._first_batch(), recipe.epoch_size, batches)

    def _first_batch(self) -> int:
        """The number of the next batch in the epoch under way."""
        return self._run.position.step_in_epoch * self._run.recipe.gradient_accumulation_steps

    def _train_epoch(self) -> bool:
        """Run the rest of the epoch under way; False when a request to stop cut it short."""
        run, recipe, position = self._run, self._run.recipe, self._run.position
        start = self._first_batch()
        batches = self._queue.batches(start) if self._queue else host_batches(run.train_loader, position.epoch, start)
        with contextlib.closing(batches):
            while position.step_in_epoch < run.steps_per_epoch:
                self._losses.add(self._stepper.take(batches))
                position.step_in_epoch += 1
                self._progress.step(position.epoch + 1, recipe.epoch_size)
                end_of_epoch = position.step_in_epoch == run.steps_per_epoch
                end_of_interval = end_of_epoch or run.steps_done % recipe.log_interval == 0
                if end_of_interval:
                    self._losses.fetch(run.steps_done)
                    self._log_interval()
                self._agree_to_stop(end_of_interval)
                if self._stopping and not end_of_epoch:
                    self._losses.fetch(run.steps_done)
                    break
        position.bad_images = run.ranks.union({*position.bad_images, *run.train_loader.bad_images.of(position.epoch)})
        return position.step_in_epoch == run.steps_per_epoch

    def _agree_to_stop(self, end_of_interval):
        """Take up a signal, alone after every step, or the folder's stop file; ranks ask each other after intervals."""
        run = self._run
        asked = self._stop.asked or (end_of_interval and run.ranks.is_first and run.folder.take_stop())
        if run.ranks.size == 1:
            self._stopping = asked
        elif end_of_interval:
            self._stopping = run.ranks.any(asked)

    def _log_interval(self):
        """Write what happened since the last record."""
        run, position = self._run, self._run.position
        loss, lr = self._losses.take_mean(), self._losses.lr_of(run.steps_done)
        speed, waiting = self._stepper.meter.read()
        scale = run.loss_scale
        scaling = {"loss_scale": scale.value, "skipped": position.skipped} if scale else {}
        self._log.write(
            "train",
            position.epoch + 1,
            run.steps_done,
            progress=run.steps_done / run.steps_per_epoch,
            loss=loss,
            lr=lr,
            **scaling,
            images_per_second=speed,
            data_wait=waiting,
        )
        self._progress.show(math.nan if loss is None else loss, speed)
        if not (self._said_duration or self._profiled) and run.steps_done - self._first_step >= _STEPS_TO_ESTIMATE_FROM:
            self._said_duration = True
            self._say_duration()
        if waiting > _MUCH_WAITING and not self._said_waiting:
            self._said_waiting = True
            self._progress.say(
                f"warning: {waiting:.0%} of the time goes into waiting for data, {speed:.0f} images/s come through; "
                f"raise num_parallel_workers (={run.train_loader.num_workers} in use), or store smaller images "
                "(mindrepvgg pack DATA_DIR PACKED --short_side PIXELS)"
            )

    def _say_duration(self):
        """Say how long the rest will take, as the steps so far were."""
        run, meter = self._run, self._stepper.meter
        left = len(run.lr) - run.steps_done
        if left and meter.total_images:
            seconds = meter.total_seconds / meter.total_images * run.images_per_step
            self._progress.say(f"{1000 * seconds:.0f} ms a step, {estimate(seconds, left)}")

    def _end_epoch(self):
        """Validate, save, and tell."""
        run, position = self._run, self._run.position
        run.statistics.average()
        self.checkpoints.check_finite()
        bad = self._take_bad_images()
        losses = [r["loss"] for r in self._log.records if r["event"] == "train" and r["epoch"] == position.epoch]
        losses = [loss for loss in losses if loss is not None]
        line = (
            f"epoch {position.epoch}/{run.recipe.epoch_size}: train loss {np.mean(losses) if losses else math.nan:.4f}"
        )
        line += f", {counted(bad, 'image')} unreadable" if bad else ""
        line += self.checkpoints.end_epoch()
        self._draw()
        self._stepper.meter.restart()
        self._progress.say(line)

    def _take_bad_images(self) -> int:
        """Log the images that could not be read in the epoch behind us; how many they are."""
        position, loader = self._run.position, self._run.train_loader
        bad, position.bad_images = position.bad_images, []
        if bad:
            files = [loader.source.name(index) for index in bad]
            self._log.write("bad_images", position.epoch, self._run.steps_done, count=len(bad), files=files)
            loader.bad_images.check(position.epoch - 1, bad)
        return len(bad)

    def _draw(self):
        """Draw the curves; a picture is not worth a run."""
        run, recipe = self._run, self._run.recipe
        if not self._log.records or not run.ranks.is_first:
            return
        try:
            name = f"{recipe.model} on {run.train_loader.source.title}"
            draw_curves(self._log.records, run.folder.curves, name, recipe.num_classes)
        except OSError as error:
            if not self._said_no_curves:
                self._said_no_curves = True
                self._progress.say(f"warning: the curves cannot be drawn: {error.filename}: {error.strerror}")


class Stepper:
    """Takes the updates of a run, each from as many batches as are accumulated.

    run: the `Trainer`. The first update compiles the graphs; how long that took is said. `meter` measures from the
    second on, and the profiler records from there. keep_graphs: let the recipe's compile cache be written.
    """

    def __init__(self, run, progress: Progress, profile: Profile | None = None, keep_graphs: bool = True):
        self.meter = Meter()
        self._run = run
        self._progress = progress
        self._profile = profile
        self._compiled = False
        self._keeps_graphs = keep_graphs and run.recipe.compile_cache

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
        if self._compiled or not self._keeps_graphs:
            return contextlib.nullcontext()
        facts = [run.recipe.to_dict(), run.steps_per_epoch, run.ranks.size, run.device]
        return kept_graphs(run.folder.compile_cache, facts)
