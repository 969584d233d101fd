"""RepOptimizer's blocks: a linear addition, whose scales are searched for, and the convolution trained in its place.

    linear addition: x --+-- conv kxk -- times s --+
                         +-- conv 1x1 -- times t --+-- BN -- [SE] -- ReLU -- y
                         +-------------- times u --+   (where channels and size stay the same)
    RepOpt-VGG:      x ------ conv kxk ----------------- BN -- [SE] -- ReLU -- y

With constant s and t, SGD on the linear addition takes the same steps as SGD on the one kernel whose gradients are
multiplied by `gradient_multiplier`, from `merged_kernel` on. Source: RepOptimizer, arXiv:2205.15242, section 3.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from mindspore import Tensor
from mindspore.common.initializer import initializer

from mindrepvgg.reparam import algebra
from mindrepvgg.reparam.foldable import FoldableBlock
from mindrepvgg.reparam.layers import conv2d, kernel_init
from mindrepvgg.reparam.parts import ChannelScale


class Scales(NamedTuple):
    """The scales of a block, (out,) arrays.

    Attributes:
        conv, point: of the large convolution and of the 1x1, s and t.
        identity: of the input, u; None where the block has no identity branch.
    """

    conv: np.ndarray
    point: np.ndarray
    identity: np.ndarray | None = None


def merged_kernel(scales: Scales, kernel: np.ndarray, point: np.ndarray) -> np.ndarray:
    """The one kernel that a linear addition is: s K3 + t K1 + u I, in float64.

    Args:
        scales: of the block.
        kernel, point: the kernels of the large convolution, (out, in // groups, kh, kw) of odd sizes, and of the 1x1.
    """
    per_group, height, width = kernel.shape[1:]
    wide = (1, 1), (height // 2, height // 2, width // 2, width // 2), (1, 1), 1
    narrow = (1, 1), (0, 0, 0, 0), (1, 1), 1
    maps = [
        algebra.scale((kernel.astype(np.float64), None, *wide), scales.conv.astype(np.float64)),
        algebra.scale((point.astype(np.float64), None, *narrow), scales.point.astype(np.float64)),
    ]
    if scales.identity is not None:
        channels = len(kernel)
        eye = algebra.identity_kernel(channels, channels // per_group), None, *narrow
        maps.append(algebra.scale(eye, scales.identity.astype(np.float64)))
    return algebra.add(*maps)[0]


def gradient_multiplier(scales: Scales, shape: tuple[int, ...], power: int) -> np.ndarray:
    """What the gradient of the one kernel is multiplied by: (out, in // groups, kh, kw) float64.

    |s|^power everywhere, |t|^power more in the centre, and 1 more on the centre's diagonal where there is an identity
    branch: its scale u is trained.

    Args:
        scales: of the block.
        shape: of the kernel.
        power: 2 for SGD. 1 for AdamW, whose steps do not grow with the gradients; it also multiplies the step.
    """
    powers = Scales(
        np.abs(scales.conv.astype(np.float64)) ** power,
        np.abs(scales.point.astype(np.float64)) ** power,
        None if scales.identity is None else np.ones(shape[0]),
    )
    return merged_kernel(powers, np.ones(shape), np.ones((*shape[:2], 1, 1)))


class LinearAdditionBlock(FoldableBlock):
    """BN(s conv kxk + t conv 1x1 + u x), then SE and ReLU: (N, in_channels, H, W) -> (N, out_channels, H', W').

    s, t, u: a number for each channel, trained: this is the block that RepOptimizer's scales are searched with. The
    input is a branch where channels and size stay.

    Args:
        in_channels, out_channels: channels of the input and the output.
        start: what s and t are at first; u is 1.
        **options: see `FoldableBlock`.
    """

    def __init__(self, in_channels, out_channels, kernel_size=3, stride=1, start=1.0, **options):
        super().__init__(in_channels, out_channels, kernel_size, stride, own={"start": start}, **options)

    def make_branches(self, norm):
        """See `FoldableBlock.make_branches`."""
        channels, out = (self.in_channels, self.out_channels), self.out_channels
        self.conv = conv2d(*channels, self.kernel_size, self.stride, self.padding, self.dilation, self.groups)
        self.scale_conv = ChannelScale(out, self.start)
        self.conv_1x1 = conv2d(*channels, 1, self.stride, self.centred(1), groups=self.groups)
        self.scale_1x1 = ChannelScale(out, self.start)
        adds_input = self.keeps_shape()
        if adds_input:
            self.scale_identity = ChannelScale(out)
        self.bn = norm(out)
        self.after_sum = ("bn",)
        return ("conv", "scale_conv"), ("conv_1x1", "scale_1x1"), *((("scale_identity",),) if adds_input else ())


class RepOptBlock(FoldableBlock):
    """One convolution and its BN, in training too: what RepOptimizer trains. (N, in, H, W) -> (N, out, H', W').

    Arguments: see `FoldableBlock`.
    """

    def make_branches(self, norm):
        """See `FoldableBlock.make_branches`."""
        place = self.kernel_size, self.stride, self.padding, self.dilation, self.groups
        self.conv = conv2d(self.in_channels, self.out_channels, *place)
        self.bn = norm(self.out_channels)
        return (("conv", "bn"),)

    def start_from(self, scales: Scales):
        """Make the fresh kernel, in place, that of the linear addition with these scales; its 1x1 is drawn here."""
        shape = self.conv.weight.shape
        point = initializer(kernel_init(), (*shape[:2], 1, 1)).init_data().asnumpy()
        kernel = merged_kernel(scales, self.conv.weight.asnumpy(), point)
        self.conv.weight.set_data(Tensor(kernel.astype(np.float32)))
