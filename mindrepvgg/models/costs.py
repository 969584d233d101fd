"""What a network's layers cost, in train and deploy form side by side: as a table, as plain types, as a csv file."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import NamedTuple

from mindrepvgg.files import atomic_write
from mindrepvgg.models.network_spec import NetworkSpec
from mindrepvgg.models.variants import PLAIN_FORMS, TRAIN
from mindrepvgg.text import counted, table

NOTES = """\
MACs: multiply-accumulates of convolutions and linear layers, one image; the rest counts nothing, as published.
Wino MULs: the same, with 4/9 of them for 3x3 convolutions of stride 1: F(2x2, 3x3), as in the paper.
alive: elements of activations in memory at once while a layer runs in inference, one image; element-wise in place.
weights: parameters and BN's moving statistics. Auxiliary heads count in train form, but inference leaves them out."""

_BYTES = {"float32": 4, "float16": 2}
_HEADINGS = ("parameters", "MACs (M)", "Wino MULs (M)", "alive (M)")


class Figures(NamedTuple):
    """A layer, or a whole network, in one form; what is counted: see `summary`.

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


def write_csv(summary: Summary, path):
    """The layers as a table with one line of names, atomically: exact numbers, no totals; empty where there is none."""
    fields = [f"{form}_{field}" for form in PLAIN_FORMS for field in Figures._fields]
    with atomic_write(path, "w") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("layer", "output_shape", *fields))
        for layer in summary.layers:
            deploy = layer.deploy or ("",) * len(Figures._fields)
            writer.writerow((layer.name, _shape_text(layer), *layer.train, *deploy))


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
