"""Dead channels: constant on every picture, and read by weights that only make the grid of a kernel coarse.

A high learning rate and weight decay kill channels in training: after its ReLU such a channel is 0 everywhere. The BN
of its identity branch has variance 0, so its gain is gamma / sqrt(eps): hundreds. The gain multiplies nothing, but it
is the largest weight of the fused kernel, and on the grid that it needs the other weights round to 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mindrepvgg.models.variants import Variant

# A channel that varies by less than this, over its own size, is constant: float32's rounding.
_CONSTANT = 1e-6


@dataclass(frozen=True)
class Zeroed:
    """A network whose weights no longer read dead channels.

    Attributes:
        arrays: the network's arrays by name.
        dead: layer -> the input channels that were constant; layers without any are left out.
    """

    arrays: dict[str, np.ndarray]
    dead: dict[str, np.ndarray]

    @property
    def count(self) -> int:
        """Dead channels, counted in every layer that reads them."""
        return sum(map(len, self.dead.values()))


def constant_channels(low, high) -> np.ndarray:
    """The numbers of the channels whose lowest and highest values, each (channels,), are the same."""
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    return np.flatnonzero(high - low <= _CONSTANT * np.maximum(np.abs(low), np.abs(high)))


def zero_dead(variant: Variant, arrays, inputs) -> Zeroed:
    """Set the weights that read constant channels to zero, and put what they contribute into the bias.

    It is exact as long as a channel keeps its value. A channel that is 0 contributes nothing. One of another value
    contributes less at the border, where the padding is 0: there only the centre tap is taken out, which never lies on
    the padding.

    Args:
        variant: the network's layout.
        arrays: name -> array of the deploy form; they stay as they are.
        inputs: layer -> (lowest, highest) of each channel that it reads, two arrays (channels,). The stem reads
            pictures and is left alone.

    Returns:
        The changed arrays, each of its own type.
    """
    changed, dead = dict(arrays), {}
    for spec in variant.block_specs()[1:]:
        low, high = inputs[spec.name]
        if len(channels := constant_channels(low, high)):
            name = f"{spec.fused}"
            changed[f"{name}.weight"], changed[f"{name}.bias"] = _without(
                arrays[f"{name}.weight"], arrays[f"{name}.bias"], channels, np.asarray(low, np.float64), spec.groups
            )
            dead[spec.name] = channels
    low, high = inputs["linear"]
    if len(channels := constant_channels(low, high)):
        kernel = arrays["linear.weight"]
        weight, bias = _without(kernel[..., None, None], arrays["linear.bias"], channels, np.asarray(low, np.float64))
        changed["linear.weight"], changed["linear.bias"] = weight.reshape(kernel.shape), bias
        dead["linear"] = channels
    return Zeroed(changed, dead)


def input_view(weight, groups):
    """View a kernel (out, in / groups, h, w) or a matrix (out, in) as (groups, out / groups, in / groups, -1)."""
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def _without(kernel, bias, channels, values, groups=1):
    """Kernel and bias that no longer read some channels, whose values are `values[channels]`."""
    weight, total = np.array(kernel, np.float64), np.array(bias, np.float64)
    readers = input_view(weight, groups)  # (groups, out / groups, in / groups, taps), a view
    sums = total.reshape(groups, -1)
    middle = readers.shape[3] // 2
    for channel in channels:
        group, place = divmod(int(channel), readers.shape[2])
        sums[group] += readers[group, :, place, middle] * values[channel]
        readers[group, :, place, middle if values[channel] else slice(None)] = 0
    return weight.astype(kernel.dtype), total.astype(bias.dtype)
