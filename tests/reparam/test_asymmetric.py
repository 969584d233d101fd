"""ACNet's block against PyTorch in float64: its fold, both forms, training, names, and folds that are wrong."""

import itertools

import numpy as np
import pytest
from mindspore import nn
from support import weights
from support.folds import (
    CLEARLY,
    EXACT,
    check_fold,
    check_gradient,
    check_graph,
    check_training,
    fold_error,
    noise_for,
    with_history,
    with_se,
)
from support.torch_branches import Asymmetric
from torch import nn as torch_nn

from mindrepvgg.reparam.asymmetric import ACBlock

pytestmark = pytest.mark.compat


def both(*place, activation=(None, None), **options):
    return with_history(
        ACBlock(*place, activation=activation[0], **options),
        Asymmetric(*place, activation=activation[1], **options),
    )


# in, out, kernel, stride; and options. Padding below half a kernel cuts the input of the two small ones.
CASES = [
    ((8, 8, 3, 1), {}),
    ((8, 12, 3, 2), {"groups": 4, "se": "pre", "se_ratio": 4}),
    ((8, 8, 3, 1), {"groups": 8, "padding": 0}),
    ((8, 8, 5, 2), {"padding": 1, "activation": (nn.ReLU, torch_nn.ReLU)}),
    ((8, 8, 5, 1), {"padding": 4, "groups": 2}),
    ((12, 8, 3, 1), {"dilation": 2, "padding": 1, "se": "post", "se_ratio": 4}),
    ((8, 8, (3, 5), (2, 1)), {"dilation": (2, 1), "eps": 0.1}),
    ((8, 8, (5, 3), 1), {"padding": (0, 3)}),
    ((8, 8, 4, 1), {"padding": (0, 1, 2, 3)}),
    ((8, 12, 1, 2), {}),
]


@pytest.mark.parametrize(("place", "options"), CASES)
def test_a_block_is_what_pytorch_says_and_what_it_folds_into(pynative_mode, place, options):
    check_fold(*both(*place, **options))


GRID = with_se(itertools.product((1, 3, 5, 7), (1, 2), ((8, 8), (8, 16)), (1, 2, 8), (1, 2), (None, 0, 1)))


@pytest.mark.slow
@pytest.mark.parametrize(("size", "stride", "channels", "groups", "dilation", "padding", "se"), GRID)
def test_the_whole_grid(pynative_mode, size, stride, channels, groups, dilation, padding, se):
    options = {"stride": stride, "groups": groups, "dilation": dilation, "padding": padding, "se": se, "se_ratio": 4}
    check_fold(*both(*channels, size, **options), (15, 14))


@pytest.mark.parametrize(
    ("place", "options"), [CASES[2], pytest.param(*CASES[1], marks=pytest.mark.slow)], ids=["cut", "groups"]
)
def test_graph_mode(graph_mode, place, options):
    check_graph(*both(*place, **options))


@pytest.mark.parametrize("padding", [None, 0])
def test_it_trains_as_pytorchs_does(pynative_mode, padding):
    check_training(*both(8, 8, padding=padding, activation=(nn.ReLU, torch_nn.ReLU), se="pre", se_ratio=4))


@pytest.mark.slow
def test_it_trains_as_pytorchs_does_in_graph_mode(graph_mode):
    check_training(*both(8, 8, 5, groups=2, padding=1))


def test_the_kernel_has_pytorchs_gradient(pynative_mode):
    check_gradient(*both(8, 6, groups=2, padding=0))


@pytest.mark.slow
def test_the_kernel_has_pytorchs_gradient_in_graph_mode(graph_mode):
    check_gradient(*both(8, 6, groups=2, padding=0))


BN = ["moving_mean", "moving_variance", "gamma", "beta"]


def test_names_are_those_of_the_authors(pynative_mode):
    block, reference = both(8, 8, 3)
    parts = "square", "ver", "hor"
    expected = [f"{part}_conv.weight" for part in parts] + [f"{part}_bn.{leaf}" for part in parts for leaf in BN]
    assert sorted(weights(block)) == sorted(expected)
    assert weights(block)["ver_conv.weight"].shape == (8, 8, 3, 1)
    deployed, fused = check_fold(block, reference), ["fused_conv.weight", "fused_conv.bias"]
    assert list(weights(deployed)) == list(weights(ACBlock(8, 8, 3, deploy=True))) == fused
    block.switch_to_deploy()
    assert list(weights(block)) == fused


@pytest.mark.parametrize("gammas", [(1 / 3, 1 / 3), (1, 0)])
def test_gammas_start_as_asked(pynative_mode, gammas):
    block = ACBlock(8, 8, gammas=gammas).set_train(False)
    for norm, value in ((block.square_bn, gammas[0]), (block.ver_bn, gammas[1]), (block.hor_bn, gammas[1])):
        np.testing.assert_array_equal(norm.gamma.asnumpy(), np.full(8, value, np.float32))
    x, _ = noise_for(block, (9, 7))
    plain = block.square_bn(block.square_conv(x)).asnumpy()
    assert np.array_equal(block(x).asnumpy(), plain) is (gammas == (1, 0))


def kernels_swapped(reference):
    ver, hor = reference.ver_conv.weight, reference.hor_conv.weight
    ver.data, hor.data = hor.data.transpose(2, 3).clone(), ver.data.transpose(2, 3).clone()


def scale_left_out(reference):
    reference.hor_bn.weight.data.fill_(1)


def column_beside_the_middle(reference):
    under = reference.under
    reference.under = lambda x, size: under(x.roll(1, 3) if size == (3, 1) else x, size)


def row_left_out(reference):
    del reference.sizes["hor"]


@pytest.mark.parametrize("damage", [kernels_swapped, scale_left_out, column_beside_the_middle, row_left_out])
@pytest.mark.parametrize("padding", [1, 0])
def test_another_block_is_told_from_it(damage, padding):
    block, reference = both(8, 8, padding=padding)
    _, x = noise_for(block, (12, 11))
    assert fold_error(block, reference, x) < EXACT
    damage(reference)
    assert fold_error(block, reference, x) > CLEARLY
