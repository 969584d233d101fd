"""ACNet's block: beside the kernel, its middle column and its middle row are trained as convolutions of their own.

Source: ACNet, figure 2, arXiv:1908.03930.
"""

from __future__ import annotations

from mindrepvgg.reparam.foldable import FoldableBlock
from mindrepvgg.reparam.layers import conv2d


class ACBlock(FoldableBlock):
    """BN(conv kh x kw) + BN(conv kh x 1) + BN(conv 1 x kw): (N, in_channels, H, W) -> (N, out_channels, H', W').

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups: of the convolution that the branches
            equal. With less padding than half a kernel, the small ones see less of the input.
        activation: makes the cell at the end; None: no activation.
        gammas: of the three BNs at first, (the whole kernel's, the others'). ACNet's options are (1 / 3, 1 / 3), and
            (1, 0): the block begins as the plain convolution.
        options: se, se_ratio, deploy, norm, eps and momentum, see `FoldableBlock`.

    Raises:
        ValueError: `groups` does not divide the channels, or `se` is unknown.
    """

    FUSED = "fused_conv"

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
        gammas=(1.0, 1.0),
        **options,
    ):
        place = kernel_size, stride, padding, dilation, groups
        super().__init__(in_channels, out_channels, *place, activation, **options)
        self.start_gammas(*gammas)

    def make_branches(self, norm):
        """See `FoldableBlock.make_branches`."""
        height, width = self.kernel_size
        chains = []
        for name, size in (("square", (height, width)), ("ver", (height, 1)), ("hor", (1, width))):
            place = size, self.stride, self.centred(size, self.dilation), self.dilation, self.groups
            setattr(self, f"{name}_conv", conv2d(self.in_channels, self.out_channels, *place))
            setattr(self, f"{name}_bn", norm(self.out_channels))
            chains.append((f"{name}_conv", f"{name}_bn"))
        return tuple(chains)
