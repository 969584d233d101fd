"""The report of a diagnosis: a table of layers, what each repair brings, in words what to do, and a picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from mindrepvgg.deployment.int8.noise import Noise
from mindrepvgg.deployment.int8.repairs import Repairs
from mindrepvgg.drawing.layers import draw_layers
from mindrepvgg.files import json_types
from mindrepvgg.text import counted, table

# INT8 is healthy where so many pictures keep their class. Rules of thumb: the search judges by labels.
_HEALTHY = 0.98
# A gain of the identity's BN that no trained network needs.
_HEAVY_IDENTITY = 10.0
# Decibels by which one of two sources of noise is the larger.
_CLEARLY = 6.0
_NAMED = 6


class LayerDiagnosis(NamedTuple):
    """One layer.

    Attributes:
        name: the layer.
        weight_largest, weight_deviation: the largest |w| of the fused kernel, and the weights' standard deviation.
        weight_outliers: output channels whose largest weight is far above the median channel's.
        identity_gain: see `diagnose.identity_gains`; None where it is not known, or there is no identity branch.
        lowest, highest: of what the layer reads.
        activation_outliers: input channels whose largest value is far above the median channel's.
        dead: input channels that are constant over the calibration pictures.
        channels: input channels.
        split_gain: see `splitting`; None where there is no centre tap.
        noise: signal-to-noise ratios in dB.
    """

    name: str
    weight_largest: float
    weight_deviation: float
    weight_outliers: int
    identity_gain: float | None
    lowest: float
    highest: float
    activation_outliers: int
    dead: int
    channels: int
    split_gain: float | None
    noise: Noise

    @property
    def spread(self) -> float:
        """The largest weight over the weights' standard deviation."""
        return self.weight_largest / self.weight_deviation if self.weight_deviation else 0.0


class Effect(NamedTuple):
    """INT8 with a repair, on calibration pictures.

    Attributes:
        option: what a user writes for it; empty for none.
        repairs: the same for programs.
        logits: signal-to-noise ratio of the logits in dB.
        agreement: the share of pictures that keep the class that float gives them.
    """

    option: str
    repairs: Repairs
    logits: float
    agreement: float


@dataclass(frozen=True)
class Diagnosis:
    """What INT8 does to a network.

    Attributes:
        calibration: the pictures that ranges were taken from, in words.
        images: how many they are; the repairs were tried on them too.
        layers: in the network's order.
        effects: INT8 as it is, then with each repair.
        saturates: whether 8 bits saturate in the int8 kernels of this CPU.
    """

    source: Path
    model: str
    per_channel: bool
    weight_bits: int
    method: str
    calibration: str
    images: int
    layers: tuple[LayerDiagnosis, ...]
    effects: tuple[Effect, ...]
    saturates: bool

    @property
    def dead(self) -> int:
        """Dead channels, counted in every layer that reads them."""
        return sum(layer.dead for layer in self.layers)

    @property
    def best(self) -> Effect:
        """The repair after which most pictures keep their class; of equal ones the least noisy."""
        return max(self.effects, key=lambda effect: (round(effect.agreement, 3), effect.logits))

    def to_dict(self) -> dict:
        """Plain types, for JSON."""
        found = {
            **asdict(self),
            "source": str(self.source),
            "layers": [{**layer._asdict(), "noise": layer.noise._asdict()} for layer in self.layers],
            "effects": [{**effect._asdict(), "repairs": asdict(effect.repairs)} for effect in self.effects],
            "dead_channels": self.dead,
            "advice": self.advice(),
        }
        return json_types(found)

    def format(self) -> str:
        """Return the report for people."""
        heading = ("", "weights", "", "identity", "input", "", "dead", "noise, dB", "", "", "")
        names = ("layer", "max/dev", "outliers", "gain", "largest", "outliers", "channels", *_NOISE.values())
        scales = "per channel" if self.per_channel else "per tensor"
        effects = (
            (effect.option or "as it is", f"{effect.logits:.1f}", f"{effect.agreement:.1%}") for effect in self.effects
        )
        return "\n".join(
            (
                f"{self.model}: weights int8, {scales}, {self.weight_bits} bits; activations uint8, {self.method}; on "
                f"{self.calibration}",
                table([heading, names, *map(_cells, self.layers)]),
                table([(f"INT8 on {counted(self.images, 'picture')}", "logits, dB", "same class"), *effects]),
                *self.advice(),
            )
        )

    def advice(self) -> list[str]:
        """In words what to do, a sentence each."""
        return list(self._advice())

    def _advice(self) -> Iterator[str]:
        plain, best = self.effects[0], self.best
        if plain.agreement >= _HEALTHY:
            yield f"INT8 as it is keeps the class of {plain.agreement:.1%} of the pictures: no repair is needed"
        else:
            yield f"INT8 as it is keeps the class of {plain.agreement:.1%} of the pictures: this is what to repair"
        if self.saturates:
            yield "8 bits saturate in the int8 kernels of this CPU: --weight_bits 7"
        if self.dead:
            having = [f"{layer.name} {layer.dead} of {layer.channels}" for layer in self.layers if layer.dead]
            remedy = "" if plain.agreement >= _HEALTHY else "; --zero_dead takes them out, exactly"
            yield f"dead channels, constant on every picture: {_some(having)}{remedy}"
        if plain.agreement >= _HEALTHY:
            return
        yield from self._causes()
        if best.option:
            yield (
                f"best of what was tried: {best.option}, which keeps the class of {best.agreement:.1%}; --search 12 "
                "tries combinations by accuracy"
            )
        if best.agreement < _HEALTHY:
            worst = sorted(self.layers, key=lambda layer: layer.noise.alone)[:3]
            yield f"then keep layers in float, the worst first: --keep_float {','.join(layer.name for layer in worst)}"
        yield from self._retraining()

    def _causes(self) -> Iterator[str]:
        """Yield which layers are noisy by their weights, and which by their activations."""
        limit = min(layer.noise.alone for layer in self.layers) + _CLEARLY
        worst = [layer for layer in self.layers if layer.noise.alone <= limit]
        weights = [layer.name for layer in worst if layer.noise.by_weights < layer.noise.own + _CLEARLY]
        others = [layer.name for layer in worst if layer.name not in weights]
        if weights:
            yield f"noisiest by their weights: {_some(weights)}"
        if others:
            yield f"noisiest by their activations: {_some(others)}; --method percentile or entropy narrows the ranges"
        splits = [layer.name for layer in worst if layer.split_gain is not None and layer.split_gain >= _CLEARLY]
        if splits:
            yield f"their centre tap is what is large: {_some(splits)}; --split auto gives it a convolution of its own"

    def _retraining(self) -> Iterator[str]:
        gains = [(layer.identity_gain, layer.name) for layer in self.layers if layer.identity_gain is not None]
        gain, name = max(gains, default=(0.0, ""))
        if gain >= _HEAVY_IDENTITY:
            yield (
                f"the identity's BN multiplies by up to {gain:.0f} ({name}): the cause lies in training; QARepVGG or "
                "RepOptimizer do not grow such gains"
            )
        if self.best.agreement < _HEALTHY:
            yield "or fine-tune for INT8: a recipe with quantization: qat and pretrained: this checkpoint"

    def draw(self, target):
        """Draw ranges, dead channels and noise by layer as PNG, see `drawing.layers.draw_layers`."""
        layers = self.layers
        draw_layers(
            [layer.name for layer in layers],
            [layer.spread for layer in layers],
            [layer.identity_gain for layer in layers],
            [layer.dead / layer.channels for layer in layers],
            {title: [getattr(layer.noise, key) for layer in layers] for key, title in _NOISE.items()},
            target,
            f"What INT8 does to {self.model}",
            f"weights {'per channel' if self.per_channel else 'per tensor'}; the lower a curve, the more noise",
        )


# Headings of `Noise`'s fields, of those that are shown.
_NOISE = {
    "by_weights": "by weights",
    "own": "own output",
    "output": "with others",
    "alone": "logits alone",
}


def _cells(layer: LayerDiagnosis) -> tuple[str, ...]:
    """A layer's cells for the table."""
    noise = layer.noise
    return (
        layer.name,
        f"{layer.spread:.1f}",
        f"{layer.weight_outliers}",
        "-" if layer.identity_gain is None else f"{layer.identity_gain:.1f}",
        f"{max(abs(layer.lowest), abs(layer.highest)):.3g}",
        f"{layer.activation_outliers}",
        f"{layer.dead}/{layer.channels}",
        *(f"{getattr(noise, key):.1f}" for key in _NOISE),
    )


def _some(names) -> str:
    """The first of some names, and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
