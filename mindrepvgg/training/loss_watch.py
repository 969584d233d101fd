"""The losses of a run: fetched from the device at intervals, averaged for the log, and watched for divergence."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from mindrepvgg.errors import TrainingError
from mindrepvgg.training.resume import Position
from mindrepvgg.training.step import LossScale

# Skipped updates in a row after which a run is given up: no scale is left to halve by then.
_MOST_SKIPPED = 30


class Losses:
    """The losses of the steps since the last log record; `position` keeps those that were fetched.

    Args:
        position: where the run stands.
        lr: (steps,) float32, the learning rate of each step of the run.
        loss_scale: None where the loss is not scaled.
        last_good: names the checkpoint to fall back on, for messages.
    """

    def __init__(self, position: Position, lr: np.ndarray, loss_scale: LossScale | None, last_good: Callable):
        self._position = position
        self._lr = lr
        self._loss_scale = loss_scale
        self._last_good = last_good
        self._on_device: list = []
        self._skipped_in_row = 0

    def add(self, outcome):
        """Take note of a step's (loss, whether the update was made), both still on the device."""
        self._on_device.append(outcome)

    def fetch(self, steps_done: int):
        """Fetch what is still on the device; a skipped update has no loss.

        Raises:
            TrainingError: a loss is not a number, or too many updates in a row were skipped; the step is named.
        """
        outcomes, self._on_device = self._on_device, []
        for step, (loss, done) in enumerate(outcomes, steps_done - len(outcomes) + 1):
            made = bool(done.asnumpy())
            value = float(loss.asnumpy()) if made else None
            self._position.interval_losses.append(value)
            self._position.skipped += not made
            self._skipped_in_row = 0 if made else self._skipped_in_row + 1
            if self._skipped_in_row >= _MOST_SKIPPED:
                raise self._diverged(f"{_MOST_SKIPPED} updates in a row overflowed, the last", step)
            if value is not None and not math.isfinite(value):
                raise self._diverged(f"the loss became {value}", step)

    def take_mean(self) -> float | None:
        """The mean of the losses fetched since the last call; None when every update was skipped."""
        losses = [loss for loss in self._position.interval_losses if loss is not None]
        self._position.interval_losses = []
        return float(np.mean(losses)) if losses else None

    def lr_of(self, step: int) -> float:
        """The learning rate of a step, counted from 1; a skipped update uses none up."""
        return float(self._lr[max(step - self._position.skipped, 1) - 1])

    def _diverged(self, what, step) -> TrainingError:
        scale = f", loss scale {self._loss_scale.value:g}" if self._loss_scale else ""
        return TrainingError(
            f"{what} at step {step} (epoch {self._position.epoch + 1}, learning rate {self.lr_of(step):.3g}{scale}); "
            f"the last good state is {self._last_good()}. Lower lr, lengthen warmup_epochs, or check the data"
        )
