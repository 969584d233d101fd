"""The networks: RepVGG, RepVGGplus with its auxiliary heads, QARepVGG and MobileOne, from a `Variant`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import numpy as np
from mindspore import nn
from mindspore.nn.utils import no_init_parameters

from mindrepvgg.errors import UserError
from mindrepvgg.models.images import check_images
from mindrepvgg.models.parameters import load_arrays
from mindrepvgg.models.qat import to_fake_quantized, to_trainable_deploy
from mindrepvgg.models.shapes import check_fit, check_size, parameter_shapes
from mindrepvgg.models.variants import BN, MOST_CHANNELS, MOST_CLASSES, QAT, TRAIN, Variant
from mindrepvgg.reparam.blocks import QARepVGGBlock, RepVGGBlock
from mindrepvgg.reparam.finding import rep_blocks
from mindrepvgg.reparam.layers import bias_init, kernel_init
from mindrepvgg.reparam.mobileone import MobileOneBlock
from mindrepvgg.reparam.parts import ConvBN
from mindrepvgg.text import quoted


def _linear(features, num_classes):
    return nn.Dense(features, num_classes, weight_init=kernel_init(), bias_init=bias_init(features))


class RepVGG(nn.Cell):
    """RepVGG: a stem and four stages of blocks, global average pooling, one linear layer.

    Input (N, in_channels, H, W), any H and W, each halved five times (rounded up); output (N, num_classes).
    `net.variant` is the layout. `net.metadata` is what a checkpoint told of the network, empty in a fresh one.

    Args:
        variant: the layout, from `mindrepvgg.models.variants`.
        num_classes: outputs of the classifier.
        in_channels: channels of the images.
        deploy: build the inference form, one convolution a block.
        norm: the BN's class, see `RepVGGBlock`.
    """

    def __init__(self, variant, num_classes=1000, in_channels=3, deploy=False, norm=nn.BatchNorm2d):
        super().__init__()
        self.variant = variant
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.metadata = {}
        blocks = {
            spec.name: self.make_block(spec, se=spec.se, se_ratio=variant.se_ratio, deploy=deploy, norm=norm)
            for spec in variant.block_specs(in_channels)
        }
        self.stage0 = blocks["stage0"]
        for stage in variant.stages:
            stage_blocks = [blocks[f"{stage.name}.{i}"] for i in range(stage.num_blocks)]
            setattr(self, stage.name, nn.SequentialCell(stage_blocks))
        self.linear = _linear(variant.widths[-1], num_classes)

    def make_block(self, spec, **options):
        """A block of a place and shape; `options`: of the block besides."""
        return RepVGGBlock(spec.in_channels, spec.out_channels, spec.stride, spec.groups, **options)

    def __call__(self, *args, **kwargs):
        """Compute, see `construct`; what is no batch of images is refused in one line, a UserError."""
        if args or "x" in kwargs:
            check_images(self, args[0] if args else kwargs["x"])
        return super().__call__(*args, **kwargs)

    @property
    def deploy(self):
        """Whether the network is in deploy form."""
        return self.stage0.deploy

    def forward_features(self, x):
        """The last stage's map: (N, in_channels, H, W) -> (N, widths[4], H / 32, W / 32)."""
        x = self.stage0(x)
        x = self.stage1(x)
        x = self.stage2(x)
        x = self.stage3(x)
        return self.stage4(x)

    def forward_head(self, x):
        """Logits (N, num_classes) of the last stage's map."""
        return self.linear(x.mean((2, 3)))

    def construct(self, x):
        """Classify images: (N, in_channels, H, W) -> (N, num_classes).

        Args:
            x: normalised images (N, in_channels, H, W), a float tensor; any H and W.

        Returns:
            The logits (N, num_classes), before softmax.
        """
        return self.forward_head(self.forward_features(x))

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


class AuxHead(nn.Cell):
    """A training-only classifier on a stage's output: conv 3x3 of stride 2, BN, ReLU, pooling, linear."""

    def __init__(self, channels, num_classes, norm=nn.BatchNorm2d):
        super().__init__()
        self.downsample = ConvBN(channels, channels, 3, stride=2, norm=norm)
        self.relu = nn.ReLU()
        self.linear = _linear(channels, num_classes)

    def construct(self, x):
        """Classify a stage's output: (N, channels, H, W) -> (N, num_classes)."""
        return self.linear(self.relu(self.downsample(x)).mean((2, 3)))


class RepVGGPlus(RepVGG):
    """RepVGGplus: stage 3 in two halves, and three auxiliary heads that only training knows.

    While training (`set_train(True)`, train form) it returns (logits, aux1, aux2, aux3), each (N, num_classes), with
    the heads in the order of the stages. Otherwise it returns the logits alone, as every RepVGG.
    """

    def __init__(self, variant, num_classes=1000, in_channels=3, deploy=False, norm=nn.BatchNorm2d):
        super().__init__(variant, num_classes, in_channels, deploy, norm)
        if not deploy:
            for stage in variant.stages:
                if stage.aux:
                    setattr(self, f"{stage.name}_aux", AuxHead(stage.width, num_classes, norm))

    def forward_features(self, x):
        """The last stage's map: (N, in_channels, H, W) -> (N, widths[4], H / 32, W / 32)."""
        x = self.stage2(self.stage1(self.stage0(x)))
        return self.stage4(self.stage3_second(self.stage3_first(x)))

    def construct(self, x):
        """Classify images: (N, in_channels, H, W) -> (N, num_classes), in training four times.

        Args:
            x: normalised images (N, in_channels, H, W), a float tensor; any H and W.

        Returns:
            The logits (N, num_classes), before softmax; in training a tuple of them and the three auxiliary heads',
            each (N, num_classes).
        """
        if self.deploy or not self.training:
            return self.forward_head(self.forward_features(x))
        x = self.stage1(self.stage0(x))
        aux1 = self.stage1_aux(x)
        x = self.stage2(x)
        aux2 = self.stage2_aux(x)
        x = self.stage3_first(x)
        aux3 = self.stage3_first_aux(x)
        x = self.stage4(self.stage3_second(x))
        return self.forward_head(x), aux1, aux2, aux3

    def drop_aux_heads(self):
        """Remove the auxiliary heads, in place; inference does not know them."""
        for stage in self.variant.stages:
            if stage.aux and hasattr(self, f"{stage.name}_aux"):
                delattr(self, f"{stage.name}_aux")

    def switch_to_deploy(self):
        """Switch every block to its deploy form and drop the auxiliary heads, in place."""
        super().switch_to_deploy()
        self.drop_aux_heads()


class QARepVGG(RepVGG):
    """RepVGG with QARepVGG's blocks, whose weights suit INT8 better; arguments and methods are RepVGG's."""

    def make_block(self, spec, **options):
        """See `RepVGG.make_block`."""
        return QARepVGGBlock(spec.in_channels, spec.out_channels, stride=spec.stride, groups=spec.groups, **options)


class MobileOne(RepVGG):
    """MobileOne: stages of depthwise 3x3 and 1x1 blocks in turn; arguments and methods are RepVGG's."""

    def make_block(self, spec, **options):
        """See `RepVGG.make_block`."""
        sizes = spec.in_channels, spec.out_channels, spec.kernel_size, spec.branches
        return MobileOneBlock(*sizes, stride=spec.stride, groups=spec.groups, **options)


_NETWORKS = {"repvgg": RepVGG, "qarepvgg": QARepVGG, "mobileone": MobileOne}


def build(
    variant: Variant,
    num_classes: int = 1000,
    in_channels: int = 3,
    form: str = TRAIN,
    arrays: Mapping[str, np.ndarray] | None = None,
    *,
    aux_heads: bool = True,
    norm: type = nn.BatchNorm2d,
    source="the arrays",
    copy: bool = True,
) -> RepVGG:
    """Build a network: filled with `arrays`, or freshly initialised.

    Args:
        variant: the layout, see `variants.find`.
        num_classes: outputs of the classifier, at least 1.
        in_channels: channels of the images, at least 1.
        form: one of `variants.FORMS`; 'bn' and 'qat' need arrays, as a fresh one says nothing.
        arrays: name -> array of every parameter; None initialises the network.
        aux_heads: False builds a train-form RepVGGplus without its auxiliary heads.
        norm: the BN's class, see `RepVGGBlock`.
        source: where the arrays are from; it starts the message.
        copy: see `parameters.load_arrays`.

    Raises:
        UserError: a number cannot be used.
        CheckpointError: the arrays are not the network's; the message names each that is not.
    """
    for key, value, most in (("num_classes", num_classes, MOST_CLASSES), ("in_channels", in_channels, MOST_CHANNELS)):
        if type(value) is not int or not 1 <= value <= most:
            raise UserError(f"{key} (={quoted(value)}) must be a whole number of at least 1 and at most {most}")
    # Before memory is taken for what may be nonsense.
    shapes = parameter_shapes(variant, form, num_classes, in_channels, aux_heads)
    if arrays is not None:
        check_fit(shapes, arrays, source)
    check_size(shapes)
    network = RepVGGPlus if variant.aux_heads else _NETWORKS[variant.block]
    # BN is inserted into a network that has values.
    with contextlib.nullcontext() if arrays is None or form in (BN, QAT) else no_init_parameters():
        net = network(variant, num_classes, in_channels, form != TRAIN, norm)
    if variant.aux_heads and not aux_heads:
        net.drop_aux_heads()
    if form in (BN, QAT):
        net = to_trainable_deploy(net)
    if form == QAT:
        net = to_fake_quantized(net)
    if arrays is not None:
        load_arrays(net.get_parameters(), arrays, source, copy)
    return net
