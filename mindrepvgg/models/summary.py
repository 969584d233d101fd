"""A network's layers and what they cost, in train and deploy form side by side, without building it.

Parameters: what training learns. BN's moving statistics are not among them, but are part of the weights' memory.
MACs: multiply-accumulates of one image's forward pass in convolutions and linear layers. BN, ReLU, biases, additions,
pooling and SE's scaling count nothing, as in the published tables, which call MACs FLOPs.
Wino MULs: MACs of which a 3x3 convolution of stride 1 needs 4/9, by Winograd's F(2x2, 3x3); what the paper publishes
are the deploy form's. Source: RepVGG, arXiv:2101.03697, section 2.4, tables 4 and 5.
Activations: elements of all feature maps alive while a layer runs in inference, one operation after the other: its
inputs and outputs, and what later ones still read. BN, additions, ReLU, sigmoid and SE's scaling write over their
operand. So RepVGG's block keeps its input and two branches' outputs in train form, a deploy-form block its input and
output, as does a block of one convolution in train form. Padding makes no copy.
Auxiliary heads count in the train form's parameters and MACs; inference does not run them, so they keep nothing alive.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from mindrepvgg.errors import UserError
from mindrepvgg.models.block_kinds import Part
from mindrepvgg.models.costs import Figures, Layer, Summary
from mindrepvgg.models.feature_layout import level_of
from mindrepvgg.models.mindcv_spec import MindCVNetwork
from mindrepvgg.models.network_spec import NetworkSpec
from mindrepvgg.models.shapes import parameter_shapes
from mindrepvgg.models.variants import DEPLOY, PLAIN_FORMS, TRAIN
from mindrepvgg.text import quoted


def summarise(
    variant: NetworkSpec, num_classes=1000, in_channels=3, image_size=224, batch_size=1, aux_heads: bool = True
) -> Summary:
    """The layers of a network and their costs, from its layout alone; a network of MindCV is built and run.

    Args:
        variant: which network.
        num_classes, in_channels, batch_size: whole numbers of at least 1; a features network has no classes.
        image_size: a side in pixels, or (height, width).
        aux_heads: False leaves a RepVGGplus's auxiliary heads out.

    Raises:
        UserError: a number is not whole or below 1.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    num_classes = 0 if variant.features else num_classes
    numbers = {"in_channels": in_channels, "batch_size": batch_size}
    numbers |= {} if variant.features else {"num_classes": num_classes}
    for name, value in (*numbers.items(), *(("image_size", side) for side in size)):
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{name} (={quoted(value)}) must be a whole number of at least 1")
    if isinstance(variant, MindCVNetwork):
        from mindrepvgg.models.mindcv_summary import summarise_mindcv  # loads MindSpore

        return summarise_mindcv(variant, num_classes, in_channels, size, batch_size)
    layout = variant.family_layout("a summary of a layout")
    places = {place.name: place for place in _places(layout, num_classes, in_channels, size, aux_heads)}
    figures, weights = {}, {}
    for form in PLAIN_FORMS:
        shapes = parameter_shapes(layout, form, num_classes, in_channels, aux_heads)
        weights[form] = sum(map(math.prod, shapes.values()))
        figures[form] = _figures(places, shapes, form)
    layers = tuple(
        Layer(name, place.output_shape, figures[TRAIN][name], None if place.only_train else figures[DEPLOY][name])
        for name, place in places.items()
    )
    return Summary(variant, num_classes, in_channels, size, batch_size, layers, weights)


class _Place(NamedTuple):
    """Where a layer's weights work.

    Attributes:
        name, output_shape: see `Layer`.
        area: output positions of every kernel but the inner ones.
        winograd: whether these kernels' MACs count by Winograd's: stride 1, no dilation.
        alive: activations in (train, deploy).
        only_train: the deploy form has no such layer.
        inner: the output positions of kernels that stand before others in a branch, by the parameters' names.
    """

    name: str
    output_shape: tuple[int, ...]
    area: int
    winograd: bool
    alive: tuple[int, int]
    only_train: bool = False
    inner: Mapping[str, int] = MappingProxyType({})


def _places(variant, num_classes, in_channels, size, aux_heads) -> Iterator[_Place]:
    """Every layer from input to output."""
    height, width = size
    aux = {f"{s.name}.{s.num_blocks - 1}": s for s in variant.stages if s.aux and aux_heads}
    given = variant.features.out_indices if variant.features else ()
    # The last blocks of the levels that are given: their maps stay alive.
    last = {level_of(spec.name): spec.name for spec in variant.block_specs(in_channels)}
    ends, kept, level = {last[one] for one in given}, 0, 0
    for spec in variant.block_specs(in_channels):
        area = height * width
        entering = spec.in_channels * area
        height, width = -(-height // spec.stride), -(-width // spec.stride)
        channels, shape = spec.out_channels, (spec.out_channels, height, width)
        leaving = math.prod(shape)
        alive = _alive_in_train(spec, area, leaving), entering + leaving
        inner = {f"{spec.name}.{part.name}.weight": area for part in _parts(spec) if part.inner}
        winograd = spec.stride == spec.dilation == 1
        others = kept if level_of(spec.name) == level else kept - entering * (level in given)
        level = level_of(spec.name)
        yield _Place(spec.name, shape, height * width, winograd, (alive[0] + others, alive[1] + others), inner=inner)
        if spec.se:
            squeezed = channels // variant.se_ratio
            yield _Place(spec.squeeze_excite, shape, 1, False, (leaving + channels + squeezed + kept,) * 2)
        if spec.name in ends:
            kept += leaving
        if spec.name in aux:
            area = -(-height // 2) * -(-width // 2)
            yield _Place(f"{aux[spec.name].name}_aux", (num_classes,), area, False, (0, 0), only_train=True)
    if not variant.features:
        yield _Place("pool", (channels,), 1, False, (leaving + channels,) * 2)
        yield _Place("linear", (num_classes,), 1, False, (channels + num_classes,) * 2)


def _parts(spec) -> Iterator[Part]:
    """The cells of a block's train form that have parameters."""
    return (part for branch in spec.train_branches for part in branch)


def _alive_in_train(spec, area, leaving) -> int:
    """Activations alive at once in a train-form block, of `area` positions before it and `leaving` elements after it.

    BN of the input alone writes over it, as nothing reads it after that branch.
    """
    branches = [branch for branch in spec.train_branches if any(part.is_kernel for part in branch)]
    entering, most = spec.in_channels * area, 0
    for number, branch in enumerate(branches):
        total = leaving if number else 0
        maps = [part.shape[0] * area for part in branch if part.inner] + [leaving]
        for before, after in zip([0, *maps], maps, strict=False):
            read_later = entering if not before or number + 1 < len(branches) else 0
            most = max(most, read_later + total + before + after)
    return most


def _figures(places, shapes, form) -> dict[str, Figures]:
    """Each layer's figures in a form, from the shapes of its parameters."""
    counts = {name: [0, 0, 0] for name in places}
    for name, shape in shapes.items():
        owner = name
        while owner not in places:
            owner = owner.rpartition(".")[0]
        place = places[owner]
        # Kernels work at every output position, matrices once; vectors, which are BN's and biases, count nothing.
        area = place.inner.get(name, place.area)
        macs = math.prod(shape) * {4: area, 2: 1}.get(len(shape), 0)
        winograd = shape[2:] == (3, 3) and place.winograd
        learned = 0 if ".moving_" in name else math.prod(shape)
        for i, count in enumerate((learned, macs, macs // 9 * 4 if winograd else macs)):
            counts[owner][i] += count
    alive = PLAIN_FORMS.index(form)
    return {name: Figures._make([*counts[name], place.alive[alive]]) for name, place in places.items()}
