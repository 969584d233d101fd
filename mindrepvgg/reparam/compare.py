"""How far two arrays lie apart, over the largest of one."""

from __future__ import annotations

import numpy as np


def difference(expected, actual, out=None):
    """(largest absolute difference, the same over the largest expected magnitude), computed in float64.

    out: a float64 array for the differences, `expected` itself where it is not needed afterwards.
    """
    scale = largest(expected)
    with np.errstate(invalid="ignore"):  # infinite on both sides: NaN, which is no agreement
        max_abs = largest(np.subtract(expected, actual, out=out, dtype=np.float64))
    return max_abs, max_abs / scale if scale else (0.0 if max_abs == 0 else np.inf)


def largest(array):
    """The largest magnitude, without a copy; NaN when there is one."""
    return float(np.maximum(array.max(), -array.min()))
