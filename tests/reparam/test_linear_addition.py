"""The linear addition against PyTorch, its one kernel, and what the gradient of that is multiplied by."""

import numpy as np
import pytest
from mindspore import Tensor
from support import relative_difference, weights
from support.block_pairs import both
from support.folds import check_fold, check_gradient, check_graph, check_training
from support.numpy_training import multiplier, one_kernel

from mindrepvgg.reparam import LinearAdditionBlock, RepOptBlock
from mindrepvgg.reparam.linear_addition import Scales, gradient_multiplier, merged_kernel

compat = pytest.mark.compat

# in, out, kernel, stride; and options.
PLACES = [
    ((8, 8, 3, 1), {}),
    ((8, 12, 3, 2), {"groups": 4, "se": "pre", "se_ratio": 4}),
    ((8, 8, 3, 1), {"groups": 8, "dilation": 2, "se": "post", "se_ratio": 4}),
    ((8, 8, 3, 1), {"padding": 0}),
]


@compat
@pytest.mark.parametrize(("place", "options"), PLACES)
def test_it_is_what_pytorch_says_and_what_it_folds_into(pynative_mode, place, options):
    check_fold(*both(LinearAdditionBlock, *place, **options))


@pytest.mark.slow
def test_in_graph_mode(graph_mode):
    check_graph(*both(LinearAdditionBlock, 8, 8))


@compat
def test_it_trains_as_pytorchs_does(pynative_mode):
    check_training(*both(LinearAdditionBlock, 8, 8))


@compat
def test_its_kernel_has_pytorchs_gradient(pynative_mode):
    check_gradient(*both(LinearAdditionBlock, 8, 6, padding=0))


@compat
def test_names_are_those_of_the_authors(pynative_mode):
    scales = [f"scale_{name}.weight" for name in ("conv", "1x1", "identity")]
    norm = [f"bn.{leaf}" for leaf in ("moving_mean", "moving_variance", "gamma", "beta")]
    block = LinearAdditionBlock(8, 8, start=0.5)
    assert sorted(weights(block)) == sorted(["conv.weight", "conv_1x1.weight", *scales, *norm])
    assert [block.scale_conv.weight.asnumpy()[3], block.scale_identity.weight.asnumpy()[3]] == [0.5, 1]
    assert sorted(weights(RepOptBlock(8, 8))) == sorted(["conv.weight", *norm])


@pytest.fixture
def block_scales():
    """A block's scales, some negative, by the names that `numpy_training` has them under."""
    rng = np.random.default_rng(0)
    return {f"b.scale_{name}.weight": rng.uniform(-1.5, 1.5, 6) for name in ("conv", "1x1", "identity")}


def as_ours(found, identity):
    return Scales(found["b.scale_conv.weight"], found["b.scale_1x1.weight"], identity)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("with_identity", [True, False])
def test_multipliers_and_kernels_are_those_of_the_formulas(block_scales, power, with_identity):
    if not with_identity:
        del block_scales["b.scale_identity.weight"]
    ours = as_ours(block_scales, block_scales.get("b.scale_identity.weight"))
    shape = (6, 6 if with_identity else 4, 3, 3)
    expected = multiplier(block_scales, "b", shape, power)
    assert relative_difference(gradient_multiplier(ours, shape, power), expected) < 1e-15
    rng = np.random.default_rng(1)
    kernels = {"b.conv.weight": rng.normal(size=shape), "b.conv_1x1.weight": rng.normal(size=(*shape[:2], 1, 1))}
    found = merged_kernel(ours, *kernels.values())
    assert relative_difference(found, one_kernel(kernels, block_scales, "b")) < 1e-15


def test_a_block_starts_as_the_linear_addition_that_its_scales_stand_for(pynative_mode, block_scales):
    """Around the centre the fresh kernel is scaled; in it there is a fresh 1x1 besides, and the input's scale."""
    block = RepOptBlock(6, 6)
    before = block.conv.weight.asnumpy().copy()
    s, t, u = block_scales.values()
    block.start_from(as_ours(block_scales, u))
    after = block.conv.weight.asnumpy()
    around = np.ones((3, 3), bool)
    around[1, 1] = False
    assert relative_difference(after[:, :, around], s[:, None, None] * before[:, :, around]) < 1e-6
    point = (after[:, :, 1, 1] - s[:, None] * before[:, :, 1, 1] - np.diag(u)) / t[:, None]
    assert np.abs(point).max() <= 6**-0.5 * 1.0001, "drawn as a fresh 1x1 convolution is"
    assert 0.2 < np.abs(point).mean() * 6**0.5 < 0.8
    x = Tensor(np.ones((1, 6, 4, 4), np.float32))
    assert block(x).shape == (1, 6, 4, 4)
