"""The re-parameterised blocks of YOLO networks: YOLOv7's and v9's RepConv, YOLOv10's RepVGGDW.

Sources: YOLOv7, arXiv:2207.02696; YOLOv9, arXiv:2402.13616; YOLOv10, arXiv:2405.14458.
"""

from __future__ import annotations

from mindspore import nn

from mindrepvgg.reparam.container import Container
from mindrepvgg.reparam.foldable import FoldableBlock
from mindrepvgg.reparam.layers import conv2d
from mindrepvgg.reparam.parts import ConvBN

# YOLO's BN, which all of these blocks have unless told otherwise.
_EPS, _MOMENTUM = 1e-3, 0.03


class RepConv(FoldableBlock):
    """YOLOv7's: RepVGG's branches under YOLO's names and numbers. (N, in, H, W) -> (N, out, H', W').

    Args:
        in_channels, out_channels, kernel_size, stride: of the convolution that the branches equal.
        identity: add the BN of the input where channels and size stay. YOLOv7 does; a block inside a residual or a
            concatenating path goes without.
        activation: makes the cell at the end; None: no activation.
        eps, momentum: of the BN; momentum is the share that a batch has in the moving statistics.
        options: padding, dilation, groups, se, se_ratio, deploy and norm, see `FoldableBlock`.

    Raises:
        ValueError: `groups` does not divide the channels, or `se` is unknown.
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size=3,
        stride=1,
        identity=True,
        activation=nn.SiLU,
        eps=_EPS,
        momentum=_MOMENTUM,
        **options,
    ):
        options |= {"identity": identity, "activation": activation, "eps": eps, "momentum": momentum}
        super().__init__(in_channels, out_channels, kernel_size, stride, **options)

    def make_branches(self, norm):
        """See `FoldableBlock.make_branches`."""
        self.rbr_dense = self._pair(self.kernel_size, self.padding, self.dilation, norm)
        self.rbr_1x1 = self._pair(1, self.centred(1), 1, norm)
        if not self.keeps_shape():
            return ("rbr_dense",), ("rbr_1x1",)
        self.rbr_identity = norm(self.out_channels)
        return ("rbr_dense",), ("rbr_1x1",), ("rbr_identity",)

    def _pair(self, size, padding, dilation, norm):
        """A convolution and its BN, which YOLOv7 calls 0 and 1."""
        conv = conv2d(self.in_channels, self.out_channels, size, self.stride, padding, dilation, self.groups)
        return Container(conv, norm(self.out_channels))


class RepConvN(RepConv):
    """YOLOv9's: the same under other names, and without the identity unless asked for."""

    FUSED = "conv"

    def __init__(self, in_channels, out_channels, kernel_size=3, stride=1, identity=False, **options):
        super().__init__(in_channels, out_channels, kernel_size, stride, identity, **options)

    def make_branches(self, norm):
        """See `FoldableBlock.make_branches`."""
        channels, stride, groups = (self.in_channels, self.out_channels), self.stride, self.groups
        self.conv1 = ConvBN(*channels, self.kernel_size, stride, groups, self.dilation, norm, self.padding)
        self.conv2 = ConvBN(*channels, 1, stride, groups, norm=norm, padding=self.centred(1))
        if not self.keeps_shape():
            return ("conv1",), ("conv2",)
        self.bn = norm(self.out_channels)
        return ("conv1",), ("conv2",), ("bn",)


class RepVGGDW(FoldableBlock):
    """YOLOv10's: a large depthwise convolution and a small one, each with its BN. (N, C, H, W) -> (N, C, H', W').

    Args:
        channels: of the input and the output.
        kernel_size, small_kernel: of the two.
        groups: of both; None: `channels`, depthwise.
        activation: makes the cell at the end; None: no activation.
        eps, momentum: of the BN; momentum is the share that a batch has in the moving statistics.
        options: stride, padding, dilation, se, se_ratio, deploy and norm, see `FoldableBlock`.

    Raises:
        ValueError: `se` is unknown, or the small kernel is the larger one.
    """

    FUSED = "conv"

    def __init__(
        self,
        channels,
        kernel_size=7,
        small_kernel=3,
        groups=None,
        activation=nn.SiLU,
        eps=_EPS,
        momentum=_MOMENTUM,
        **options,
    ):
        own = {"small_kernel": small_kernel}
        options |= {"activation": activation, "eps": eps, "momentum": momentum, "own": own}
        super().__init__(channels, channels, kernel_size, groups=channels if groups is None else groups, **options)

    def make_branches(self, norm):
        """See `FoldableBlock.make_branches`."""
        channels, stride, groups = (self.in_channels, self.out_channels), self.stride, self.groups
        self.conv = ConvBN(*channels, self.kernel_size, stride, groups, self.dilation, norm, self.padding)
        padding = self.centred(self.small_kernel, self.dilation)
        self.conv1 = ConvBN(*channels, self.small_kernel, stride, groups, self.dilation, norm, padding)
        return ("conv",), ("conv1",)
