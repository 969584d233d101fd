"""YOLO's blocks against PyTorch in float64: their folds, both forms, training and names."""

import pytest
from mindspore import nn
from support import weights
from support.block_pairs import both
from support.folds import check_fold, check_graph, check_training
from torch import nn as torch_nn

from mindrepvgg.reparam.yolo import RepConv, RepConvN, RepVGGDW

pytestmark = pytest.mark.compat

CASES = [
    (RepConv, (8, 8), {}),
    (RepConv, (8, 8), {"identity": False, "groups": 8}),
    (RepConv, (8, 12, 3, 2), {"groups": 4, "se": "pre", "se_ratio": 4}),
    (RepConv, (8, 8, 5), {"dilation": 2, "activation": (nn.ReLU, torch_nn.ReLU), "eps": 1e-5}),
    (RepConv, (8, 8, 3), {"padding": 0, "se": "post", "se_ratio": 4}),
    (RepConvN, (8, 8), {}),
    (RepConvN, (8, 8, 3), {"identity": True, "groups": 2}),
    (RepConvN, (8, 12, 3, 2), {"dilation": (1, 2)}),
    (RepVGGDW, (8,), {}),
    (RepVGGDW, (8, 9, 5), {"stride": 2, "se": "pre", "se_ratio": 4}),
    (RepVGGDW, (8, 7, 3), {"groups": 2, "dilation": 2, "padding": (5, 1)}),
    (RepVGGDW, (8, (7, 5), (3, 1)), {"activation": (None, None)}),
]


@pytest.mark.parametrize(("kind", "place", "options"), CASES)
def test_a_block_is_what_pytorch_says_and_what_it_folds_into(pynative_mode, kind, place, options):
    check_fold(*both(kind, *place, **options))


@pytest.mark.parametrize(("kind", "place"), [(RepConv, (8, 8)), (RepVGGDW, (8,))])
def test_graph_mode(graph_mode, kind, place):
    check_graph(*both(kind, *place))


@pytest.mark.parametrize(("kind", "place"), [(RepConv, (8, 8)), (RepConvN, (8, 12)), (RepVGGDW, (8,))])
def test_it_trains_as_pytorchs_does(pynative_mode, kind, place):
    check_training(*both(kind, *place))


BN = ["moving_mean", "moving_variance", "gamma", "beta"]


@pytest.mark.parametrize(
    ("kind", "place", "convolutions", "norms", "fused"),
    [
        (RepConv, (8, 8), ["rbr_dense.0", "rbr_1x1.0"], ["rbr_dense.1", "rbr_1x1.1", "rbr_identity"], "rbr_reparam"),
        (RepConv, (8, 8, 3, 1, False), ["rbr_dense.0", "rbr_1x1.0"], ["rbr_dense.1", "rbr_1x1.1"], "rbr_reparam"),
        (RepConvN, (8, 8), ["conv1.conv", "conv2.conv"], ["conv1.bn", "conv2.bn"], "conv"),
        (RepConvN, (8, 8, 3, 1, True), ["conv1.conv", "conv2.conv"], ["conv1.bn", "conv2.bn", "bn"], "conv"),
        (RepVGGDW, (8,), ["conv.conv", "conv1.conv"], ["conv.bn", "conv1.bn"], "conv"),
    ],
)
def test_names_are_those_of_the_authors(pynative_mode, kind, place, convolutions, norms, fused):
    block, _ = both(kind, *place)
    expected = [f"{name}.weight" for name in convolutions] + [f"{name}.{leaf}" for name in norms for leaf in BN]
    assert sorted(weights(block)) == sorted(expected)
    names = [f"{fused}.weight", f"{fused}.bias"]
    assert list(weights(block.deployed())) == list(weights(kind(*place, deploy=True))) == names
    block.switch_to_deploy()
    assert list(weights(block)) == names


def test_plain_blocks_vouch_for_themselves(pynative_mode):
    """A SequentialCell of a convolution and a BN is no reason to try the block on noise."""
    from mindrepvgg.reparam.probe import needs_probe

    block = RepConv(8, 8)
    assert not needs_probe(block)
    block.rbr_dense.append(nn.ReLU())
    assert needs_probe(block)
