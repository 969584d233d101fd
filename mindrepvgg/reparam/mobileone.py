"""MobileOne's block: several large convolutions beside each other, a 1x1 and an identity, each with its BN.

Source: MobileOne, figure 3, arXiv:2206.04040.
"""

from __future__ import annotations

from mindrepvgg.reparam.foldable import FoldableBlock
from mindrepvgg.reparam.parts import ConvBN, Sum


class MobileOneBlock(FoldableBlock):
    """One block: (N, in_channels, H, W) -> (N, out_channels, H', W').

    The identity stands where channels and size stay, the 1x1 ("scale") where the kernel is larger than that. All
    branches have the block's dilation. (In the authors' code only the deploy form has it.)

    Args:
        in_channels, out_channels, kernel_size: of the convolution that the branches equal.
        num_branches: of convolutions of the full kernel size.
        options: stride, padding, dilation, groups, activation, se, se_ratio, deploy, norm, eps and momentum, see
            `FoldableBlock`.

    Raises:
        ValueError: `groups` does not divide the channels, `se` is unknown, or there is no branch.
    """

    FUSED = "reparam_conv"

    def __init__(self, in_channels, out_channels, kernel_size=3, num_branches=1, **options):
        if num_branches < 1:
            raise ValueError(f"num_branches (={num_branches}) must be at least 1")
        super().__init__(in_channels, out_channels, kernel_size, own={"num_branches": num_branches}, **options)

    def make_branches(self, norm):
        """See `FoldableBlock.make_branches`."""
        channels, size = (self.in_channels, self.out_channels), self.kernel_size
        chains = [("rbr_conv",)]
        if self.keeps_shape():
            self.rbr_skip = norm(self.out_channels)
            chains.append(("rbr_skip",))
        self.rbr_conv = Sum(
            [
                ConvBN(*channels, size, self.stride, self.groups, self.dilation, norm, self.padding)
                for _ in range(self.num_branches)
            ]
        )
        if size != (1, 1):
            self.rbr_scale = ConvBN(*channels, 1, self.stride, self.groups, norm=norm, padding=self.centred(1))
            chains.append(("rbr_scale",))
        return tuple(chains)
