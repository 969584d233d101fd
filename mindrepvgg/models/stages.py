"""What all networks have: a stem and four stages of blocks, in train or deploy form."""

from __future__ import annotations

from mindspore import nn

from mindrepvgg.models.block_kinds import LINEAR_ADDITION
from mindrepvgg.models.feature_layout import FeatureInfo
from mindrepvgg.models.images import ImageNetwork
from mindrepvgg.reparam.finding import rep_blocks
from mindrepvgg.reparam.named_blocks import block_class


def _block(spec, **options):
    """A block of a place, shape and kind; `options`: of the block besides."""
    make = block_class(spec.kind)
    if spec.kind == "mobileone":
        options["num_branches"] = spec.branches
    elif spec.kind == LINEAR_ADDITION:
        options["start"] = spec.start_scale
    fused = spec.fused.rpartition(".")[2]
    if fused != make.FUSED:
        options["fused"] = fused  # a deploy checkpoint is the family's, whatever its blocks were
    place = {key: getattr(spec, key) for key in ("kernel_size", "stride", "dilation", "groups", "identity", "se")}
    return make(spec.in_channels, spec.out_channels, **place, activation=nn.ReLU, **options)


class Stages(ImageNetwork):
    """The blocks of a layout, as `stage0`, `stage1`, ...; what is made of their maps, a subclass says.

    `net.variant` is the layout. `net.metadata` is what a checkpoint told of the network, empty in a fresh one.

    Args:
        variant: the layout, from `mindrepvgg.models.variants`.
        in_channels: channels of the images.
        deploy: build the inference form, one convolution a block.
        norm: the BN's class, see `RepVGGBlock`.
    """

    def __init__(self, variant, in_channels=3, deploy=False, norm=nn.BatchNorm2d):
        super().__init__()
        self.variant = variant
        self.in_channels = in_channels
        self.metadata = {}
        options = {"se_ratio": variant.se_ratio, "deploy": deploy, "norm": norm}
        blocks = {spec.name: _block(spec, **options) for spec in variant.block_specs(in_channels)}
        self.stage0 = blocks["stage0"]
        for stage in variant.stages:
            stage_blocks = [blocks[f"{stage.name}.{i}"] for i in range(stage.num_blocks)]
            setattr(self, stage.name, nn.SequentialCell(stage_blocks))

    @property
    def deploy(self) -> bool:
        """Whether the network is in deploy form."""
        return self.stage0.deploy

    @property
    def feature_info(self) -> FeatureInfo:
        """What maps the network has, or, of a features network, what it gives."""
        return self.variant.feature_info

    def recompute_blocks(self):
        """Let the backward pass recompute what is inside each block, except BN: less memory, more time.

        For graph mode. PyNative mode can leave out no part of a block: BN's moving statistics would take in every batch
        twice.
        """
        for block in rep_blocks(self).values():
            block.recompute()
            for _, cell in block.cells_and_names():
                if hasattr(cell, "bn_train"):
                    # A BN that ran twice a step would move its statistics twice.
                    cell.bn_train.recompute(False)

    def switch_to_deploy(self):
        """Switch every block to its deploy form, in place; see `RepVGGBlock.switch_to_deploy`."""
        for block in rep_blocks(self).values():
            block.switch_to_deploy()
