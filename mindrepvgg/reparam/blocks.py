"""The RepVGG block, in both of its forms.

    train form                                   deploy form

    x --+-- conv 3x3 -- BN --+                   x -- conv 3x3 + bias -- [SE] -- ReLU -- y
        +-- conv 1x1 -- BN --+-- [SE] -- ReLU -- y
        +------------- BN ---+   (identity: only where channels and size stay the same)

Source: RepVGG, figure 4, arXiv:2101.03697; SE after the ReLU ('post') is RepVGGplus's.
"""

from __future__ import annotations

from mindspore import nn

from mindrepvgg.reparam.foldable import FoldableBlock
from mindrepvgg.reparam.layers import conv2d, pair
from mindrepvgg.reparam.parts import ConvBN


class RepVGGBlock(FoldableBlock):
    """One block: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).

    Args:
        in_channels, out_channels: channels of the input and the output.
        stride: of both convolutions.
        groups: of both convolutions; it divides the channels.
        dilation: of the large convolution; the map keeps its size at stride 1.
        se: None, 'pre' (before the ReLU) or 'post' (after it).
        se_ratio: SE squeezes to out_channels // se_ratio.
        deploy: build the single convolution instead of the branches.
        norm: the BN's class; any with BatchNorm2d's parameters, such as SyncBatchNorm.
        kernel_size: of the large convolution, odd.
        activation: makes the cell at the end; None: no activation.

    Raises:
        ValueError: `groups` does not divide the channels, or `se` is unknown.
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        stride=1,
        groups=1,
        dilation=1,
        se=None,
        se_ratio=16,
        deploy=False,
        norm=nn.BatchNorm2d,
        kernel_size=3,
        activation=nn.ReLU,
    ):
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            None,
            dilation,
            groups,
            activation,
            se,
            se_ratio,
            deploy,
            norm,
        )

    def make_branches(self, norm):
        """See `FoldableBlock.make_branches`."""
        channels = self.in_channels, self.out_channels
        self.rbr_dense = ConvBN(*channels, self.kernel_size, self.stride, self.groups, self.dilation, norm)
        self.rbr_1x1 = ConvBN(*channels, 1, self.stride, self.groups, norm=norm)
        if self.in_channels != self.out_channels or pair(self.stride) != (1, 1):
            return ("rbr_dense",), ("rbr_1x1",)
        self.rbr_identity = norm(self.out_channels)
        return ("rbr_dense",), ("rbr_1x1",), ("rbr_identity",)


class QARepVGGBlock(FoldableBlock):
    """RepVGG's block whose activations and kernels can be quantised: BN(BN(conv kxk) + conv 1x1 + x), then SE and ReLU.

    (N, in_channels, H, W) -> (N, out_channels, H', W'). The 1x1 has no BN; the input itself is a branch where channels
    and size stay. This is the authors' QARepVGGBlockV2, their default. SE comes after the outer BN, or it could not be
    told from the convolution. Arguments: see `FoldableBlock`. Source: QARepVGG, arXiv:2212.01593.
    """

    def make_branches(self, norm):
        """See `FoldableBlock.make_branches`."""
        channels, stride, groups = (self.in_channels, self.out_channels), self.stride, self.groups
        self.rbr_dense = ConvBN(*channels, self.kernel_size, stride, groups, self.dilation, norm, self.padding)
        self.rbr_1x1 = conv2d(*channels, 1, stride, self.centred(1), groups=groups)
        self.bn = norm(self.out_channels)
        self.after_sum = ("bn",)
        return ("rbr_dense",), ("rbr_1x1",), *(((),) if self.keeps_shape() else ())
