"""The diverse branch block: a convolution beside a 1x1, and two pairs of a 1x1 and what follows it.

    x --+-- conv kxk -- BN -------------------------------------------------+-- [SE] -- activation -- y
        +-- conv 1x1 -- BN -------------------------------------------------+
        +-- conv 1x1 -- BN, which fills the border -- average kxk --- BN ---+
        +-- conv 1x1 -- BN, which fills the border -- conv kxk ------ BN ---+

Source: Diverse Branch Block, figure 2, arXiv:2103.13425.
"""

from __future__ import annotations

from collections import OrderedDict

from mindrepvgg.reparam.container import Container
from mindrepvgg.reparam.foldable import FoldableBlock
from mindrepvgg.reparam.layers import conv2d
from mindrepvgg.reparam.parts import Average, BorderBN, ConvBN, PointThenConv


class DiverseBranchBlock(FoldableBlock):
    """One block: (N, in_channels, H, W) -> (N, out_channels, H', W').

    A depthwise block has no 1x1 beside the kernel and none before the average.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups: of the convolution that the branches
            equal; all branches have the block's dilation.
        activation: makes the cell at the end; None: no activation.
        internal_channels: between the 1x1 and the convolution after it; None: `in_channels`, or twice as many in a
            depthwise block. Where they are `in_channels`, the 1x1 starts as the identity.
        gammas: of each branch's last BN at first, (the first branch's, the others'); with (1, 0) the block begins as
            the plain convolution.
        options: se, se_ratio, deploy, norm, eps and momentum, see `FoldableBlock`.

    Raises:
        ValueError: `groups` does not divide the channels, `se` is unknown, or the padding is negative.
    """

    FUSED = "dbb_reparam"

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size=3,
        stride=1,
        padding=None,
        dilation=1,
        groups=1,
        activation=None,
        internal_channels=None,
        gammas=(1.0, 1.0),
        **options,
    ):
        place = kernel_size, stride, padding, dilation, groups
        own = {"depthwise": groups == in_channels == out_channels, "internal_channels": internal_channels}
        super().__init__(in_channels, out_channels, *place, activation, own=own, **options)
        self.start_gammas(*gammas)

    def make_branches(self, norm):
        """See `FoldableBlock.make_branches`."""
        channels, groups = (self.in_channels, self.out_channels), self.groups
        size, stride, dilation = self.kernel_size, self.stride, self.dilation
        self.dbb_origin = ConvBN(*channels, size, stride, groups, dilation, norm, self.padding)
        chains = [("dbb_origin",), ("dbb_avg",), ("dbb_1x1_kxk",)]
        before = OrderedDict()
        if not self.depthwise:
            self.dbb_1x1 = ConvBN(*channels, 1, stride, groups, norm=norm, padding=self.centred(1))
            chains.insert(1, ("dbb_1x1",))
            before["conv"] = conv2d(*channels, 1, groups=groups)
            before["bn"] = BorderBN(self.out_channels, self.padding, norm)
        padding = self.padding if self.depthwise else 0
        average = Average(self.out_channels, size, stride, padding, dilation, groups)
        self.dbb_avg = Container(OrderedDict(**before, avg=average, avgbn=norm(self.out_channels)))
        width = self.internal_channels or self.in_channels * (2 if self.depthwise else 1)
        place = size, stride, self.padding, dilation, groups
        self.dbb_1x1_kxk = PointThenConv(*channels, *place, width, norm)
        return tuple(chains)
