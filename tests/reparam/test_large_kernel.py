"""RepLKNet's and UniRepLKNet's blocks against PyTorch in float64: folds, both forms, training, names, wrong folds."""

import itertools

import numpy as np
import pytest
from mindspore import nn
from mindspore.nn.utils import no_init_parameters
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
from support.torch_large_blocks import Dilated, LargeKernel
from torch import nn as torch_nn

from mindrepvgg.reparam.large_kernel import DILATED_SETS, DilatedBlock, LargeKernelBlock

pytestmark = pytest.mark.compat


def large(*place, activation=(None, None), **options):
    return with_history(
        LargeKernelBlock(*place, activation=activation[0], **options),
        LargeKernel(*place, activation=activation[1], **options),
    )


def dilated(channels, size, small_kernels=None, activation=(None, None), **options):
    reference = Dilated(channels, size, small_kernels or DILATED_SETS[size], activation=activation[1], **options)
    return with_history(DilatedBlock(channels, size, small_kernels, activation=activation[0], **options), reference)


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
    ((8, 7, ((3, 2),)), {"dilation": (2, 3), "padding": 4}),
    ((8, 11, ((1, 1), (2, 3), (11, 1))), {"groups": 4, "se": "post", "se_ratio": 4}),
]


@pytest.mark.parametrize(("place", "options"), LARGE)
def test_a_large_kernel_is_what_pytorch_says_and_what_it_folds_into(pynative_mode, place, options):
    check_fold(*large(*place, **options))


@pytest.mark.parametrize(("place", "options"), DILATED)
def test_dilated_kernels_are_what_pytorch_says_and_what_they_fold_into(pynative_mode, place, options):
    check_fold(*dilated(*place, **options))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "stride", "dilation", "width", "se"),
    with_se(
        itertools.product(
            [(5, 3), (7, 1), (7, 5), (13, 3), (13, 5), (31, 5), (6, 2), (6, 3)],
            (1, 2),
            (1, 2),
            [((8, 8), 8), ((8, 8), 1), ((8, 12), 4)],
        )
    ),
)
def test_the_whole_grid_of_large_kernels(pynative_mode, sizes, stride, dilation, width, se):
    channels, groups = width
    options = {"stride": stride, "dilation": dilation, "groups": groups, "se": se, "se_ratio": 4}
    check_fold(*large(*channels, *sizes, **options), (15, 14))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "stride", "dilation", "groups", "padding", "se"),
    with_se(itertools.product(DILATED_SETS, (1, 2), (1, 2), (None, 1, 2), (None, 1))),
)
def test_the_whole_grid_of_dilated_kernels(pynative_mode, size, stride, dilation, groups, padding, se):
    options = {"stride": stride, "dilation": dilation, "groups": groups, "se": se, "se_ratio": 4, "padding": padding}
    check_fold(*dilated(8, size, **options), (35, 34))


def test_graph_mode(graph_mode):
    check_graph(*large(8, 8, 13, 5, groups=8))


def test_graph_mode_with_dilation(graph_mode):
    check_graph(*dilated(8, 7, ((3, 2),), dilation=2))


def test_a_large_kernel_trains_as_pytorchs_does(pynative_mode):
    check_training(*large(8, 8, 7, 3, groups=8, activation=(nn.ReLU, torch_nn.ReLU)))


def test_dilated_kernels_train_as_pytorchs_do(pynative_mode):
    check_training(*dilated(8, 5, activation=(nn.ReLU, torch_nn.ReLU)))


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
    ("kind", "place", "prefix"), [(large, (8, 8, 7, 3), "lkb_reparam"), (dilated, (8, 7), "lk_origin")]
)
def test_names_of_the_deploy_form(pynative_mode, kind, place, prefix):
    block, reference = kind(*place)
    deployed, names = check_fold(block, reference), [f"{prefix}.weight", f"{prefix}.bias"]
    assert list(weights(deployed)) == list(weights(type(block)(*place, deploy=True))) == names
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


def move_the_small_kernel(block):
    block.small_conv.conv.padding = (3, 1, 2, 2)


def leave_out_the_small_kernel(block):
    block.chains = block.chains[:1]


def forget_the_dilation(block):
    block.dil_conv_k3_2.dilation, block.dil_conv_k3_2.padding = (1, 1), (1, 1, 1, 1)


def take_another_dilation(block):
    block.dil_conv_k3_2.dilation, block.dil_conv_k3_2.padding = (3, 3), (3, 3, 3, 3)


def swap_two_kernels(block):
    one, other = block.dil_conv_k3_2, block.dil_conv_k3_3
    one.weight, other.weight = other.weight, one.weight


@pytest.mark.parametrize("damage", [move_the_small_kernel, leave_out_the_small_kernel])
def test_a_wrong_fold_of_a_large_kernel_is_found(pynative_mode, damage):
    check_damage(*large(8, 8, 13, 5, groups=8), damage)


@pytest.mark.parametrize("damage", [forget_the_dilation, take_another_dilation, swap_two_kernels])
def test_a_wrong_fold_of_dilated_kernels_is_found(pynative_mode, damage):
    check_damage(*dilated(8, 7), damage)


def check_damage(block, reference, damage):
    _, x = noise_for(block, (12, 11))
    assert fold_error(block, reference, x) < EXACT
    damage(block)
    assert fold_error(block, reference, x) > CLEARLY
