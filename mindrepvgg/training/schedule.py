"""The learning rate of every step of a run, as one array computed before the run starts.

The rates are those of MindCV, timm and PyTorch, to float32. Why not their code: MindCV's one_cycle has no form with one
rate an epoch and its polynomial no lower end, and a run of ours keeps the schedule that it began with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# one_cycle: the share of the run that rises, and what part of lr it rises from. Source: PyTorch's OneCycleLR.
_RISE = 0.3
_START = 1 / 25

_PART = 2**20  # steps; a multiple of what a processor computes at once, so that no bit depends on it


# How cosine and polynomial end. 1: at min_lr in their last step, as mindrepvgg 0.1 had it. 2: a step before min_lr, as
# MindCV, timm and PyTorch have it. A run keeps the one that it began with.
SCHEDULE = 2


class _Decay(NamedTuple):
    """What a curve is drawn from: steps (n,) int and epochs (n,) float64 since the warm-up, the number of all..."""

    step: np.ndarray
    epoch: np.ndarray
    total: int
    length: int
    lr: float
    min_lr: float
    rate: float
    milestones: Sequence[float]
    num_cycles: int
    cycle_decay: float
    schedule: int

    @property
    def span(self):
        """The steps from the decay's first to the one that would have min_lr."""
        return self.length if self.schedule == SCHEDULE else max(self.length - 1, 1)

    def falling(self, factor):
        """The factor times lr, but not below min_lr."""
        return np.maximum(self.lr * factor, self.min_lr)


def _between(first, last, weight):
    """`first` at weight 1, `last` at weight 0."""
    # Exact at both ends; last + (first - last) * weight rounds at weight 1.
    return first * weight + last * (1 - weight)


def _half_cosine(progress):
    """1 at progress 0, 0 at progress 1."""
    return 0.5 * (1 + np.cos(np.pi * progress))


def _cosine(decay):
    cycle, step = np.divmod(decay.step, decay.length)
    peak = decay.falling(decay.cycle_decay**cycle)
    rates = _between(peak, decay.min_lr, _half_cosine(step / decay.span))
    return np.where(cycle < decay.num_cycles, rates, decay.min_lr)


def _step(decay):
    return decay.falling(decay.rate ** (decay.step // decay.length))


def _multi_step(decay):
    passed = np.searchsorted(np.sort(decay.milestones), decay.epoch, side="right")
    return decay.falling(decay.rate**passed)


def _exponential(decay):
    return decay.falling(decay.rate**decay.epoch)


def _polynomial(decay):
    progress = np.minimum(decay.step / decay.span, 1.0)
    return _between(decay.lr, decay.min_lr, (1 - progress) ** decay.rate)


def _one_cycle(decay):
    total = decay.total
    peak = _RISE * total - 1
    rising = _between(_START * decay.lr, decay.lr, _half_cosine(decay.step / peak))
    falling = _between(decay.lr, decay.min_lr, _half_cosine((decay.step - peak) / (total - 1 - peak)))
    return np.where(decay.step <= peak, rising, falling)


def _constant(decay):
    return np.full(len(decay.step), decay.lr)


# By scheduler: the function of a _Decay that gives the rates of its steps, (n,) float64.
CURVES = {
    "cosine_decay": _cosine,
    "step_decay": _step,
    "multi_step_decay": _multi_step,
    "exponential_decay": _exponential,
    "polynomial_decay": _polynomial,
    "one_cycle": _one_cycle,
    "constant": _constant,
}


def learning_rates(
    *,
    scheduler: str,
    lr: float,
    steps_per_epoch: int,
    epoch_size: int,
    min_lr: float = 0.0,
    warmup_epochs: int = 0,
    warmup_factor: float = 0.0,
    decay_epochs: int | None = None,
    decay_rate: float = 0.1,
    multi_step_decay_milestones: Sequence[float] = (30, 60, 90),
    num_cycles: int = 1,
    cycle_decay: float = 1.0,
    lr_epoch_stair: bool = False,
    schedule: int = SCHEDULE,
) -> np.ndarray:
    """Learning rate of each step: a line up to `lr`, then the scheduler's curve.

    With W = warmup_epochs * steps_per_epoch and f = warmup_factor, step t < W has lr * (f + (1 - f) * t / W). After it,
    with s = t - W, e = s / steps_per_epoch and D = decay_epochs * steps_per_epoch (None: all steps after W):
        cosine_decay: c * peak + (1 - c) * min_lr, c = (1 + cos(pi * p)) / 2, p = (s mod D) / D, in cycle
            k = floor(s / D) of num_cycles from peak = max(lr * cycle_decay ** k, min_lr); min_lr after the last cycle
        step_decay: lr * decay_rate ** floor(s / D)
        multi_step_decay: lr * decay_rate ** (how many multi_step_decay_milestones are at most e)
        exponential_decay: lr * decay_rate ** e
        polynomial_decay: c * lr + (1 - c) * min_lr, c = (1 - p) ** decay_rate, p = min(s / D, 1)
        one_cycle: half a cosine from lr / 25 to lr over 30 % of the run, another half to min_lr over the rest
        constant: lr
    The powers of decay_rate stop at min_lr where they would fall below it. With lr_epoch_stair every step of an epoch
    has the rate of its first.
    Without it, step 0 has exactly warmup_factor * lr (when W > 0), step W, unless with one_cycle, exactly lr, and the
    last step of one_cycle exactly min_lr. The cosine comes to min_lr in step W + num_cycles * D, the polynomial in step
    W + D: a run that ends there has no step of min_lr.

    Args: the recipe's keys of the same names, which `Recipe` has checked, and:
        steps_per_epoch: steps of an epoch.
        schedule: 1 for a run that mindrepvgg 0.1 began: D - 1 takes the place of D in both p.

    Returns:
        (epoch_size * steps_per_epoch,) float32, computed in float64.
    """
    total = epoch_size * steps_per_epoch
    warmup = warmup_epochs * steps_per_epoch
    decay = total - warmup if decay_epochs is None else decay_epochs * steps_per_epoch

    rates = np.empty(total, np.float32)
    for step in _parts(warmup):
        rates[step] = lr * (warmup_factor + (1 - warmup_factor) * step / warmup)
    for step in _parts(total - warmup):
        rates[warmup + step] = CURVES[scheduler](
            _Decay(
                step=step,
                epoch=step / steps_per_epoch,
                total=total - warmup,
                length=max(decay, 1),
                lr=lr,
                min_lr=min_lr,
                rate=decay_rate,
                milestones=multi_step_decay_milestones,
                num_cycles=num_cycles,
                cycle_decay=cycle_decay,
                schedule=schedule,
            )
        )
    return rates[::steps_per_epoch].repeat(steps_per_epoch) if lr_epoch_stair else rates


def _parts(count):
    """The numbers below `count` in arrays of at most _PART: all at once, a curve's own arrays take gigabytes."""
    return (np.arange(start, min(start + _PART, count)) for start in range(0, count, _PART))


def scaled_lr(lr: float, lr_per_batch: int | None, global_batch: int) -> float:
    """`lr`, meant for a global batch of `lr_per_batch` images, scaled linearly to one of `global_batch`; None: `lr`.

    Source: Goyal et al., arXiv:1706.02677, section 2.1.
    """
    return lr if lr_per_batch is None else lr * global_batch / lr_per_batch
