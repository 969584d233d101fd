"""Blocks with a large kernel, beside which smaller kernels are trained.

Sources: RepLKNet, arXiv:2203.06717; UniRepLKNet, arXiv:2311.15599.
"""

from __future__ import annotations

from mindspore.common.initializer import Normal, initializer

from mindrepvgg.reparam.foldable import FoldableBlock
from mindrepvgg.reparam.layers import conv2d, pair
from mindrepvgg.reparam.parts import ConvBN

# UniRepLKNet's smaller kernels of each large one: (size, dilation).
DILATED_SETS = {
    5: ((3, 1), (3, 2)),
    7: ((5, 1), (3, 2), (3, 3)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
}


class LargeKernelBlock(FoldableBlock):
    """RepLKNet's: a large convolution and a small one, each with its BN. The network's are depthwise.

    (N, in_channels, H, W) -> (N, out_channels, H', W')

    Args:
        in_channels, out_channels, kernel_size: of the convolution that the branches equal.
        small_kernel: the small one's size, a number or (height, width); None: no small one.
        activation: makes the cell at the end; RepLKNet has it outside.
        options: stride, padding, dilation, groups, se, se_ratio, deploy, norm, eps and momentum, see `FoldableBlock`.

    Raises:
        ValueError: `groups` does not divide the channels, `se` is unknown, or the small kernel is the larger one.
    """

    FUSED = "lkb_reparam"

    def __init__(self, in_channels, out_channels, kernel_size=31, small_kernel=5, activation=None, **options):
        own = {"small_kernel": small_kernel}
        super().__init__(in_channels, out_channels, kernel_size, activation=activation, own=own, **options)

    def make_branches(self, norm):
        """See `FoldableBlock.make_branches`."""
        channels, dilation = (self.in_channels, self.out_channels), self.dilation
        self.lkb_origin = ConvBN(*channels, self.kernel_size, self.stride, self.groups, dilation, norm, self.padding)
        if self.small_kernel is None:
            return (("lkb_origin",),)
        padding = self.centred(self.small_kernel, dilation)
        self.small_conv = ConvBN(*channels, self.small_kernel, self.stride, self.groups, dilation, norm, padding)
        return ("lkb_origin",), ("small_conv",)


class DilatedBlock(FoldableBlock):
    """UniRepLKNet's: a large depthwise convolution and small ones of growing dilation, each with its BN.

    (N, channels, H, W) -> (N, channels, H', W')

    Args:
        channels: of the input and the output.
        kernel_size: of the large one.
        small_kernels: (size, dilation) of each small one; None: the authors' for this `kernel_size`, see DILATED_SETS.
        groups: of all convolutions; None: `channels`, depthwise.
        activation: makes the cell at the end; UniRepLKNet has a BN after the block.
        options: stride, padding, dilation (a factor of the small ones too), se, se_ratio, deploy, norm, eps and
            momentum, see `FoldableBlock`.

    Raises:
        ValueError: the authors have no set for `kernel_size`, a small kernel does not fit into the large one, or what
            `FoldableBlock` refuses.
    """

    FUSED = "lk_origin"

    def __init__(self, channels, kernel_size=13, small_kernels=None, groups=None, activation=None, **options):
        if small_kernels is None:
            if kernel_size not in DILATED_SETS:
                known = ", ".join(map(str, DILATED_SETS))
                raise ValueError(f"kernel_size (={kernel_size}) must be one of {known}, or small_kernels must be given")
            small_kernels = DILATED_SETS[kernel_size]
        groups = channels if groups is None else groups
        own = {"small_kernels": tuple(small_kernels)}
        super().__init__(channels, channels, kernel_size, groups=groups, activation=activation, own=own, **options)

    def make_branches(self, norm):
        """See `FoldableBlock.make_branches`."""
        self.lk_origin = self._conv(self.kernel_size, self.dilation, self.padding)
        self.origin_bn = norm(self.out_channels)
        chains = [("lk_origin", "origin_bn")]
        for size, rate in self.small_kernels:
            dilation = tuple(rate * step for step in pair(self.dilation))
            chain = f"dil_conv_k{size}_{rate}", f"dil_bn_k{size}_{rate}"
            setattr(self, chain[0], self._conv(size, dilation, self.centred(size, dilation)))
            setattr(self, chain[1], norm(self.out_channels))
            chains.append(chain)
        return tuple(chains)

    def _conv(self, size, dilation, padding):
        """A convolution with the authors' initialisation: normal, of deviation 0.02."""
        conv = conv2d(self.in_channels, self.out_channels, size, self.stride, padding, dilation, self.groups)
        conv.weight.set_data(initializer(Normal(0.02), conv.weight.shape))
        return conv
