"""The networks, from a `Variant`: of RepVGG, QARepVGG and MobileOne, and RepVGGplus with its auxiliary heads."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import numpy as np
from mindspore import nn
from mindspore.nn.utils import no_init_parameters

from mindrepvgg.errors import UserError
from mindrepvgg.models.features import RepVGGFeatures
from mindrepvgg.models.parameters import load_arrays
from mindrepvgg.models.qat import to_fake_quantized, to_trainable_deploy
from mindrepvgg.models.shapes import check_fit, check_size, parameter_shapes
from mindrepvgg.models.stages import Stages
from mindrepvgg.models.variant_check import MOST_CHANNELS, MOST_CLASSES
from mindrepvgg.models.variants import BN, QAT, TRAIN, Variant
from mindrepvgg.reparam.copying import forget_graphs
from mindrepvgg.reparam.layers import bias_init, kernel_init
from mindrepvgg.reparam.parts import ConvBN
from mindrepvgg.text import quoted


def _linear(features, num_classes):
    return nn.Dense(features, num_classes, weight_init=kernel_init(), bias_init=bias_init(features))


class RepVGG(Stages):
    """A stem and four stages of blocks, global average pooling, one linear layer: RepVGG, and what has its layout.

    Input (N, in_channels, H, W), any H and W, each halved (rounded up) by every stage of stride 2; output (N,
    num_classes). Which kinds of blocks it has, and their sizes, `variant` says.
    `net.variant` is the layout. `net.metadata` is what a checkpoint told of the network, empty in a fresh one.

    Args:
        variant: the layout, from `mindrepvgg.models.variants`.
        num_classes: outputs of the classifier.
        in_channels: channels of the images.
        deploy: build the inference form, one convolution a block.
        norm: the BN's class, see `RepVGGBlock`.
    """

    def __init__(self, variant, num_classes=1000, in_channels=3, deploy=False, norm=nn.BatchNorm2d):
        super().__init__(variant, in_channels, deploy, norm)
        self.num_classes = num_classes
        self.linear = _linear(self.num_features, num_classes)

    @property
    def num_features(self) -> int:
        """The channels of the last map, which the classifier takes."""
        return self.variant.widths[-1]

    def forward_features(self, x):
        """The last stage's map: (N, in_channels, H, W) -> (N, widths[4], H / 32, W / 32), see `Variant.strides`."""
        x = self.stage0(x)
        x = self.stage1(x)
        x = self.stage2(x)
        x = self.stage3(x)
        return self.stage4(x)

    def forward_head(self, x, pre_logits=False):
        """What follows the last stage's map (N, widths[4], H', W').

        Args:
            x: the map.
            pre_logits: stop before the classifier.

        Returns:
            The logits (N, num_classes); with `pre_logits` the pooled features (N, num_features).
        """
        x = x.mean((2, 3))
        return x if pre_logits else self.linear(x)

    def construct(self, x):
        """Classify images: (N, in_channels, H, W) -> (N, num_classes).

        Args:
            x: normalised images (N, in_channels, H, W), a float tensor; any H and W.

        Returns:
            The logits (N, num_classes), before softmax.
        """
        return self.forward_head(self.forward_features(x))

    def reset_classifier(self, num_classes: int):
        """Put a fresh classifier, and fresh classifiers of auxiliary heads, in the place of the network's; in place.

        Compiled graphs that contain the network are forgotten. An optimizer made before still holds the old
        classifier's parameters: make a new one. Set mixed precision afterwards.

        Args:
            num_classes: outputs of the new classifiers.

        Raises:
            UserError: `num_classes` cannot be used.
        """
        check_count("num_classes", num_classes, MOST_CLASSES)
        for _, head in list(self.cells_and_names()):
            if head is not self and not isinstance(head, AuxHead):
                continue
            old = head.linear
            new = _linear(old.in_channels, num_classes)
            head.linear = new.set_train(old.training)
            for parameter, before in zip(new.get_parameters(), old.get_parameters(), strict=True):
                parameter.name = before.name
        self.num_classes = num_classes
        self.metadata = {key: value for key, value in self.metadata.items() if key != "class_names"}
        forget_graphs(self)


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
        """The last stage's map: (N, in_channels, H, W) -> (N, widths[4], H / 32, W / 32), see `Variant.strides`."""
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


def check_count(key: str, value, most: int):
    """Raise UserError for what is no whole number from 1 to `most`."""
    if type(value) is not int or not 1 <= value <= most:
        raise UserError(f"{key} (={quoted(value)}) must be a whole number of at least 1 and at most {most}")


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
) -> RepVGG | RepVGGFeatures:
    """Build a network: filled with `arrays`, or freshly initialised.

    Args:
        variant: the layout, see `variants.find`; with `features` it makes a features network.
        num_classes: outputs of the classifier, at least 1; a features network has none.
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
    check_count("in_channels", in_channels, MOST_CHANNELS)
    if not variant.features:
        check_count("num_classes", num_classes, MOST_CLASSES)
    # Before memory is taken for what may be nonsense.
    shapes = parameter_shapes(variant, form, num_classes, in_channels, aux_heads)
    if arrays is not None:
        check_fit(shapes, arrays, source)
    check_size(shapes)
    # BN is inserted into a network that has values.
    with contextlib.nullcontext() if arrays is None or form in (BN, QAT) else no_init_parameters():
        if variant.features:
            net = RepVGGFeatures(variant, in_channels, form != TRAIN, norm)
        else:
            network = RepVGGPlus if variant.aux_heads else RepVGG
            net = network(variant, num_classes, in_channels, form != TRAIN, norm)
    if variant.aux_heads and not aux_heads and not variant.features:
        net.drop_aux_heads()
    if form in (BN, QAT):
        net = to_trainable_deploy(net)
    if form == QAT:
        net = to_fake_quantized(net)
    if arrays is not None:
        load_arrays(net.get_parameters(), arrays, source, copy)
    return net
