"""Features networks: backbones that give the maps of their levels instead of classes."""

from __future__ import annotations

from mindspore import nn

from mindrepvgg.models.stages import Stages


class RepVGGFeatures(Stages):
    """The stages of any network of the family, without its head and without what comes after the last map it gives.

    (N, in_channels, H, W) -> a tuple of maps (N, channels, H / reduction, W / reduction), rounded up, of the levels in
    `net.variant.features.out_indices`; `net.feature_info` has their channels, reductions and names. Parameters are
    called as in the network that classifies.

    Args:
        variant: the layout, with `features`.
        in_channels, deploy, norm: see `Stages`.
    """

    # As timm says of a network that has no classifier.
    num_classes = 0

    def __init__(self, variant, in_channels=3, deploy=False, norm=nn.BatchNorm2d):
        super().__init__(variant, in_channels, deploy, norm)
        self.last = variant.features.last
        self.out_indices = variant.features.out_indices
        self.has_halves = variant.aux_heads

    @property
    def out_channels(self) -> list[int]:
        """The channels of each map it gives."""
        return self.feature_info.channels()

    def construct(self, x):
        """The maps of images (N, in_channels, H, W), see the class."""
        # Spelled out for MindSpore's automatic mixed precision O1, which rewrites cells that are called by their names.
        x = self.stage0(x)
        maps = [x]
        if self.last >= 1:
            x = self.stage1(x)
            maps.append(x)
        if self.last >= 2:
            x = self.stage2(x)
            maps.append(x)
        if self.last >= 3:
            if self.has_halves:
                x = self.stage3_second(self.stage3_first(x))
            else:
                x = self.stage3(x)
            maps.append(x)
        if self.last >= 4:
            x = self.stage4(x)
            maps.append(x)
        return tuple(maps[index] for index in self.out_indices)
