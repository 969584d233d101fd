"""MobileOne's block against PyTorch in float64: its fold, both forms, training and names."""

import pytest
from support import weights
from support.block_pairs import both, noise_for
from support.folds import check_fold, check_graph, check_training

from mindrepvgg.reparam.mobileone import MobileOneBlock

pytestmark = pytest.mark.compat


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
    check_fold(*both(MobileOneBlock, *place, **options))


@pytest.mark.parametrize(("place", "options"), [CASES[1], CASES[7]], ids=["depthwise", "no padding"])
def test_graph_mode(graph_mode, place, options):
    check_graph(*both(MobileOneBlock, *place, **options))


def test_it_trains_as_pytorchs_does(pynative_mode):
    check_training(*both(MobileOneBlock, 8, 8, 3, 2, se="pre", se_ratio=4))


BN = ["moving_mean", "moving_variance", "gamma", "beta"]


def test_names_are_those_of_the_authors(pynative_mode):
    block, _ = both(MobileOneBlock, 8, 8, 3, 2)
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
