"""Folds that are wrong in one thing each: what every check of a fold must tell from the right one.

The first half makes a wrong map with the operations of the algebra. The second half changes one thing of a block, or of
PyTorch's beside it. The documents' table of these is made of the same list.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from mindrepvgg.reparam import (
    ACBlock,
    DilatedBlock,
    DiverseBranchBlock,
    LargeKernelBlock,
    LinearAdditionBlock,
    MobileOneBlock,
    QARepVGGBlock,
    RepConv,
    RepVGGBlock,
    RepVGGDW,
)
from mindrepvgg.reparam.algebra import (
    LinearMap,
    add,
    compose,
    concatenate,
    enlarge,
    fill_border,
    fold_bn,
    identity_kernel,
    scale,
    to_dense,
    ungroup,
)
from support import relative_difference
from support.block_pairs import both, fold_error, noise_for
from support.linear_maps import EPS, around, batch_norm, bn_vectors, convolved, error, pictures, random_map

# What a wrong fold must be off by at least, over the largest output.
CLEARLY = 1e-2


@dataclass(frozen=True)
class Control:
    """One wrong fold.

    Attributes:
        subject: the operation or the block.
        wrong: what was made wrong.
        errors: gives how far the right fold and the wrong one are from PyTorch's float64, over the largest output.
        least: what the wrong one must be off by.
    """

    subject: str
    wrong: str
    errors: Callable
    least: float = CLEARLY

    def __str__(self):
        return f"{self.subject}: {self.wrong}"


WHOLE = {"padding": (1, 1, 1, 1)}


def folded(rng):
    linear_map, bn, x = random_map(rng, **WHOLE), bn_vectors(rng, 8), pictures(rng)
    gamma, beta, mean, var = bn
    wrong = {
        "gamma left out": fold_bn(linear_map, np.ones(8), beta, mean, var, EPS),
        "beta left out": fold_bn(linear_map, gamma, np.zeros(8), mean, var, EPS),
        "the mean left out": fold_bn(linear_map, gamma, beta, np.zeros(8), var, EPS),
        "divided by the variance": fold_bn(linear_map, gamma, beta, mean, var**2, EPS),
        "the convolution's bias left out": fold_bn(linear_map._replace(bias=None), *bn, EPS),
    }
    return fold_bn(linear_map, *bn, EPS), batch_norm(convolved(linear_map, x), bn), x, wrong


def epsilon(rng):
    linear_map, bn, x = random_map(rng), bn_vectors(rng, 8), pictures(rng)
    wrong = {"1e-5 for 1e-3": fold_bn(linear_map, *bn, 1e-5)}
    return fold_bn(linear_map, *bn, 1e-3), batch_norm(convolved(linear_map, x), bn, 1e-3), x, wrong


def straight(rng):
    x, kernel = pictures(rng), identity_kernel(8, 2)
    wrong = {"each output takes the next input": LinearMap(np.roll(kernel, 1, 1), groups=2)}
    return LinearMap(kernel, groups=2), x, x, wrong


def pooled(rng):
    x, kernel, shape = pictures(rng), identity_kernel(8, 2, (3, 3), 1 / 9), {"groups": 2, **WHOLE}
    inside = convolved(LinearMap(np.ones((1, 1, 3, 3)) / 9, **WHOLE), torch.ones(1, 1, *x.shape[2:]).double())
    expected = nn.functional.avg_pool2d(x, 3, 1, 1)
    wrong = {
        "a sum for the mean": LinearMap(9 * kernel, **shape),
        "the padding's zeros not counted": convolved(LinearMap(kernel, **shape), x) / inside,
    }
    return LinearMap(kernel, **shape), expected, x, wrong


def scaled(rng):
    linear_map, factor, x = random_map(rng, groups=2), rng.normal(size=8), pictures(rng)
    right = LinearMap(*scale(linear_map, factor))
    wrong = {
        "the kernel not scaled": right._replace(kernel=linear_map.kernel),
        "the bias not scaled": right._replace(bias=linear_map.bias),
    }
    return right, convolved(linear_map, x) * torch.tensor(factor).reshape(1, 8, 1, 1), x, wrong


def enlarged(rng):
    linear_map, x = random_map(rng, size=(1, 1)), pictures(rng)
    right = LinearMap(*enlarge(linear_map, 1, 1, 1, 1))
    corner = LinearMap(*enlarge(linear_map, 0, 2, 0, 2))
    wrong = {"the kernel in the corner": right._replace(kernel=corner.kernel)}
    return right, convolved(linear_map, x), x, wrong


def dense(rng):
    linear_map, x = random_map(rng, groups=8, dilation=(2, 2), padding=(2, 2, 2, 2)), pictures(rng)
    wrong = {"the dilation ignored": linear_map._replace(dilation=(1, 1), padding=(1, 1, 1, 1))}
    return to_dense(linear_map), convolved(linear_map, x), x, wrong


def ungrouped(rng):
    linear_map, x = random_map(rng, groups=2), pictures(rng)
    right = LinearMap(*ungroup(linear_map))
    wrong = {"the groups exchanged": right._replace(kernel=np.roll(right.kernel, 4, 1))}
    return right, convolved(linear_map, x), x, wrong


def summed(rng):
    large, small, x = random_map(rng, **WHOLE), random_map(rng, size=(1, 1)), pictures(rng)
    wrong = {
        "a branch left out": large,
        "a bias left out": add(large, small._replace(bias=None)),
        "the small kernel in the corner": add(large, small._replace(padding=(1, -1, 1, -1))),
    }
    return add(large, small), convolved(large, x) + convolved(small, x), x, wrong


def joined(rng):
    one, other, x = random_map(rng), random_map(rng), pictures(rng)
    wrong = {"the order exchanged": concatenate(other, one)}
    return concatenate(one, other), torch.cat([convolved(one, x), convolved(other, x)], 1), x, wrong


def bordered(rng):
    point, x = random_map(rng, size=(1, 1)), pictures(rng)
    expected = around(convolved(point, x), (1, 1, 1, 1), torch.tensor(point.bias))
    wrong = {"zeros for what zeros become": around(convolved(point, x), (1, 1, 1, 1))}
    return fill_border(point, 1, 1, 1, 1), expected, x, wrong


def composed(rng):
    """A 1x1, and a 3x3 whose border is filled with what zeros become."""
    first, second, x = random_map(rng, 8, 8, (1, 1), 2), random_map(rng, groups=2), pictures(rng)

    def then(one, other):
        return compose(fill_border(one, 1, 1, 1, 1), other)

    right = LinearMap(*then(first, second))
    expected = convolved(second, around(convolved(first, x), (1, 1, 1, 1), torch.tensor(first.bias)))
    wrong = {
        "the border of zeros": convolved(second, around(convolved(first, x), (1, 1, 1, 1))),
        "the 1x1's outputs exchanged": then(first._replace(kernel=first.kernel[::-1].copy()), second),
        "the two kernels exchanged": right._replace(kernel=compose(second, first)[0]),
        "the 1x1's bias left out": then(first._replace(bias=np.zeros(8)), second),
    }
    return right, expected, x, wrong


OPERATIONS = {
    "BN folded": folded,
    "epsilon of a BN": epsilon,
    "identity": straight,
    "average pooling": pooled,
    "channel scale": scaled,
    "kernel enlarged": enlarged,
    "dilation made dense": dense,
    "groups made one": ungrouped,
    "sum": summed,
    "outputs side by side": joined,
    "border": bordered,
    "1x1 and then 3x3": composed,
}


def _of_operation(make, wrong):
    def errors():
        right, expected, x, others = make(np.random.default_rng(0))
        other = others[wrong]
        off = relative_difference(other, expected) if isinstance(other, torch.Tensor) else error(other, expected, x)
        return error(right, expected, x), off

    return errors


# What follows changes one thing of a block, or of PyTorch's.


def without(*names):
    """Leave the branch of one of these names out of a fold."""

    def damage(block, _reference):
        block.chains = tuple(chain for chain in block.chains if chain[0] not in names)

    return damage


def scale_of(*names):
    """Leave the gamma of PyTorch's BN, or a scale, out."""

    def damage(_block, reference):
        for name in names:
            reference.get_submodule(name).weight.data.fill_(1)

    return damage


def moved(name):
    """Put a small kernel beside the middle in a fold."""

    def damage(block, _reference):
        conv = dict(block.cells_and_names())[name]
        top, bottom, left, right = conv.padding if isinstance(conv.padding, tuple) else (conv.padding,) * 4
        conv.padding = top + 1, bottom - 1, left, right

    return damage


def usual_eps(block, _reference):
    for _, cell in block.cells_and_names():
        if hasattr(cell, "bn_infer"):
            cell.bn_infer.epsilon = 1e-5


def outer_bn_left_out(_block, reference):
    reference.bn = nn.Identity()


def outer_bn_on_the_kernel_alone(_block, reference):
    bn, reference.bn = reference.bn, nn.Identity()
    reference.rbr_dense = nn.Sequential(reference.rbr_dense, bn)


def input_left_out(_block, reference):
    reference.adds_input = False


def column_and_row_exchanged(_block, reference):
    column, row = reference.ver_conv.weight, reference.hor_conv.weight
    column.data, row.data = row.data.transpose(2, 3).clone(), column.data.transpose(2, 3).clone()


def column_beside_the_middle(_block, reference):
    under = reference.under
    reference.under = lambda x, size: under(x.roll(1, 3) if size == (3, 1) else x, size)


def border_of_zeros_before_the_kernel(_block, reference):
    reference.dbb_1x1_kxk.bn1.filled = False


def border_of_zeros_before_the_average(_block, reference):
    reference.dbb_avg.bn.filled = False


def padding_not_counted(_block, reference):
    reference.dbb_avg.avg.counts_zeros = False


def sum_for_the_mean(_block, reference):
    mean = reference.dbb_avg.avg
    total = nn.Identity()
    total.forward = lambda x: mean(x) * mean.size[0] * mean.size[1]
    reference.dbb_avg.avg = total


def identity_of_the_1x1_left_out(_block, reference):
    reference.dbb_1x1_kxk.idconv1.adds_identity = False


def kernel_mirrored(_block, reference):
    kernel = reference.dbb_1x1_kxk.conv2.weight
    kernel.data = kernel.data.flip(3)


def groups_exchanged(_block, reference):
    kernel = reference.dbb_1x1_kxk.conv2.weight
    kernel.data = kernel.data.roll(len(kernel) // 2, 0)


def one_of_the_sum_left_out(block, _reference):
    block.rbr_conv.cell_list = block.rbr_conv.cell_list[:-1]


def dilated_by(rate):
    def damage(block, _reference):
        conv = block.dil_conv_k3_2
        conv.dilation, conv.padding = (rate, rate), (rate,) * 4

    return damage


def dilated_kernels_exchanged(block, _reference):
    one, other = block.dil_conv_k3_2, block.dil_conv_k3_3
    one.weight, other.weight = other.weight, one.weight


SMALL, DEPTHWISE = ((8, 8), {}), ((8, 8), {"groups": 8})
# What is off at the border alone is a small part of a picture.
AT_THE_BORDER = CLEARLY / 10

# Block, its arguments, what is made wrong, how, and what it is off by at least where that is little.
BLOCKS = [
    (RepVGGBlock, SMALL, "the identity left out", without("rbr_identity")),
    (RepVGGBlock, SMALL, "the 1x1 left out", without("rbr_1x1")),
    (RepVGGBlock, SMALL, "the 1x1 beside the middle", moved("rbr_1x1.conv")),
    (RepVGGBlock, SMALL, "the 1x1's scale left out", scale_of("rbr_1x1.bn")),
    (QARepVGGBlock, SMALL, "the outer BN left out", outer_bn_left_out),
    (QARepVGGBlock, SMALL, "the outer BN on the kernel alone", outer_bn_on_the_kernel_alone),
    (QARepVGGBlock, SMALL, "the outer scale left out", scale_of("bn")),
    (QARepVGGBlock, SMALL, "the inner scale left out", scale_of("rbr_dense.bn")),
    (QARepVGGBlock, ((8, 8), {"groups": 2}), "the input left out", input_left_out),
    (LinearAdditionBlock, SMALL, "the scale of the kxk left out", scale_of("scale_conv")),
    (LinearAdditionBlock, SMALL, "the scale of the 1x1 left out", scale_of("scale_1x1")),
    (LinearAdditionBlock, SMALL, "the scale of the input left out", scale_of("scale_identity")),
    (LinearAdditionBlock, SMALL, "the 1x1 beside the middle", moved("conv_1x1")),
    (LinearAdditionBlock, SMALL, "the outer BN left out", outer_bn_left_out),
    (ACBlock, SMALL, "column and row exchanged", column_and_row_exchanged),
    (ACBlock, ((8, 8), {"padding": 0}), "column and row exchanged, no padding", column_and_row_exchanged),
    (ACBlock, SMALL, "the column beside the middle", column_beside_the_middle),
    (ACBlock, SMALL, "the row left out", without("hor_conv")),
    (ACBlock, SMALL, "the row's scale left out", scale_of("hor_bn")),
    (DiverseBranchBlock, SMALL, "zeros around the 1x1 and kxk", border_of_zeros_before_the_kernel, AT_THE_BORDER),
    (
        DiverseBranchBlock,
        DEPTHWISE,
        "zeros around the 1x1 and kxk, depthwise",
        border_of_zeros_before_the_kernel,
        AT_THE_BORDER,
    ),
    (
        DiverseBranchBlock,
        ((8, 8), {"groups": 2}),
        "zeros around the 1x1 and average",
        border_of_zeros_before_the_average,
        AT_THE_BORDER,
    ),
    (DiverseBranchBlock, DEPTHWISE, "the average's zeros not counted", padding_not_counted, AT_THE_BORDER),
    (DiverseBranchBlock, SMALL, "a sum for the average", sum_for_the_mean),
    (DiverseBranchBlock, DEPTHWISE, "a sum for the average, depthwise", sum_for_the_mean),
    (DiverseBranchBlock, SMALL, "the identity of the 1x1 left out", identity_of_the_1x1_left_out),
    (DiverseBranchBlock, SMALL, "the scale before the border left out", scale_of("dbb_1x1_kxk.bn1.bn")),
    (DiverseBranchBlock, SMALL, "the average's scale left out", scale_of("dbb_avg.avgbn")),
    (DiverseBranchBlock, SMALL, "a kernel mirrored", kernel_mirrored),
    (DiverseBranchBlock, ((8, 8), {"groups": 2}), "groups exchanged", groups_exchanged),
    (MobileOneBlock, ((8, 8, 3, 4), {}), "one of four kernels left out", one_of_the_sum_left_out),
    (MobileOneBlock, ((8, 8, 3, 4), {}), "the 1x1 left out", without("rbr_scale")),
    (MobileOneBlock, ((8, 8, 3, 4), {}), "the identity left out", without("rbr_skip")),
    (MobileOneBlock, ((8, 8, 3, 4), {}), "the 1x1 beside the middle", moved("rbr_scale.conv")),
    (LargeKernelBlock, ((8, 8, 13, 5), {"groups": 8}), "the small kernel left out", without("small_conv")),
    (LargeKernelBlock, ((8, 8, 13, 5), {"groups": 8}), "the small kernel beside the middle", moved("small_conv.conv")),
    (DilatedBlock, ((8, 7), {}), "a dilation ignored", dilated_by(1)),
    (DilatedBlock, ((8, 7), {}), "another dilation", dilated_by(3)),
    (DilatedBlock, ((8, 7), {}), "two dilated kernels exchanged", dilated_kernels_exchanged),
    (RepConv, SMALL, "the 1x1 left out", without("rbr_1x1")),
    (RepConv, SMALL, "the identity left out", without("rbr_identity")),
    (RepConv, SMALL, "epsilon 1e-5 for 1e-3", usual_eps, 1e-4),
    (RepVGGDW, ((8,), {}), "the small kernel left out", without("conv1")),
    (RepVGGDW, ((8,), {}), "the small kernel beside the middle", moved("conv1.conv")),
]


def _of_block(kind, arguments, damage):
    def errors():
        place, options = arguments
        block, reference = both(kind, *place, **options)
        _, x = noise_for(block)
        right = fold_error(block, reference, x)
        damage(block, reference)
        return right, fold_error(block, reference, x)

    return errors


CONTROLS = [
    Control(name, wrong, _of_operation(make, wrong), 1e-4 if make is epsilon else CLEARLY)
    for name, make in OPERATIONS.items()
    for wrong in make(np.random.default_rng(0))[3]
] + [
    Control(kind.__name__, wrong, _of_block(kind, arguments, damage), *least)
    for kind, arguments, wrong, damage, *least in BLOCKS
]
