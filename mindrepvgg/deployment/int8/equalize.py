"""Cross-layer equalisation: channels of a deploy network scaled against each other, before it is rounded to 8 bits.

    relu(conv_b(relu(conv_a(x)))) = relu(conv_b'(relu(conv_a'(x)))),  conv_a' = conv_a / s,  conv_b' = conv_b * s

as relu(x / s) = relu(x) / s for s > 0. An integer grid that serves many channels is as coarse as the largest wants it;
after equalisation they want about the same. Source: arXiv:1906.04721, section 4.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mindrepvgg.models.variants import BlockSpec, Variant

# Scales have settled when none changes by more than this factor's logarithm; a network needs some tens of rounds.
_SETTLED, _MOST_ROUNDS = 1e-3, 100


@dataclass(frozen=True)
class Equalized:
    """arrays: by name, as given but for the scaled ones, float32.

    scales: block -> (channels,) by which its outputs were divided. rounds: over all pairs, until the scales settled.
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

    arrays: of a deploy-form network, as `checkpoint.network_arrays` gives them. The layers are the blocks'
    convolutions, grouped or not, and the linear layer, which a mean over the map separates from the last one. SE, which
    multiplies by a function of the map's mean, gets the inverse scale into its first layer and computes what it did.
    A channel whose weights on one side are all 0 is left alone, and no bias grows past the layer's largest: a channel
    of small weights and a large bias would need a grid of its own.
    """
    channels = arrays["stage0.rbr_reparam.weight"].shape[1]
    specs = variant.block_specs(channels)
    scaled = {name: np.array(array, np.float64, order="C") for name, array in arrays.items()}
    pairs = list(zip(specs, [*specs[1:], None], strict=True))
    most = {spec.name: np.abs(scaled[f"{spec.name}.rbr_reparam.bias"]).max() for spec in specs}
    scales = {spec.name: np.ones(spec.out_channels) for spec in specs}
    rounds, largest = 0, np.inf
    while largest > _SETTLED and rounds < _MOST_ROUNDS:
        rounds, largest = rounds + 1, 0.0
        for spec, following in pairs:
            scale = _scale(spec, following, scaled, most[spec.name])
            _apply(spec, following, variant.se, scaled, scale)
            scales[spec.name] *= scale
            largest = max(largest, np.abs(np.log(scale)).max())
    changed = {name: array.astype(arrays[name].dtype) for name, array in scaled.items()}
    return Equalized(changed, scales, rounds)


def input_view(weight, groups):
    """A kernel (out, in / groups, h, w), or a matrix (out, in), as a view (groups, out / groups, in / groups, -1)."""
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def _following_weight(following: BlockSpec | None, arrays):
    """The weights that read a block's output, in groups; None follows the last block."""
    if following is None:
        return input_view(arrays["linear.weight"], 1)
    return input_view(arrays[f"{following.name}.rbr_reparam.weight"], following.groups)


def _scale(spec, following, arrays, most):
    """(channels,): sqrt(largest weight before / largest weight after), as far as the bias lets it be small."""
    kernel, bias = (arrays[f"{spec.name}.rbr_reparam.{leaf}"] for leaf in ("weight", "bias"))
    before = np.abs(kernel).max((1, 2, 3))
    after = np.abs(_following_weight(following, arrays)).max((1, 3)).ravel()
    alive = (before > 0) & (after > 0)
    scale = np.sqrt(np.divide(before, after, out=np.ones_like(before), where=alive))
    least = np.abs(bias) / most if most else np.zeros_like(scale)
    # Where the bias is the largest already, it may shrink and not grow: a scale of at least 1.
    return np.where(alive, np.maximum(scale, least), 1.0)


def _apply(spec, following, se, arrays, scale):
    """Divide a block's outputs by `scale` and multiply what reads them, in place."""
    arrays[f"{spec.name}.rbr_reparam.weight"] /= scale[:, None, None, None]
    arrays[f"{spec.name}.rbr_reparam.bias"] /= scale
    if se:
        place = {"pre": "se", "post": "post_se"}[se]
        arrays[f"{spec.name}.{place}.down.weight"] *= scale[None, :, None, None]
    readers = _following_weight(following, arrays)
    readers *= scale.reshape(readers.shape[0], 1, readers.shape[2], 1)
