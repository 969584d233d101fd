"""Every block beside PyTorch's, with the same weights; and the grids over which the two are compared."""

import itertools

import torch
from mindspore import Tensor
from torch.nn import functional

from mindrepvgg.reparam import (
    ACBlock,
    DilatedBlock,
    DiverseBranchBlock,
    LargeKernelBlock,
    LinearAdditionBlock,
    MobileOneBlock,
    QARepVGGBlock,
    RepConv,
    RepConvN,
    RepVGGBlock,
    RepVGGDW,
)
from mindrepvgg.reparam.large_kernel import DILATED_SETS
from support import images, noise, randomise_bn, relative_difference
from support.torch_branches import Asymmetric, DiverseBranch, LinearAddition, QARepVGG, RepVGG
from support.torch_large_blocks import Dilated, LargeKernel, MobileOne, YoloV7, YoloV9, YoloV10
from support.torch_reference import copy_weights

PAIRS = {
    RepVGGBlock: RepVGG,
    QARepVGGBlock: QARepVGG,
    LinearAdditionBlock: LinearAddition,
    ACBlock: Asymmetric,
    DiverseBranchBlock: DiverseBranch,
    MobileOneBlock: MobileOne,
    LargeKernelBlock: LargeKernel,
    DilatedBlock: Dilated,
    RepConv: YoloV7,
    RepConvN: YoloV9,
    RepVGGDW: YoloV10,
}


def both(kind, *place, activation=None, **options):
    """A block with random weights and statistics, and PyTorch's in float64 with the same, in evaluation.

    Args:
        kind: one of PAIRS.
        place, options: arguments of both.
        activation: (ours, PyTorch's); None: the block's own.
    """
    ours, theirs = ({}, {}) if activation is None else ({"activation": part} for part in activation)
    block = randomise_bn(kind(*place, **options, **ours)).set_train(False)
    for parameter in block.get_parameters():
        if parameter.name.endswith("idconv1.weight"):  # a 1x1 that starts as the identity has moved
            parameter.set_data(Tensor(noise(*parameter.shape) / 4))
    if kind is DilatedBlock:
        options["small_kernels"] = block.small_kernels
    return block, copy_weights(block, PAIRS[kind](*place, **options, **theirs).double()).eval()


def noise_for(block, size=(12, 11)):
    """A float32 picture for a block, and the same in float64 for PyTorch."""
    x = images(2, block.in_channels, *size)
    return Tensor(x), torch.tensor(x, dtype=torch.float64)


def fold_error(block, reference, x):
    """How far the block's exact fold is from the reference's branches, SE and activation left out."""
    kernel, bias = (torch.from_numpy(part) for part in block.fused_kernel_bias())
    with torch.no_grad():
        expected = reference.branch_sum(x)
        y = functional.conv2d(reference.padded(x), kernel, bias, reference.stride, 0, reference.steps, reference.groups)
    return relative_difference(y, expected)


_WIDTHS = [(8, 8, 1), (8, 8, 8), (8, 12, 4)]  # in, out, groups: dense, depthwise, and neither


def _widths(channels, groups):
    """(in, out, groups), each that is possible."""
    pairs = itertools.product(channels, groups)
    return [(*width, count) for width, count in pairs if width[0] % count == 0 and width[1] % count == 0]


def _grid(widths, square=False, **axes):
    """Every combination as arguments of a block; SE stands outside of the fold, so each place has one of the three."""
    cases = []
    for (inputs, outputs, groups), *values in itertools.product(widths, *axes.values()):
        channels = {"channels": inputs} if square else {"in_channels": inputs, "out_channels": outputs}
        se = {"se": (None, "pre", "post")[len(cases) % 3], "se_ratio": 4}
        cases.append({**channels, "groups": groups, **dict(zip(axes, values, strict=True)), **se})
    return cases


def _sizes(pairs, **axes):
    """A grid over pairs of kernel sizes."""
    return [{**case, "kernel_size": large, "small_kernel": small} for large, small in pairs for case in _grid(**axes)]


_PLACE = {"stride": (1, 2), "dilation": (1, 2)}
_SMALL = {"kernel_size": (1, 3, 5, 7), **_PLACE}

# Kernel size x stride x dilation x channels and groups x what else the block has. The pictures' size is with it.
GRIDS = {
    RepVGGBlock: ((15, 14), _grid(_widths([(8, 8), (8, 12)], (1, 2, 4, 8)), **_SMALL)),
    QARepVGGBlock: ((15, 14), _grid(_widths([(8, 8), (8, 16)], (1, 2, 4, 8)), padding=(None, 0), **_SMALL)),
    LinearAdditionBlock: (
        (15, 14),
        _grid(_widths([(8, 8), (8, 16)], (1, 2, 4, 8)), padding=(None, 0), **_SMALL),
    ),
    ACBlock: ((15, 14), _grid(_widths([(8, 8), (8, 16)], (1, 2, 8)), padding=(None, 0, 1), **_SMALL)),
    DiverseBranchBlock: (
        (15, 14),
        _grid(_widths([(8, 8), (8, 12), (12, 8), (8, 16)], (1, 2, 4, 8)), padding=(None, 0), **_SMALL),
    ),
    MobileOneBlock: ((15, 14), _grid(_widths([(8, 8), (8, 12)], (1, 4, 8)), num_branches=(1, 3), **_SMALL)),
    LargeKernelBlock: (
        (15, 14),
        _sizes([(5, 3), (7, 1), (7, 5), (13, 3), (13, 5), (31, 5), (6, 2), (6, 3)], widths=_WIDTHS, **_PLACE),
    ),
    DilatedBlock: (
        (35, 34),
        _grid(_widths([(8, 8)], (1, 2, 8)), True, kernel_size=tuple(DILATED_SETS), padding=(None, 1), **_PLACE),
    ),
    RepConv: ((12, 11), _grid(_WIDTHS, kernel_size=(1, 3, 5), identity=(True, False), **_PLACE)),
    RepConvN: ((12, 11), _grid(_WIDTHS, kernel_size=(1, 3, 5), identity=(True, False), **_PLACE)),
    RepVGGDW: (
        (12, 11),
        _sizes([(7, 3), (7, 5), (5, 1), (3, 3), (6, 3)], widths=_widths([(8, 8)], (1, 2, 8)), square=True, **_PLACE),
    ),
}
