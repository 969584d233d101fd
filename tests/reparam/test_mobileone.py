"""MobileOne's block against PyTorch in float64: its fold, both forms, training, names, and folds that are wrong."""

import itertools

import pytest
from mindspore import nn
from support import weights
from support.folds import (
    CLEARLY,
    EXACT,
    check_fold,
    check_graph,
    check_training,
    fold_error,
    noise_for,
    with_history,
    with_se,
)
from support.torch_large_blocks import MobileOne
from torch import nn as torch_nn

from mindrepvgg.reparam.mobileone import MobileOneBlock

pytestmark = pytest.mark.compat


def both(*place, activation=(nn.ReLU, torch_nn.ReLU), **options):
    return with_history(
        MobileOneBlock(*place, activation=activation[0], **options),
        MobileOne(*place, activation=activation[1], **options),
    )


# in, out, kernel, branches; and options.
CASES = [
    ((8, 8, 3, 4), {}),
    ((8, 8, 3, 1), {"groups": 8, "se": "pre", "se_ratio": 4}),
    ((8, 12, 3, 2), {"stride": 2, "groups": 4, "se": "post", "se_ratio": 4}),
    ((8, 8, 1, 3), {}),
    ((8, 12, 1, 1), {"stride": 2, "groups": 2}),
    ((8, 8, 1, 1), {"dilation": 2}),
    ((8, 8, 5, 2), {"dilation": 2, "groups": 2}),
    ((8, 8, (3, 5), 1), {"stride": (2, 1), "activation": (None, None)}),
    ((8, 8, 3, 2), {"padding": 0}),
    ((8, 8, 3, 1), {"padding": (3, 0), "dilation": (1, 2), "eps": 0.1}),
    ((8, 8, 2, 2), {"padding": (0, 1, 1, 0)}),
    ((8, 8, 4, 1), {"padding": 1, "stride": 3}),
]


@pytest.mark.parametrize(("place", "options"), CASES)
def test_a_block_is_what_pytorch_says_and_what_it_folds_into(pynative_mode, place, options):
    check_fold(*both(*place, **options))


GRID = with_se(itertools.product((1, 3, 5, 7), (1, 2), ((8, 8), (8, 12)), (1, 4, 8), (1, 2), (1, 3)))


@pytest.mark.slow
@pytest.mark.parametrize(("size", "stride", "channels", "groups", "dilation", "branches", "se"), GRID)
def test_the_whole_grid(pynative_mode, size, stride, channels, groups, dilation, branches, se):
    if channels[1] % groups:
        groups = 2
    options = {"stride": stride, "groups": groups, "dilation": dilation, "se": se, "se_ratio": 4}
    check_fold(*both(*channels, size, branches, **options), (15, 14))


@pytest.mark.parametrize(("place", "options"), [CASES[1], CASES[7]], ids=["depthwise", "no padding"])
def test_graph_mode(graph_mode, place, options):
    check_graph(*both(*place, **options))


def test_it_trains_as_pytorchs_does(pynative_mode):
    check_training(*both(8, 8, 3, 2, se="pre", se_ratio=4))


BN = ["moving_mean", "moving_variance", "gamma", "beta"]


def test_names_are_those_of_the_authors(pynative_mode):
    block, _ = both(8, 8, 3, 2)
    pairs = ["rbr_conv.0", "rbr_conv.1", "rbr_scale"]
    expected = [f"{pair}.conv.weight" for pair in pairs]
    expected += [f"{norm}.{leaf}" for norm in ("rbr_skip", *(f"{pair}.bn" for pair in pairs)) for leaf in BN]
    assert sorted(weights(block)) == sorted(expected)
    block(noise_for(block, (6, 6))[0])
    assert sorted(weights(block)) == sorted(expected)
    fused = ["reparam_conv.weight", "reparam_conv.bias"]
    assert list(weights(block.deployed())) == list(weights(MobileOneBlock(8, 8, 3, 2, deploy=True))) == fused
    block.switch_to_deploy()
    assert list(weights(block)) == fused


def test_where_there_is_a_scale_and_a_skip():
    def has(*place, **options):
        block = MobileOneBlock(*place, **options)
        return hasattr(block, "rbr_skip"), hasattr(block, "rbr_scale")

    assert has(8, 8, 3) == (True, True)
    assert has(8, 8, 1) == (True, False)
    assert (
        has(8, 12, 3) == has(8, 8, 3, stride=2) == has(8, 8, 3, stride=(1, 2)) == has(8, 8, padding=0) == (False, True)
    )
    assert has(8, 8, 3, dilation=2) == (True, True)
    assert has(8, 8, 3, dilation=2, padding=1) == (False, True)
    with pytest.raises(ValueError, match=r"num_branches \(=0\) must be at least 1"):
        MobileOneBlock(8, 8, num_branches=0)


def leave_out_the_scale(block):
    block.chains = tuple(chain for chain in block.chains if chain != ("rbr_scale",))


def leave_out_the_skip(block):
    block.chains = tuple(chain for chain in block.chains if chain != ("rbr_skip",))


def leave_out_one_branch(block):
    block.rbr_conv.cell_list = block.rbr_conv.cell_list[:-1]


def move_the_scale(block):
    block.rbr_scale.conv.padding = (1, -1, 0, 0)


@pytest.mark.parametrize("damage", [leave_out_the_scale, leave_out_the_skip, leave_out_one_branch, move_the_scale])
def test_a_wrong_fold_is_found(pynative_mode, damage):
    block, reference = both(8, 8, 3, 4)
    _, x = noise_for(block, (12, 11))
    assert fold_error(block, reference, x) < EXACT
    damage(block)
    assert fold_error(block, reference, x) > CLEARLY
