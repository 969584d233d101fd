"""The report on an INT8 file: accuracy, size, speed and noise, for programs and for people."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from mindrepvgg.deployment.engine_base import ONNXRUNTIME
from mindrepvgg.deployment.int8.amct_check import AmctCheck
from mindrepvgg.deployment.int8.noise import KernelNoise
from mindrepvgg.deployment.int8.search import Attempt
from mindrepvgg.runtime.timing import take_turns, timed
from mindrepvgg.text import counted, table

_TURN_SECONDS, _MOST_CALLS = 0.05, 20
_WORST = 3


class FileFigures(NamedTuple):
    """One file: top-1 in percent, bytes, and milliseconds of one image."""

    top1: float
    bytes: int
    milliseconds: float


class LayerNoise(NamedTuple):
    """A layer's signal-to-noise ratios in dB, see `noise`.

    Attributes:
        name: the layer.
        output: of the layer's output in the INT8 file.
        weights: of the layer's rounded kernel; None where the layer is in float.
        alone: of the logits when no other layer is INT8.
        kept: whether the layer is in float.
    """

    name: str
    output: float
    weights: float | None
    alone: float
    kept: bool


@dataclass(frozen=True)
class Quantization:
    """What was read, written and measured.

    Attributes:
        facts: how the file was quantised, as in its metadata.
        drop: points of top-1 that INT8 lost.
        agreement: the share of images that both files put in the same class.
        layers: in the network's order.
        budget: how many files the search might evaluate; None where nothing was searched.
        attempts: the INT8 files that were evaluated, in their order.
        chosen: the number of the one that was taken.
        kernels: weight bits that were tried -> what this CPU's int8 kernels make of them.
        largest_scale: of equalisation; None without it.
        engine: what judged the file, and measured its speed.
        check: the file held against its target's rules; None where it has none.
        commands: what to run next: (what it makes, command) of each.
        not_run: what of the target was not run, in words.
    """

    source: Path
    destination: Path
    model: str
    dataset: str
    images: int
    unreadable: int
    facts: dict
    float32: FileFigures
    int8: FileFigures
    drop: float
    agreement: float
    target_drop: float
    budget: int | None
    layers: tuple[LayerNoise, ...]
    attempts: tuple[Attempt, ...]
    chosen: int
    kernels: dict[int, KernelNoise]
    largest_scale: float | None
    written: bool
    engine: str = ONNXRUNTIME
    check: AmctCheck | None = None
    commands: tuple[tuple[str, str], ...] = ()
    not_run: str | None = None

    @property
    def worst(self) -> list[LayerNoise]:
        """The layers whose rounding, without that of any other layer, disturbs the logits most."""
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
            "check": self.check and self.check.to_dict(),
            "commands": dict(self.commands),
        }

    def format(self) -> str:
        """Return the report for people."""
        files = (
            (name, f"{found.top1:.2f}%", f"{found.bytes / 2**20:.2f}", f"{found.milliseconds:.3f}")
            for name, found in (("float32", self.float32), ("int8", self.int8))
        )
        layers = (
            (
                layer.name,
                "float" if layer.weights is None else f"{layer.weights:.1f}",
                f"{layer.output:.1f}",
                f"{layer.alone:.1f}",
            )
            for layer in self.layers
        )
        return "\n".join(
            (
                *self._header(),
                table([("", "top-1", "MiB", "ms an image"), *files]),
                f"{_change(self.drop)} points (target {self.target_drop:g}), same class on "
                f"{self.agreement:.2%} of images",
                table([("signal to noise, dB", "weights", "output", "logits, alone"), *layers]),
                f"worst alone: {', '.join(layer.name for layer in self.worst)}",
                *self._notes(),
            )
        )

    def _header(self) -> Iterator[str]:
        """Yield how the file was quantised, and on what it was calibrated and evaluated."""
        facts = self.facts
        done = [f"weights {facts['weights']}; activations {facts['activations']}", facts["method"]]
        if facts["equalized"]:
            done.append(f"equalised (channels scaled by up to {self.largest_scale:.1f})")
        if facts["bias_corrected"]:
            done.append("biases corrected")
        if dead := facts["dead_channels"]:
            count = counted(sum(dead.values()), "dead channel")
            done.append(f"the weights of {count} zeroed")
        if split := facts["split_layers"]:
            extra = 100 * facts["extra_multiplications"]
            done.append(f"centre split in {', '.join(split)} ({extra:.1f} % more multiplications)")
        yield f"{self.model}: {', '.join(done)}"
        unreadable = f" ({self.unreadable} unreadable not counted)" if self.unreadable else ""
        by = "" if facts["target"] == ONNXRUNTIME else f" by {self.engine}"
        yield (
            f"calibrated on {facts['calibration']}; judged{by} on {counted(self.images, 'validation image')} of "
            f"{self.dataset}{unreadable}"
        )

    def _notes(self) -> Iterator[str]:
        """Yield what the tables do not tell: layers in float, files that were tried, saturation, the place."""
        kept = self.facts["float_layers"]
        if kept:
            most = 2 * len(kept) > len(self.layers) and not self.facts["equalized"]
            yield f"in float: {', '.join(kept)}{'; that is most of them, --search 12 may spare it' if most else ''}"
        if self.budget is None and len(self.attempts) > 1:
            tried = (f"{len(attempt.kept)}: {attempt.drop:.2f}" for attempt in self.attempts)
            yield f"layers in float and points lost, as tried: {', '.join(tried)}"
        if self.budget is not None:
            yield self._steps()
        bits, noise = next(iter(self.kernels.items()))
        if noise.saturates:
            yield (
                f"{bits} bits saturate in the int8 kernels of this CPU ({noise.kernels:.1f} dB, rounding "
                f"{noise.rounding:.1f} dB); on one with VNNI they do not, see --weight_bits"
            )
        chosen = self.attempts[self.chosen]
        if (chosen.drop, chosen.agreement) != (self.drop, self.agreement):
            yield (
                f"before it was made for {self.facts['target']}: {_change(chosen.drop)} points, same class on "
                f"{chosen.agreement:.2%} of images"
            )
        if self.check is not None:
            yield self.check.verdict
        if self.written:
            yield f"written: {self.destination}"
        if self.not_run:
            yield self.not_run
            yield f"size and time are those of this file under {self.engine} on this machine"
        if self.written:
            yield from (f"# {title}\n{command}" for title, command in self.commands)

    def _steps(self) -> str:
        """The table of what each step of the search brought."""
        used = f"{len(self.attempts)} of {self.budget} evaluations"
        rows = [(f"search, {used}", "top-1", "points lost", "same class", "")]
        best = None
        for number, attempt in enumerate(self.attempts):
            # Of files that lose the same, the one with fewer layers in float is taken.
            better = best is None or (number < self.chosen and attempt.better_than(best))
            best = attempt if better else best
            verdict = "taken" if number == self.chosen else "no better" if not better else "better" if number else ""
            rows.append(
                (attempt.step, f"{attempt.top1:.2f}%", f"{attempt.drop:.2f}", f"{attempt.agreement:.2%}", verdict)
            )
        return table(rows, "<>>><")


def latencies(engines, images, rounds: int = 20) -> list[float]:
    """Measure engines in turns.

    Args:
        engines: functions of `images`.
        images: what each is called with.
        rounds: how many turns each engine takes; a turn is as many calls as fill some time.

    Returns:
        Milliseconds of one call of each engine, the median of its turns.
    """
    contestants = {}
    for number, engine in enumerate(engines):
        call = functools.partial(engine, images)
        call()  # the first call sets up its memory
        contestants[number] = timed(call, min(max(1, round(_TURN_SECONDS / timed(call)())), _MOST_CALLS))
    return [1000 * statistics.median(seconds) for seconds in take_turns(contestants, rounds).values()]


def _change(drop: float) -> str:
    """Points lost in words."""
    return f"{'gained' if drop < 0 else 'lost'} {abs(drop):.2f}"
