"""The blocks of RepVGG and of QARepVGG, and one without further branches.

    train form                                   deploy form

    x --+-- conv 3x3 -- BN --+                   x -- conv 3x3 + bias -- [SE] -- ReLU -- y
        +-- conv 1x1 -- BN --+-- [SE] -- ReLU -- y
        +------------- BN ---+   (identity: only where channels and size stay the same)

Sources: RepVGG, figure 4, arXiv:2101.03697; SE after the ReLU ('post') is RepVGGplus's. QARepVGG, arXiv:2212.01593.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindrepvgg.reparam.algebra import centre_mask
from mindrepvgg.reparam.foldable import FoldableBlock
from mindrepvgg.reparam.layers import conv2d
from mindrepvgg.reparam.maps import constant_scale, differentiable, identity
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
        identity: False: no identity branch even where channels and size stay.

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
        identity=True,
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
            identity=identity,
        )

    def make_branches(self, norm):
        """See `FoldableBlock.make_branches`."""
        channels = self.in_channels, self.out_channels
        self.rbr_dense = ConvBN(*channels, self.kernel_size, self.stride, self.groups, self.dilation, norm)
        self.rbr_1x1 = ConvBN(*channels, 1, self.stride, self.groups, norm=norm)
        if not self.keeps_shape():
            return ("rbr_dense",), ("rbr_1x1",)
        self.rbr_identity = norm(self.out_channels)
        return ("rbr_dense",), ("rbr_1x1",), ("rbr_identity",)

    def custom_l2(self):
        """The custom L2 of a train-form block, two scalars to be added: |K3 but its centre|^2, and
        |t3 K3's centre + t1 K1|^2 / (t3^2 + t1^2).

        K3, K1: the kernels of the large and the 1x1 branch; t = gamma / sqrt(moving variance + eps) of each one's BN,
        for which there is no gradient. Source: the authors' repvggplus_custom_L2.py: the identity branch takes no part,
        and the division keeps the equivalent centre at the size of an ordinary kernel.
        """
        kernel, kernel_1x1 = self.rbr_dense.conv.weight, self.rbr_1x1.conv.weight
        t3, t1 = constant_scale(self.rbr_dense.bn), constant_scale(self.rbr_1x1.bn)
        centre = Tensor(centre_mask(self.kernel_size), ms.float32)
        around = kernel * (1 - centre)
        equivalent = (kernel * centre).sum((2, 3), keepdims=True) * t3 + kernel_1x1 * t1
        # A channel whose gammas are both zero is no division by zero, which no device should meet.
        size = ops.maximum(t3 * t3 + t1 * t1, 1e-12)
        return (around * around).sum(), (equivalent * equivalent / size).sum()


class PlainBlock(FoldableBlock):
    """One convolution and its BN: what the other blocks are measured against. (N, in, H, W) -> (N, out, H', W').

    Arguments: see `FoldableBlock`.
    """

    def make_branches(self, norm):
        """See `FoldableBlock.make_branches`."""
        place = self.kernel_size, self.stride, self.groups, self.dilation
        self.rbr_dense = ConvBN(self.in_channels, self.out_channels, *place, norm, self.padding)
        return (("rbr_dense",),)


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

    def custom_l2(self):
        """The custom L2 of a train-form block, two scalars to be added: |t3 K3 but its centre|^2, and
        |t3 K3's centre + K1 + I|^2.

        As `RepVGGBlock.custom_l2`, without its division, which makes the activations' variance grow. I: the identity,
        where the block has one.
        """
        kernel = self.rbr_dense.conv.weight * constant_scale(self.rbr_dense.bn)
        centre = Tensor(centre_mask(self.kernel_size), ms.float32)
        around = kernel * (1 - centre)
        equivalent = (kernel * centre).sum((2, 3), keepdims=True) + self.rbr_1x1.weight
        if len(self.chains) == 3:
            equivalent = equivalent + identity(self.in_channels, self.groups, differentiable)[0]
        return (around * around).sum(), (equivalent * equivalent).sum()
