"""How far two arrays, or two outputs, lie apart: the largest difference, and the same over the largest magnitude."""

from __future__ import annotations

import math

import numpy as np

from mindrepvgg.errors import UserError


def difference(expected: np.ndarray, actual: np.ndarray) -> tuple[float, float]:
    """Compare two arrays of one shape, in float64.

    Args:
        expected: the array whose largest magnitude is the measure.
        actual: the other one.

    Returns:
        The largest absolute difference, and the same over the largest magnitude; NaN where either array has one.
    """
    scale, max_abs = magnitudes(expected, actual)
    return max_abs, relative(max_abs, scale)


def magnitudes(expected: np.ndarray, actual: np.ndarray) -> tuple[float, float]:
    """The largest magnitude of an array, and of its difference from another; arguments as for `difference`."""
    scale = largest(expected)
    with np.errstate(invalid="ignore"):  # infinite on both sides: NaN, which is no agreement
        return scale, largest(np.subtract(expected, actual, dtype=np.float64))


def relative(max_abs: float, scale: float) -> float:
    """A largest difference over a largest magnitude; over zero it is infinite, unless the difference is zero."""
    return max_abs / scale if scale else (0.0 if max_abs == 0 else np.inf)


def largest(array: np.ndarray) -> float:
    """The largest magnitude, without a copy; NaN when there is one."""
    return float(np.maximum(array.max(), -array.min())) + 0.0  # of zeros, 0.0 and not -0.0


def leaves(output) -> list[np.ndarray]:
    """The arrays in a network's output, whatever it is nested in."""
    if hasattr(output, "asnumpy"):
        return [output.asnumpy()]
    values = output.values() if isinstance(output, dict) else output
    return [leaf for value in values for leaf in leaves(value)]


def worst_difference(expected: list[np.ndarray], actual: list[np.ndarray]) -> tuple[float, float]:
    """Compare the leaves of two outputs: the worst of each of `difference`'s two numbers; NaN where one leaf has it."""
    differences = [difference(a, b) for a, b in zip(expected, actual, strict=True)]
    # np.max and not max(), which passes over a NaN that does not come first.
    max_abs, max_rel = np.max(differences, axis=0).tolist()
    return max_abs, max_rel


def is_tolerance(rtol: float) -> bool:
    """Whether a number says what may differ; nothing would pass NaN, and anything would pass infinity."""
    return 0 <= rtol < math.inf


def check_tolerance(rtol: float):
    """Raise UserError for what is no tolerance."""
    if not is_tolerance(rtol):
        raise UserError(f"rtol (={rtol}) must be a number of at least 0")
