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

import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from mindrepvgg.errors import UserError
from mindrepvgg.files import atomic_write
from mindrepvgg.models.block_kinds import Part
from mindrepvgg.models.feature_layout import level_of
from mindrepvgg.models.mindcv_spec import MindCVNetwork
from mindrepvgg.models.networks import NetworkSpec
from mindrepvgg.models.shapes import parameter_shapes
from mindrepvgg.models.variants import DEPLOY, PLAIN_FORMS, TRAIN
from mindrepvgg.text import counted, quoted, table

NOTES = """\
MACs: multiply-accumulates of convolutions and linear layers, one image; the rest counts nothing, as published.
Wino MULs: the same, with 4/9 of them for 3x3 convolutions of stride 1: F(2x2, 3x3), as in the paper.
alive: elements of activations in memory at once while a layer runs in inference, one image; element-wise in place.
weights: parameters and BN's moving statistics. Auxiliary heads count in train form, but inference leaves them out."""

_BYTES = {"float32": 4, "float16": 2}
_HEADINGS = ("parameters", "MACs (M)", "Wino MULs (M)", "alive (M)")


class Figures(NamedTuple):
    """A layer, or a whole network, in one form; see the module.

    activations: of one image; a network's is the peak; None where they are not known, as of a network of MindCV.
    """

    params: int
    macs: int
    wino_muls: int
    activations: int | None


class Layer(NamedTuple):
    """A block's branches or its one convolution, an SE, an auxiliary head, the pooling or the classifier.

    Attributes:
        name: its place in the network.
        output_shape: of one image, (C, H, W) or (C,).
        train, deploy: its figures; None where the deploy form has no such layer.
    """

    name: str
    output_shape: tuple[int, ...]
    train: Figures
    deploy: Figures | None


@dataclass(frozen=True)
class Summary:
    """A network's layers from input to output; image_size: (height, width). weights: form -> numbers kept in memory."""

    variant: NetworkSpec
    num_classes: int
    in_channels: int
    image_size: tuple[int, int]
    batch_size: int
    layers: tuple[Layer, ...]
    weights: dict[str, int]

    def total(self, form: str) -> Figures:
        """The sums over the layers of a form, 'train' or 'deploy', and of the activations the peak."""
        columns = zip(*(getattr(layer, form) for layer in self.layers if getattr(layer, form)), strict=True)
        params, macs, winograd, activations = columns
        return Figures(sum(params), sum(macs), sum(winograd), None if None in activations else max(activations))

    def memory(self, form: str) -> dict[str, dict[str, int]]:
        """Bytes by what they hold and by their type; activations are of one image, and of the batch."""
        peak = self.total(form).activations
        held = {"weights": self.weights[form]}
        if peak is not None:
            held |= {"image_activations": peak, "batch_activations": peak * self.batch_size}
        return {what: {kind: size * count for kind, size in _BYTES.items()} for what, count in held.items()}

    def to_dict(self) -> dict:
        """Plain types, for JSON."""
        return {
            "model": self.variant.name,
            "model_args": self.variant.to_dict(),
            **({"features": self.variant.features.to_dict()} if self.variant.features else {}),
            **{key: getattr(self, key) for key in ("num_classes", "in_channels", "image_size", "batch_size")},
            "layers": [
                {
                    "name": layer.name,
                    "output_shape": layer.output_shape,
                    "train": layer.train._asdict(),
                    "deploy": layer.deploy and layer.deploy._asdict(),
                }
                for layer in self.layers
            ],
            "total": {form: {**self.total(form)._asdict(), "bytes": self.memory(form)} for form in PLAIN_FORMS},
        }

    def format(self) -> str:
        """The table for people; no line is longer than 120 characters for any network of the family."""
        height, width = self.image_size
        rows = [
            ("layer", "output", *PLAIN_FORMS * 4),
            *((layer.name, _shape_text(layer), *_cells(layer.train, layer.deploy)) for layer in self.layers),
            ("total, peak", "", *_cells(*map(self.total, PLAIN_FORMS))),
        ]
        figures = table(rows, rules=(1, -1), spans=(("", 1), ("", 1), *((heading, 2) for heading in _HEADINGS)))
        maps = self.variant.features and counted(len(self.variant.features.out_indices), "map")
        gives, size = maps or counted(self.num_classes, "class"), f"{self.in_channels} x {height} x {width}"
        title = f"{self.variant.label}: {gives}, images of {size}"
        return "\n".join((title, "", figures, "", self._memory_table(), "", NOTES))

    def _memory_table(self) -> str:
        labels = {"weights": "weights", "image_activations": "activations, 1 image"}
        if self.batch_size > 1:
            labels["batch_activations"] = f"activations, {self.batch_size} images"
        memory = {form: self.memory(form) for form in PLAIN_FORMS}
        rows: list[tuple[str, ...]] = [("memory (MiB)", *PLAIN_FORMS)]
        for what, label in labels.items():
            if what not in memory[TRAIN]:
                continue
            for kind in _BYTES:
                sizes = (f"{memory[form][what][kind] / 2**20:,.2f}" for form in PLAIN_FORMS)
                rows.append((f"{label}, {kind}", *sizes))
        return table(rows)


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
    variant = variant.family_layout("a summary of a layout")
    places = {place.name: place for place in _places(variant, num_classes, in_channels, size, aux_heads)}
    figures, weights = {}, {}
    for form in PLAIN_FORMS:
        shapes = parameter_shapes(variant, form, num_classes, in_channels, aux_heads)
        weights[form] = sum(map(math.prod, shapes.values()))
        figures[form] = _figures(places, shapes, form)
    layers = tuple(
        Layer(name, place.output_shape, figures[TRAIN][name], None if place.only_train else figures[DEPLOY][name])
        for name, place in places.items()
    )
    return Summary(variant, num_classes, in_channels, size, batch_size, layers, weights)


def write_csv(summary: Summary, path):
    """The layers as a table with one line of names, atomically: exact numbers, no totals; empty where there is none."""
    fields = [f"{form}_{field}" for form in PLAIN_FORMS for field in Figures._fields]
    with atomic_write(path, "w") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("layer", "output_shape", *fields))
        for layer in summary.layers:
            deploy = layer.deploy or ("",) * len(Figures._fields)
            writer.writerow((layer.name, _shape_text(layer), *layer.train, *deploy))


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


def _shape_text(layer) -> str:
    """(64, 56, 56) as 64x56x56."""
    return "x".join(map(str, layer.output_shape))


def _cells(*forms: Figures | None) -> list[str]:
    """Figures as text, train and deploy in turn: parameters in full, the others in millions."""
    return [
        _figure_text(None if figures is None else figures[i], i)
        for i in range(len(Figures._fields))
        for figures in forms
    ]


def _figure_text(value: int | None, column: int) -> str:
    if value is None:
        return "-"
    return f"{value / 1e6:.2f}" if column else f"{value:,}"
