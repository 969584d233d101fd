"""What an INT8 file was found to be: accuracy, size, speed and noise, for programs and for people."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from mindrepvgg.deployment.int8.noise import KernelNoise
from mindrepvgg.deployment.int8.search import Attempt

_ROUNDS, _ROUND_SECONDS, _MOST_CALLS = 20, 0.05, 20
_WORST = 3


class Judged(NamedTuple):
    """One file: top-1 in percent, bytes, and milliseconds of one image, the median of interleaved rounds."""

    top1: float
    bytes: int
    milliseconds: float


class LayerNoise(NamedTuple):
    """A layer's signal-to-noise ratios in dB, see `noise`; `kept`: in float.

    output: of its output in the INT8 file. weights: of its rounded kernel, None in float. alone: of the logits when no
    other layer is INT8.
    """

    name: str
    output: float
    weights: float | None
    alone: float
    kept: bool


@dataclass(frozen=True)
class Quantization:
    """What was read, written and measured.

    facts: how, as in the file's metadata. drop: points of top-1 that INT8 lost. agreement: the share of images that
    both files put in the same class. layers: in the network's order. attempts: files that were judged, in their order.
    kernels: weight bits tried -> what this CPU makes of them. largest_scale: of equalisation, None without.
    """

    source: Path
    destination: Path
    model: str
    dataset: str
    images: int
    unreadable: int
    facts: dict
    float32: Judged
    int8: Judged
    drop: float
    agreement: float
    target_drop: float
    layers: tuple[LayerNoise, ...]
    attempts: tuple[Attempt, ...]
    kernels: dict[int, KernelNoise]
    largest_scale: float | None
    written: bool

    @property
    def worst(self) -> list[LayerNoise]:
        """The layers that alone cost the logits most."""
        return sorted(self.layers, key=lambda layer: layer.alone)[:_WORST]

    def to_dict(self) -> dict:
        """Plain types, for JSON."""
        return {
            **asdict(self),
            "source": str(self.source),
            "destination": str(self.destination),
            "float32": self.float32._asdict(),
            "int8": self.int8._asdict(),
            "layers": [layer._asdict() for layer in self.layers],
            "worst_layers": [layer.name for layer in self.worst],
            "kernels": {str(bits): noise._asdict() for bits, noise in self.kernels.items()},
            "attempts": [attempt.to_dict() for attempt in self.attempts],
        }

    def format(self) -> str:
        """A short table for people."""
        facts, kept = self.facts, self.facts["float_layers"]
        repairs = [
            *([f"equalised (channels scaled by up to {self.largest_scale:.1f})"] if facts["equalized"] else []),
            *(["biases corrected"] if facts["bias_corrected"] else []),
        ]
        lines = [
            f"{self.model}: weights {facts['weights']}; activations {facts['activations']}, {facts['method']}"
            + "".join(f", {repair}" for repair in repairs),
            f"calibrated on {facts['calibration']}; judged on {self.images} validation images of {self.dataset}"
            + (f" ({self.unreadable} unreadable not counted)" if self.unreadable else ""),
            f"{'':<8}  {'top-1':>7}  {'MiB':>7}  {'ms an image':>11}",
        ]
        for name, judged in (("float32", self.float32), ("int8", self.int8)):
            lines.append(f"{name:<8}  {judged.top1:6.2f}%  {judged.bytes / 2**20:7.2f}  {judged.milliseconds:11.3f}")
        lines.append(
            f"lost {self.drop:.2f} points (target {self.target_drop:g}), same class on {self.agreement:.2%} of images"
        )
        width = max(len(layer.name) for layer in self.layers)
        lines.append(f"{'signal to noise, dB':<{max(width, 19)}}  {'weights':>7}  {'output':>7}  {'logits, alone':>13}")
        for layer in self.layers:
            weights = "float" if layer.weights is None else f"{layer.weights:.1f}"
            lines.append(f"{layer.name:<{max(width, 19)}}  {weights:>7}  {layer.output:7.1f}  {layer.alone:13.1f}")
        lines.append(f"worst alone: {', '.join(layer.name for layer in self.worst)}")
        if kept:
            hint = "; that is most of them, --equalize may spare it" if 2 * len(kept) > len(self.layers) else ""
            lines.append(f"in float: {', '.join(kept)}{'' if facts['equalized'] else hint}")
        if len(self.attempts) > 1:
            tried = (f"{len(attempt.kept)}: {attempt.drop:.2f}" for attempt in self.attempts)
            lines.append(f"layers in float and points lost, as tried: {', '.join(tried)}")
        bits, noise = next(iter(self.kernels.items()))
        if noise.saturates:
            lines.append(
                f"{bits} bits saturate in the int8 kernels of this CPU ({noise.kernels:.1f} dB, rounding "
                f"{noise.rounding:.1f} dB); on one with VNNI they do not, see --weight_bits"
            )
        if self.written:
            lines.append(f"written: {self.destination}")
        return "\n".join(lines)


def interleaved_latency(engines, images) -> list[float]:
    """Milliseconds of a call of each engine, the median of rounds in which they take turns."""
    calls = []
    for engine in engines:
        engine(images)  # the first call sets up its memory
        start = time.perf_counter()
        engine(images)
        seconds = time.perf_counter() - start
        calls.append(min(max(1, round(_ROUND_SECONDS / seconds)), _MOST_CALLS))
    times = [[] for _ in engines]
    for _ in range(_ROUNDS):
        for engine, count, found in zip(engines, calls, times, strict=True):
            start = time.perf_counter()
            for _ in range(count):
                engine(images)
            found.append((time.perf_counter() - start) / count)
    return [1000 * statistics.median(found) for found in times]
