"""RepLKNet's and UniRepLKNet's blocks against PyTorch in float64: folds, both forms, training and names."""

import numpy as np
import pytest
from mindspore import nn
from mindspore.nn.utils import no_init_parameters
from support import weights
from support.block_pairs import both, noise_for
from support.folds import check_fold, check_graph, check_training
from torch import nn as torch_nn

from mindrepvgg.reparam.large_kernel import DILATED_SETS, DilatedBlock, LargeKernelBlock

pytestmark = pytest.mark.compat


# in, out, kernel, small kernel; and options.
LARGE = [
    ((8, 8, 13, 5), {"groups": 8}),
    ((8, 8, 31, 5), {"groups": 8, "se": "pre", "se_ratio": 4, "activation": (nn.ReLU, torch_nn.ReLU)}),
    ((8, 12, 9, 3), {"groups": 4, "stride": 2}),
    ((8, 8, 7, None), {"groups": 8}),
    ((8, 8, 7, 3), {"dilation": 2, "padding": 2, "se": "post", "se_ratio": 4}),
    ((8, 8, (9, 5), (3, 1)), {"groups": 8}),
    ((8, 8, (9, 5), (1, 5)), {"groups": 2, "padding": (1, 0)}),
    ((8, 8, 6, 3), {"groups": 8, "padding": (2, 3, 3, 2)}),
    ((8, 8, 5, 5), {"stride": (1, 2)}),
]
# channels, kernel; and options.
DILATED = [
    ((8, 5), {}),
    ((8, 7), {"stride": 2, "se": "pre", "se_ratio": 4, "activation": (nn.SiLU, torch_nn.SiLU)}),
    ((8, 9), {"groups": 2, "padding": 1}),
    ((4, 17), {}),
    ((8, 7), {"dilation": 2, "eps": 0.1}),
    ((8, 7), {"small_kernels": ((3, 2),), "dilation": (2, 3), "padding": 4}),
    ((8, 11), {"small_kernels": ((1, 1), (2, 3), (11, 1)), "groups": 4, "se": "post", "se_ratio": 4}),
]


@pytest.mark.parametrize(("place", "options"), LARGE)
def test_a_large_kernel_is_what_pytorch_says_and_what_it_folds_into(pynative_mode, place, options):
    check_fold(*both(LargeKernelBlock, *place, **options))


@pytest.mark.parametrize(("place", "options"), DILATED)
def test_dilated_kernels_are_what_pytorch_says_and_what_they_fold_into(pynative_mode, place, options):
    check_fold(*both(DilatedBlock, *place, **options))


def test_graph_mode(graph_mode):
    check_graph(*both(LargeKernelBlock, 8, 8, 13, 5, groups=8))


def test_graph_mode_with_dilation(graph_mode):
    check_graph(*both(DilatedBlock, 8, 7, small_kernels=((3, 2),), dilation=2))


def test_a_large_kernel_trains_as_pytorchs_does(pynative_mode):
    check_training(*both(LargeKernelBlock, 8, 8, 7, 3, groups=8, activation=(nn.ReLU, torch_nn.ReLU)))


def test_dilated_kernels_train_as_pytorchs_do(pynative_mode):
    check_training(*both(DilatedBlock, 8, 5, activation=(nn.ReLU, torch_nn.ReLU)))


BN = ["moving_mean", "moving_variance", "gamma", "beta"]


def test_names_are_those_of_the_authors():
    large_names = weights(LargeKernelBlock(8, 8, 13, 5, groups=8))
    pairs = ("lkb_origin", "small_conv")
    expected = [f"{pair}.conv.weight" for pair in pairs] + [f"{pair}.bn.{leaf}" for pair in pairs for leaf in BN]
    assert sorted(large_names) == sorted(expected)
    dilated_names = weights(DilatedBlock(8, 7))
    small = "k5_1", "k3_2", "k3_3"
    expected = ["lk_origin.weight", *(f"dil_conv_{kernel}.weight" for kernel in small)]
    expected += [f"{bn}.{leaf}" for bn in ("origin_bn", *(f"dil_bn_{kernel}" for kernel in small)) for leaf in BN]
    assert sorted(dilated_names) == sorted(expected)


@pytest.mark.parametrize(
    ("kind", "place", "prefix"), [(LargeKernelBlock, (8, 8, 7, 3), "lkb_reparam"), (DilatedBlock, (8, 7), "lk_origin")]
)
def test_names_of_the_deploy_form(pynative_mode, kind, place, prefix):
    block, reference = both(kind, *place)
    deployed, names = check_fold(block, reference), [f"{prefix}.weight", f"{prefix}.bias"]
    assert list(weights(deployed)) == list(weights(kind(*place, deploy=True))) == names
    block.switch_to_deploy()
    assert list(weights(block)) == names
    x, _ = noise_for(block, (12, 11))
    assert np.array_equal(block(x).asnumpy(), deployed(x).asnumpy())


def test_initial_kernels_are_the_authors():
    """RepLKNet keeps PyTorch's default, U(-b, b) with b = 1 / sqrt(fan_in); UniRepLKNet has a deviation of 0.02."""
    kernel = weights(LargeKernelBlock(64, 64, 13, groups=64))["lkb_origin.conv.weight"]
    assert np.abs(kernel).max() <= 1 / 13
    assert abs(kernel.std() * 13 * np.sqrt(3) - 1) < 0.05
    for name in ("lk_origin.weight", "dil_conv_k5_1.weight"):
        assert abs(weights(DilatedBlock(256, 13))[name].std() / 0.02 - 1) < 0.05
    with no_init_parameters():
        assert DilatedBlock(8, 5).lk_origin.weight.shape == (8, 1, 5, 5)


def test_what_has_no_set_or_does_not_fit_is_refused():
    with pytest.raises(
        ValueError, match=r"kernel_size \(=6\) must be one of 5, 7, 9, 11, 13, 15, 17, or small_kernels"
    ):
        DilatedBlock(8, 6)
    with pytest.raises(
        ValueError, match=r"a kernel of \(3, 3\) with dilation \(3, 3\) does not fit into the block's of"
    ):
        DilatedBlock(8, 5, [(3, 3)])
    with pytest.raises(
        ValueError, match=r"a kernel of \(5, 5\) with dilation \(1, 1\) does not fit into the block's of"
    ):
        LargeKernelBlock(8, 8, 3)


def test_every_set_of_dilated_kernels_is_the_papers():
    """arXiv:2311.15599: kernels and dilations of each size."""
    sizes = {
        17: ([5, 9, 3, 3, 3], [1, 2, 4, 5, 7]),
        15: ([5, 7, 3, 3, 3], [1, 2, 3, 5, 7]),
        13: ([5, 7, 3, 3, 3], [1, 2, 3, 4, 5]),
        11: ([5, 5, 3, 3, 3], [1, 2, 3, 4, 5]),
        9: ([5, 5, 3, 3], [1, 2, 3, 4]),
        7: ([5, 3, 3], [1, 2, 3]),
        5: ([3, 3], [1, 2]),
    }
    assert {size: tuple(zip(*pairs, strict=True)) for size, pairs in sizes.items()} == DILATED_SETS
