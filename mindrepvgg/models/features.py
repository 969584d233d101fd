"""Features networks: backbones that give the maps of their levels instead of classes."""

from __future__ import annotations

from mindspore import nn

from mindrepvgg.models.feature_layout import level_of
from mindrepvgg.models.stages import Stages
from mindrepvgg.reparam.layers import NORMS


class RepVGGFeatures(Stages):
    """The stages of any network of the family, without its head and without what comes after the last map it gives.

    (N, in_channels, H, W) -> a tuple of maps (N, channels, H / reduction, W / reduction), rounded up, of the levels in
    `net.variant.features.out_indices`; `net.feature_info` has their channels, reductions and names. Parameters are
    called as in the network that classifies. Whenever the network, or one around it, is set to training, what
    `frozen_stages` and `norm_eval` say is frozen again.

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
        self.freeze_again()

    @property
    def out_channels(self) -> list[int]:
        """The channels of each map it gives."""
        return self.feature_info.channels()

    def add_flags_recursive(self, **flags):
        """Set flags of all cells; by this way `set_train` of a network around this one comes here."""
        super().add_flags_recursive(**flags)
        if flags.get("training"):
            self.freeze_again()
        return self

    def freeze_again(self):
        """Set to inference what `frozen_stages` and `norm_eval` say, and keep the weights of stages from training."""
        layout = self.variant.features
        for name, stage in self.name_cells().items():
            if level_of(name) <= layout.frozen_stages:
                stage.add_flags_recursive(training=False)
                for parameter in stage.get_parameters():
                    parameter.requires_grad = False
        if layout.norm_eval:
            for _, cell in self.cells_and_names():
                if isinstance(cell, NORMS):
                    cell.add_flags(training=False)

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
