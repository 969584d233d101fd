"""Cross-layer equalisation: the channels between two layers are scaled, so that INT8 rounds all of them about as well.

    relu(conv_b(relu(conv_a(x)))) = relu(conv_b'(relu(conv_a'(x)))),  conv_a' = conv_a / s,  conv_b' = conv_b * s

because relu(x / s) = relu(x) / s for s > 0. The steps of an integer grid that several channels share are as coarse as
the largest channel needs. After equalisation the channels need about the same steps.
Source: arXiv:1906.04721, section 4.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mindrepvgg.models.block_kinds import BlockSpec
from mindrepvgg.models.dead_channels import input_view
from mindrepvgg.models.variants import Variant

# Scales have settled when none changes by more than this in its logarithm. A network needs some tens of rounds.
_SETTLED, _MOST_ROUNDS = 1e-3, 100


@dataclass(frozen=True)
class Equalized:
    """An equalised network.

    Attributes:
        arrays: the network's arrays by name.
        scales: block -> (channels,), what the block's outputs were divided by.
        rounds: passes over all pairs of layers until the scales settled.
    """

    arrays: dict[str, np.ndarray]
    scales: dict[str, np.ndarray]
    rounds: int

    @property
    def largest(self) -> float:
        """The largest factor by which a channel was scaled, up or down."""
        return float(max(np.exp(np.abs(np.log(scale))).max() for scale in self.scales.values()))


def equalize(variant: Variant, arrays) -> Equalized:
    """Give each channel between two layers the same largest weight on both sides; the logits stay as they are.

    The layers are the blocks' convolutions, grouped or not, and the linear layer, which follows the last convolution
    after a mean over the map. SE multiplies by a function of the map's mean; its first layer gets the inverse scale,
    so that it computes the same. A channel with weights of 0 alone on one side is not scaled. No bias grows past the
    largest bias of its layer: a channel of small weights and a large bias would need a grid of its own.

    Args:
        variant: the network's layout.
        arrays: name -> array of the deploy form, as `parameters.network_arrays` gives them; they stay as they are.

    Returns:
        The scaled arrays, each of its own type, and the scales.
    """
    specs = variant.block_specs()
    scaled = {name: np.array(array, np.float64, order="C") for name, array in arrays.items()}
    pairs = list(zip(specs, [*specs[1:], None], strict=True))
    most = {spec.name: np.abs(scaled[f"{spec.fused}.bias"]).max() for spec in specs}
    scales = {spec.name: np.ones(spec.out_channels) for spec in specs}
    rounds, largest = 0, np.inf
    while largest > _SETTLED and rounds < _MOST_ROUNDS:
        rounds, largest = rounds + 1, 0.0
        for spec, following in pairs:
            scale = _scale(spec, following, scaled, most[spec.name])
            _apply(spec, following, scaled, scale)
            scales[spec.name] *= scale
            largest = max(largest, np.abs(np.log(scale)).max())
    changed = {name: array.astype(arrays[name].dtype) for name, array in scaled.items()}
    return Equalized(changed, scales, rounds)


def _following_weight(following: BlockSpec | None, arrays):
    """Return a view of the weights that read a block's output, in groups; `following` is None after the last block."""
    if following is None:
        return input_view(arrays["linear.weight"], 1)
    return input_view(arrays[f"{following.fused}.weight"], following.groups)


def _scale(spec, following, arrays, most):
    """Return (channels,): sqrt(largest weight before / largest weight after), not smaller than the bias allows."""
    kernel, bias = (arrays[f"{spec.fused}.{leaf}"] for leaf in ("weight", "bias"))
    before = np.abs(kernel).max((1, 2, 3))
    after = np.abs(_following_weight(following, arrays)).max((1, 3)).ravel()
    alive = (before > 0) & (after > 0)
    scale = np.sqrt(np.divide(before, after, out=np.ones_like(before), where=alive))
    least = np.abs(bias) / most if most else np.zeros_like(scale)
    # Dividing by a scale below |bias| / most would make the bias larger than `most`.
    return np.where(alive, np.maximum(scale, least), 1.0)


def _apply(spec, following, arrays, scale):
    """Divide a block's outputs by `scale` and multiply the weights that read them, in place."""
    arrays[f"{spec.fused}.weight"] /= scale[:, None, None, None]
    arrays[f"{spec.fused}.bias"] /= scale
    if spec.se:
        arrays[f"{spec.squeeze_excite}.down.weight"] *= scale[None, :, None, None]
    readers = _following_weight(following, arrays)
    readers *= scale.reshape(readers.shape[0], 1, readers.shape[2], 1)
