"""ACNet's block against PyTorch in float64: its fold, both forms, training and names."""

import numpy as np
import pytest
from mindspore import nn
from support import weights
from support.block_pairs import both, noise_for
from support.folds import check_fold, check_gradient, check_graph, check_training
from torch import nn as torch_nn

from mindrepvgg.reparam.asymmetric import ACBlock

pytestmark = pytest.mark.compat


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
    check_fold(*both(ACBlock, *place, **options))


@pytest.mark.parametrize(
    ("place", "options"), [CASES[2], pytest.param(*CASES[1], marks=pytest.mark.slow)], ids=["cut", "groups"]
)
def test_graph_mode(graph_mode, place, options):
    check_graph(*both(ACBlock, *place, **options))


@pytest.mark.parametrize("padding", [None, 0])
def test_it_trains_as_pytorchs_does(pynative_mode, padding):
    check_training(*both(ACBlock, 8, 8, padding=padding, activation=(nn.ReLU, torch_nn.ReLU), se="pre", se_ratio=4))


@pytest.mark.slow
def test_it_trains_as_pytorchs_does_in_graph_mode(graph_mode):
    check_training(*both(ACBlock, 8, 8, 5, groups=2, padding=1))


def test_the_kernel_has_pytorchs_gradient(pynative_mode):
    check_gradient(*both(ACBlock, 8, 6, groups=2, padding=0))


@pytest.mark.slow
def test_the_kernel_has_pytorchs_gradient_in_graph_mode(graph_mode):
    check_gradient(*both(ACBlock, 8, 6, groups=2, padding=0))


BN = ["moving_mean", "moving_variance", "gamma", "beta"]


def test_names_are_those_of_the_authors(pynative_mode):
    block, reference = both(ACBlock, 8, 8, 3)
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
