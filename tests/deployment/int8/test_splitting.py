"""Coarse and fine: the sum is the kernel exactly, and the gain is what rounding really makes less of."""

import math

import numpy as np
import pytest

from mindrepvgg.deployment.int8.grids import IntegerOptions, round_weights
from mindrepvgg.deployment.int8.splitting import extra_multiplications, split_centre, split_layers, worth_splitting
from mindrepvgg.models.variants import find


def heavy_identity(gain, dtype=np.float64, channels=32):
    """A kernel as a fused RepVGG's with one large gain of the identity in each of some channels."""
    rng = np.random.default_rng(3)
    kernel = rng.standard_normal((channels, channels, 3, 3)) * 0.05
    places = np.arange(0, channels, 4)
    kernel[places, places, 1, 1] += gain
    return kernel.astype(dtype)


def decibels(kernel, rounded):
    kernel = kernel.astype(np.float64)
    return 20 * math.log10(np.linalg.norm(kernel) / np.linalg.norm(kernel - rounded))


def real(kernel, per_channel):
    """The kernel on its int8 grid, in float64, by this project's rounding."""
    found = round_weights(kernel, None, 1.0, IntegerOptions(per_channel=per_channel))
    return found.weight * np.reshape(found.scale, (-1, 1, 1, 1)).astype(np.float64)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("per_channel", [True, False], ids=["per channel", "per tensor"])
def test_both_parts_add_up_exactly(dtype, per_channel):
    kernel = heavy_identity(7.3, dtype)
    found = split_centre(kernel, per_channel)
    assert found.coarse.shape == (32, 32, 1, 1)
    total = found.fine.astype(np.float64)
    total[:, :, 1:2, 1:2] += found.coarse
    assert np.array_equal(total, kernel.astype(np.float64)), "to the last bit"
    # The coarse part is a whole number of steps: INT8 holds it exactly.
    steps = np.abs(kernel[:, :, 1, 1]).max(1 if per_channel else None) / 127
    integers = found.coarse[:, :, 0, 0] / np.reshape(steps, (-1, 1))
    np.testing.assert_allclose(integers, np.rint(integers), atol=1e-4)
    np.testing.assert_allclose(real(found.coarse, per_channel), found.coarse, rtol=2e-7)


@pytest.mark.parametrize("gain", [0.5, 2.0, 7.3, 40.0])
@pytest.mark.parametrize("per_channel", [True, False], ids=["per channel", "per tensor"])
def test_the_gain_is_that_of_the_grids(gain, per_channel):
    kernel = heavy_identity(gain)
    found = split_centre(kernel, per_channel)
    rounded = real(found.fine, per_channel)
    rounded[:, :, 1:2, 1:2] += found.coarse
    measured = decibels(kernel, rounded) - decibels(kernel, real(kernel, per_channel))
    if not per_channel:
        assert found.gain == pytest.approx(20 * math.log10(np.abs(kernel).max() / np.abs(found.fine).max()), abs=1e-9)
    # Rounding noise is even on a grid's step only while weights cover several steps.
    assert measured == pytest.approx(found.gain, abs=1.0 if gain < 10 else math.inf)
    assert found.gain > (0 if gain < 1 else 10)


def test_a_kernel_without_weights_has_no_gain():
    assert split_centre(np.zeros((2, 2, 3, 3), np.float32), True).gain == 0
    centre = np.zeros((1, 1, 3, 3))
    centre[..., 1, 1] = 127
    assert split_centre(centre, True).gain == math.inf


def test_layers_are_chosen_by_their_gain_and_cost_a_ninth():
    variant = find("repvgg", num_blocks=[1, 1, 1, 1], widths=[32, 32, 32, 32, 32])
    rng = np.random.default_rng(0)
    arrays = {f"{spec.fused}.weight": rng.standard_normal(spec.kernel_shape) for spec in variant.block_specs()}
    arrays["stage2.0.rbr_reparam.weight"] = heavy_identity(20.0)
    assert worth_splitting(variant, arrays, False) == ("stage2.0",)
    changed = split_layers(variant, arrays, ["stage2.0"], False)
    assert set(changed) - set(arrays) == {"stage2.0.rbr_reparam.coarse.weight"}
    assert arrays["stage2.0.rbr_reparam.weight"].max() > 19, "what was given stays as it is"
    every = [spec.name for spec in variant.block_specs()]
    assert extra_multiplications(variant, every, (32, 32)) == pytest.approx(1 / 9)
    assert extra_multiplications(variant, (), (32, 32)) == 0
