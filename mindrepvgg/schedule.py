"""The learning rate of every step of a run, as one array computed before the run starts."""

from __future__ import annotations

import numpy as np

# Each maps progress p through the decay, float64 in [0, 1], to the weight of `lr` against `min_lr`.
_CURVES = {
    "cosine_decay": lambda p: 0.5 * (1 + np.cos(np.pi * p)),
    "constant": np.ones_like,
}
SCHEDULERS = tuple(_CURVES)


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
) -> np.ndarray:
    """Learning rate of each step: a line up to `lr`, the scheduler's curve c from `lr` to `min_lr`, then level.

    With W = warmup_epochs * steps_per_epoch and D = decay_epochs * steps_per_epoch (None: all steps after W),
        t < W:   lr * (f + (1 - f) * t / W), f being warmup_factor
        t >= W:  lr * c(p) + min_lr * (1 - c(p)), p = min((t - W) / (D - 1), 1)
        cosine_decay: c(p) = (1 + cos(pi * p)) / 2;  constant: c(p) = 1, so min_lr and decay_epochs do not matter.
    Step 0 has exactly warmup_factor * lr (when W > 0), step W exactly lr, the decay's last step W + D - 1 exactly
    min_lr, as have all after it. A decay of a single step has lr.

    Returns (epoch_size * steps_per_epoch,) float32, computed in float64.
    Raises ValueError for a scheduler not in `SCHEDULERS`, less than one step, or warm-up and decay beyond the run.
    """
    total = epoch_size * steps_per_epoch
    warmup = warmup_epochs * steps_per_epoch
    decay = total - warmup if decay_epochs is None else decay_epochs * steps_per_epoch
    if scheduler not in _CURVES:
        raise ValueError(f"scheduler (={scheduler!r}) must be one of {', '.join(SCHEDULERS)}")
    if total < 1:
        raise ValueError(f"epoch_size (={epoch_size}) * steps_per_epoch (={steps_per_epoch}) must be at least 1 step")
    if min(warmup, decay) < 0 or warmup + decay > total:
        raise ValueError(f"warm-up ({warmup} steps) and decay ({decay} steps) must fit into the run ({total} steps)")

    rising = warmup_factor + (1 - warmup_factor) * np.arange(warmup) / max(warmup, 1)
    progress = np.minimum(np.arange(total - warmup) / max(decay - 1, 1), 1.0)
    weight = _CURVES[scheduler](progress)
    # lr * w + min_lr * (1 - w) is exact at both ends; min_lr + (lr - min_lr) * w rounds at w = 1.
    falling = lr * weight + min_lr * (1 - weight)
    return np.concatenate([lr * rising, falling]).astype(np.float32)
