"""Coarse and fine weight splitting (CFWS): the centre tap as an INT8 1x1 of its own, beside the 3x3.

    conv3x3(W) = conv1x1(coarse) + conv3x3(fine),  coarse = floor(W_centre / q + 1/2) q,  q = max |W_centre| / 127
    fine = W - coarse in the centre

`coarse` lies on its own INT8 grid, so it is exact. `fine` has what is left, which is at most q / 2 in the centre, and a
grid of its own that is as much finer as the centre tap was larger than the other weights.
Source: arXiv:2312.10588.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from mindrepvgg.models.variants import Variant

_LARGEST = 127

# Decibels from which a split is worth a convolution more.
_WORTH = 6.0


class Split(NamedTuple):
    """A kernel (out, in / groups, k, k) in two: the sum of both, `coarse` in the centre, is the kernel exactly.

    Attributes:
        coarse: (out, in / groups, 1, 1).
        fine: of the kernel's shape.
        gain: decibels by which rounding `fine` makes less noise than rounding the kernel would.
    """

    coarse: np.ndarray
    fine: np.ndarray
    gain: float


def split_centre(kernel, per_channel: bool) -> Split:
    """Split a kernel's centre tap.

    Args:
        kernel: (out, in / groups, k, k), k odd, float32 or float64; it stays as it is.
        per_channel: whether an output channel has a grid of its own, or the kernel one for all.

    Returns:
        Two arrays of the kernel's type.
    """
    middle = kernel.shape[-1] // 2
    centre = kernel[:, :, middle : middle + 1, middle : middle + 1]
    step = np.abs(centre.astype(np.float64)).max((1, 2, 3), keepdims=True) / _LARGEST
    if not per_channel:
        step = step.max(keepdims=True)
    steps = np.floor(np.divide(centre, step, out=np.zeros(centre.shape), where=step > 0) + 0.5)
    # In the kernel's own type: the difference of two numbers within a factor of 2 is exact.
    coarse = (steps * step).astype(kernel.dtype)
    fine = kernel.copy()
    fine[:, :, middle : middle + 1, middle : middle + 1] -= coarse
    return Split(coarse, fine, _gain(kernel, fine, per_channel))


def _gain(kernel, fine, per_channel) -> float:
    """20 log10 of the ratio of both grids' steps; with a grid for each channel, of the root of their mean squares."""
    before, after = (np.abs(array.reshape(len(array), -1).astype(np.float64)).max(1) for array in (kernel, fine))
    if not per_channel:
        before, after = before.max(keepdims=True), after.max(keepdims=True)
    before, after = (before**2).sum(), (after**2).sum()
    if not after:
        return math.inf if before else 0.0
    return 10 * math.log10(before / after)


def split_layers(variant: Variant, arrays, names, per_channel: bool) -> dict[str, np.ndarray]:
    """Return the arrays of the deploy form with some blocks' kernels split; `build_onnx` writes both convolutions."""
    changed = dict(arrays)
    for spec in variant.block_specs():
        if spec.name in names:
            found = split_centre(arrays[f"{spec.fused}.weight"], per_channel)
            changed[f"{spec.fused}.weight"], changed[f"{spec.fused}.coarse.weight"] = found.fine, found.coarse
    return changed


def split_gains(variant: Variant, arrays, per_channel: bool) -> dict[str, float]:
    """Block -> the gain of splitting it, in dB; blocks of a 1x1 kernel are left out, having a centre tap alone."""
    return {
        spec.name: split_centre(arrays[f"{spec.fused}.weight"], per_channel).gain
        for spec in variant.block_specs()
        if spec.kernel_size > 1
    }


def worth_splitting(variant: Variant, arrays, per_channel: bool) -> tuple[str, ...]:
    """The blocks whose weights gain so much by being split that a convolution more is worth it."""
    return tuple(name for name, gain in split_gains(variant, arrays, per_channel).items() if gain >= _WORTH)


def extra_multiplications(variant: Variant, names, image_size) -> float:
    """The share of multiplications that splitting some blocks adds, over those of all convolutions.

    Args:
        variant: the network's layout.
        names: the blocks that are split.
        image_size: (height, width) of the pictures.
    """
    height, width = image_size
    all_of_them = extra = 0
    for spec in variant.block_specs():
        height, width = (-(-side // spec.stride) for side in (height, width))
        taps = height * width * math.prod(spec.kernel_shape[:2])
        all_of_them += taps * spec.kernel_size**2
        extra += taps * (spec.name in names)
    return extra / all_of_them
