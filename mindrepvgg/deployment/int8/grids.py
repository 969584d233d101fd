"""The grids of INT8, by NumPy: scales and zero points of activations and weights, and what is rounded to them.

Activations are uint8 with a zero point, weights int8 and symmetric, biases int32 in units of input scale times weight
scale: the grids that onnxruntime's quantize_static recommends for x86 CPUs. The tests hold them against its files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mindrepvgg.errors import UserError
from mindrepvgg.text import quoted

METHODS = ("minmax", "entropy", "percentile")

_LEVELS = 255  # steps of a uint8 activation
# The largest integer of a weight, by its bits. 7 bits are onnxruntime's reduced range: 64, not 63.
_LARGEST_WEIGHT = {8: 127, 7: 64}
_TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class IntegerOptions:
    """How real numbers become integers.

    Attributes:
        method: the range that an activation's 256 steps span: 'minmax' the whole range, 'percentile' the range that
            holds `percentile` of a hundred values, 'entropy' the range that keeps the distribution best.
        percentile: of the method 'percentile'.
        per_channel: one scale for the weights of each output channel; otherwise one for a layer.
        weight_bits: 8, or 7 for x86 CPUs without VNNI: their int8 arithmetic adds pairs of products in 16 bits, which
            overflow with 8-bit weights.
        linear_per_channel: whether `per_channel` concerns the linear layer too; Ascend's tools want one scale there.
    """

    method: str = "minmax"
    percentile: float = 99.99
    per_channel: bool = True
    weight_bits: int = 8
    linear_per_channel: bool = True

    def __post_init__(self):
        if self.method not in METHODS:
            raise UserError(f"method (={quoted(self.method)}) must be one of {', '.join(METHODS)}")
        if not 50 < self.percentile <= 100:
            raise UserError(f"percentile (={self.percentile}) must be above 50 and at most 100")
        if self.weight_bits not in _LARGEST_WEIGHT:
            raise UserError(f"weight_bits (={self.weight_bits}) must be 7 or 8")

    @property
    def largest_weight(self) -> int:
        """The largest integer of a weight; the smallest is its negative."""
        return _LARGEST_WEIGHT[self.weight_bits]


class Rounded(NamedTuple):
    """A layer's weights as integers.

    Attributes:
        weight: int8, of the kernel's shape.
        scale: float32, (out,) or (): what one step of `weight` stands for.
        bias: int32, (out,), in units of input scale * `scale`; None where the layer has none.
    """

    weight: np.ndarray
    scale: np.ndarray
    bias: np.ndarray | None

    def real(self) -> np.ndarray:
        """The weights that the integers stand for, float32."""
        return self.weight * over_outputs(self.scale, self.weight.ndim)


def over_outputs(scale, ndim) -> np.ndarray:
    """A scale (out,) or () in a shape that broadcasts to weights (out, ...) of `ndim` axes."""
    return np.reshape(scale, (-1, *[1] * (ndim - 1)))


def activation_grid(low, high) -> tuple[np.ndarray, np.ndarray]:
    """(scale, zero point) of 256 steps from min(low, 0) to max(high, 0); float32 and uint8, both of shape ()."""
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    scale = (high - low) / _LEVELS
    if scale < _TINY:  # nothing but zeros
        return np.array(1, np.float32), np.array(0, np.uint8)
    return np.array(scale, np.float32), np.array(np.round(-low / scale), np.uint8)


def round_activation(x, grid) -> np.ndarray:
    """Activations on their grid, in float32."""
    scale, zero_point = grid
    integers = np.clip(np.rint(x / scale) + zero_point, 0, _LEVELS)
    return ((integers - zero_point) * scale).astype(np.float32)


def round_weights(kernel, bias, input_scale, options: IntegerOptions) -> Rounded:
    """Round a layer's weights.

    A scale is larger than its weights need where the bias, in int32, would not fit its type otherwise: in a channel of
    next to no weights.

    Args:
        kernel: (out, ...).
        bias: (out,), or None.
        input_scale: of the layer's input.
        options: how.
    """
    largest = np.abs(kernel.reshape(len(kernel), -1).astype(np.float64)).max(1)
    scale = largest / options.largest_weight
    if bias is not None:
        scale = np.maximum(scale, np.abs(bias) / (float(input_scale) * 2.0**30))
    if not options.per_channel:
        scale = scale.max()
    scale = np.where(scale < _TINY, 1.0, scale).astype(np.float32)
    limit = options.largest_weight
    weight = np.clip(np.rint(kernel / over_outputs(scale, kernel.ndim)), -limit, limit).astype(np.int8)
    if bias is None:
        return Rounded(weight, scale, None)
    steps = np.rint(bias.astype(np.float64) / bias_scale(input_scale, scale))
    limits = np.iinfo(np.int32)
    return Rounded(weight, scale, np.clip(steps, limits.min, limits.max).astype(np.int32))


def bias_scale(input_scale, scale) -> np.ndarray:
    """What one step of a bias stands for, float32, of the shape of the weights' scale."""
    return np.asarray(np.float32(input_scale) * np.asarray(scale, np.float32), np.float32)
