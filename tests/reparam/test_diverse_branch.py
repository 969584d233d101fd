"""The diverse branch block against PyTorch in float64: its fold, both forms, training and names."""

import numpy as np
import pytest
from mindspore import nn
from support import weights
from support.block_pairs import both, noise_for
from support.folds import check_fold, check_gradient, check_graph, check_training
from torch import nn as torch_nn

from mindrepvgg.reparam.diverse_branch import DiverseBranchBlock

pytestmark = pytest.mark.compat


# in, out, kernel, stride; and options.
CASES = [
    ((8, 8, 3, 1), {}),
    ((8, 12, 3, 2), {"groups": 4, "se": "pre", "se_ratio": 4}),
    ((8, 8, 5, 1), {"groups": 2, "dilation": 2, "activation": (nn.ReLU, torch_nn.ReLU)}),
    ((8, 8, 3, 1), {"groups": 8}),
    ((8, 8, 5, 2), {"groups": 8, "dilation": 2, "se": "post", "se_ratio": 4}),
    ((8, 4, 3, 1), {"groups": 4}),
    ((12, 8, (3, 5), (2, 1)), {"groups": 4, "internal_channels": 16}),
    ((8, 8, 3, 1), {"padding": 0, "internal_channels": 4}),
    ((8, 8, 3, 2), {"padding": (2, 0), "dilation": (1, 2), "eps": 0.1}),
    ((8, 8, 2, 1), {"padding": (0, 1, 1, 0), "groups": 8}),
    ((8, 12, 1, 2), {}),
]


@pytest.mark.parametrize(("place", "options"), CASES)
def test_a_block_is_what_pytorch_says_and_what_it_folds_into(pynative_mode, place, options):
    check_fold(*both(DiverseBranchBlock, *place, **options))


@pytest.mark.parametrize(
    ("place", "options"), [CASES[1], pytest.param(*CASES[4], marks=pytest.mark.slow)], ids=["groups", "depthwise"]
)
def test_graph_mode(graph_mode, place, options):
    check_graph(*both(DiverseBranchBlock, *place, **options))


@pytest.mark.parametrize("groups", [1, 8], ids=["plain", "depthwise"])
def test_it_trains_as_pytorchs_does(pynative_mode, groups):
    check_training(
        *both(DiverseBranchBlock, 8, 8, groups=groups, activation=(nn.ReLU, torch_nn.ReLU), se="pre", se_ratio=4)
    )


@pytest.mark.slow
def test_it_trains_as_pytorchs_does_in_graph_mode(graph_mode):
    check_training(*both(DiverseBranchBlock, 8, 8, groups=2, stride=2))


def test_the_kernel_has_pytorchs_gradient(pynative_mode):
    check_gradient(*both(DiverseBranchBlock, 8, 6, groups=2, padding=0))


@pytest.mark.slow
def test_the_kernel_has_pytorchs_gradient_in_graph_mode(graph_mode):
    check_gradient(*both(DiverseBranchBlock, 8, 6, groups=2, padding=0))


BN = ["moving_mean", "moving_variance", "gamma", "beta"]


def names_of(convolutions, norms):
    return sorted([f"{conv}.weight" for conv in convolutions] + [f"{norm}.{leaf}" for norm in norms for leaf in BN])


def test_names_are_those_of_the_authors(pynative_mode):
    sequence = "dbb_1x1_kxk"
    convolutions = ["dbb_origin.conv", "dbb_1x1.conv", "dbb_avg.conv", f"{sequence}.idconv1", f"{sequence}.conv2"]
    norms = ["dbb_origin.bn", "dbb_1x1.bn", "dbb_avg.bn.bn", "dbb_avg.avgbn", f"{sequence}.bn1.bn", f"{sequence}.bn2"]
    block, reference = both(DiverseBranchBlock, 8, 8)
    assert sorted(weights(block)) == names_of(convolutions, norms)
    wide = ["dbb_origin.conv", f"{sequence}.conv1", f"{sequence}.conv2"]
    depthwise = DiverseBranchBlock(8, 8, groups=8)
    left_out = "dbb_1x1.bn", "dbb_avg.bn.bn"
    assert sorted(weights(depthwise)) == names_of(wide, [norm for norm in norms if norm not in left_out])
    assert weights(depthwise)[f"{sequence}.conv1.weight"].shape == (16, 1, 1, 1)

    deployed, fused = check_fold(block, reference), ["dbb_reparam.weight", "dbb_reparam.bias"]
    assert list(weights(deployed)) == list(weights(DiverseBranchBlock(8, 8, deploy=True))) == fused
    block.switch_to_deploy()
    assert list(weights(block)) == fused


def test_the_1x1_starts_as_the_identity_and_gammas_as_asked(pynative_mode):
    fresh = weights(DiverseBranchBlock(8, 8))
    assert not fresh["dbb_1x1_kxk.idconv1.weight"].any()
    assert all((value == 1).all() for name, value in fresh.items() if name.endswith("gamma"))
    alone = DiverseBranchBlock(8, 8, gammas=(1, 0)).set_train(False)
    x, _ = noise_for(alone, (9, 7))
    np.testing.assert_array_equal(alone(x).asnumpy(), alone.dbb_origin(x).asnumpy())
    first = {name: value[0] for name, value in weights(alone).items() if name.endswith("gamma")}
    assert first == {
        "dbb_origin.bn.gamma": 1,
        "dbb_1x1.bn.gamma": 0,
        "dbb_avg.bn.bn.gamma": 1,
        "dbb_avg.avgbn.gamma": 0,
        "dbb_1x1_kxk.bn1.bn.gamma": 1,
        "dbb_1x1_kxk.bn2.gamma": 0,
    }


def test_a_border_cannot_be_cut_off():
    with pytest.raises(ValueError, match=r"padding \(=\(-1, -1, -1, -1\)\) must not be negative where a BN fills it"):
        DiverseBranchBlock(8, 8, padding=-1)
