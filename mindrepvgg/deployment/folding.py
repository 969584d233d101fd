"""Mean and std in the first convolution, exactly."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mindrepvgg.models.preprocessing import Preprocessing


def fold_normalisation(
    arrays: Mapping[str, np.ndarray], name: str, preprocessing: Preprocessing
) -> dict[str, np.ndarray]:
    """Fold the normalisation into a convolution, which then takes pixels of 0 to 255 and a channel of ones.

    The std scales the kernel. The mean cannot go into the bias: the convolution pads with zeros after normalisation,
    and the border of its output has a smaller share of the mean. The channel of ones is padded with zeros too, so a
    kernel for it brings each output the share that it has.

    Args:
        arrays: holds `name`.weight (out, C, k, k) of one group, and `name`.bias (out,).
        name: the convolution.
        preprocessing: its mean and std, of C channels.

    Returns:
        The same two names; the kernel is (out, C + 1, k, k), float64.
    """
    kernel, bias = (np.asarray(arrays[f"{name}.{leaf}"], np.float64) for leaf in ("weight", "bias"))
    mean, std = (
        np.asarray(values, np.float64).reshape(1, -1, 1, 1) for values in (preprocessing.mean, preprocessing.std)
    )
    shifts = (kernel * (-mean / std)).sum(1, keepdims=True)
    return {f"{name}.weight": np.concatenate([kernel / (255 * std), shifts], 1), f"{name}.bias": bias}


def folded_input(pixels: np.ndarray) -> np.ndarray:
    """Pixels (N, H, W, C), uint8, as a file with folded mean and std takes them: float32 (N, C, H, W) of 0 to 255."""
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32)
