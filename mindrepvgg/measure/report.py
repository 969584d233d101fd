"""What a benchmark is asked for, and what it found: settings, times, the table, the CSV and the plot."""

from __future__ import annotations

import csv
import importlib.metadata
import os
import statistics
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from mindrepvgg.deployment.graph import PRECISIONS
from mindrepvgg.errors import UserError
from mindrepvgg.files import atomic_write
from mindrepvgg.models import variants
from mindrepvgg.models.summary import FORMS
from mindrepvgg.recipe import kinds
from mindrepvgg.runtime.environment import processor

TRAIN, DEPLOY = FORMS
MINDSPORE, ONNXRUNTIME, TORCH = ENGINES = ("mindspore", "onnxruntime", "torch")
REFERENCE = "resnet18"  # whose speed is 1, as one may read the paper's table 4; without it, the first row's

# ImageNet-1k, percent, released weights at 224x224; RepVGGplus is published at 320x320 only. Source: the tables of the
# authors' repository. MindCV's networks have none here: their speed is drawn, their accuracy not.
PUBLISHED_TOP1 = {
    **{"repvgg_a0": 72.41, "repvgg_a1": 74.47, "repvgg_a2": 76.48, "repvgg_b0": 75.14, "repvgg_b1": 78.37},
    **{"repvgg_b1g2": 77.79, "repvgg_b1g4": 77.58, "repvgg_b2": 78.78, "repvgg_b2g4": 79.38, "repvgg_b3": 80.52},
    **{"repvgg_b3g4": 80.22, "repvgg_d2se": 81.81},
}

_DPI = 150


class Contestant(NamedTuple):
    """What is measured. network: a name, or a checkpoint's path; form: 'train', 'deploy', '' for one of MindCV's."""

    network: str
    form: str
    engine: str
    precision: str
    batch_size: int

    def format(self) -> str:
        """In words, for a message."""
        form = f"{self.form} form, " if self.form else ""
        return f"{self.network}, {form}{self.engine}, {self.precision}, batch {self.batch_size}"


_LISTS = {
    "models": kinds.Kind(lambda name: variants.find(name).name, "a network of the family", "NAME"),
    "ckpt_paths": kinds.Kind(os.fspath, "a path", "FILE"),
    "forms": kinds.choice(*FORMS),
    "batch_sizes": kinds.whole(least=1),
    "precisions": kinds.choice(*PRECISIONS),
    "engines": kinds.choice(*ENGINES),
    "baselines": kinds.text(),
}
_NUMBERS = {
    **dict.fromkeys(("image_size", "rounds"), kinds.whole(least=1)),
    **{"warmup": kinds.whole(least=0), "num_threads": kinds.optional(kinds.whole(least=1))},
}


@dataclass(frozen=True)
class Settings:
    """What to measure, and how; lists may be a command line's text, with commas.

    models: names of the family, filled by a rule; ckpt_paths: checkpoints of any project. baselines: networks of
    MindCV, freshly initialised, under MindSpore. With none of the three, repvgg_a0 is measured.
    image_size: pixels of a side. rounds are counted, warmup rounds before them are not. num_threads: cores each
    contestant is held to, None for all. alone: one contestant at a time, where memory or a device has no room for all
    of a batch size; a slow spell then meets one of them only. top1: accuracies by network, over the published ones.
    Raises UserError for a value that cannot be used.
    """

    models: tuple[str, ...] = ()
    ckpt_paths: tuple[str, ...] = ()
    forms: tuple[str, ...] = FORMS
    batch_sizes: tuple[int, ...] = (1, 16)
    precisions: tuple[str, ...] = ("float32",)
    engines: tuple[str, ...] = (MINDSPORE,)
    baselines: tuple[str, ...] = ()
    image_size: int = 224
    rounds: int = 20
    warmup: int = 3
    num_threads: int | None = None
    device_target: str = "auto"
    alone: bool = False
    top1: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        read = {name: _read_list(name, getattr(self, name), kind) for name, kind in _LISTS.items()}
        read |= {name: _read(name, getattr(self, name), kind) for name, kind in _NUMBERS.items()}
        if not (read["models"] or read["ckpt_paths"] or read["baselines"]):
            read["models"] = ("repvgg_a0",)
        for name in ("forms", "batch_sizes", "precisions", "engines"):
            if not read[name]:
                raise UserError(f"{name} is empty; give at least one")
        read["top1"] = _read_top1(self.top1)
        for name in read["top1"].keys() - {*read["models"], *read["ckpt_paths"], *read["baselines"]}:
            raise UserError(f"top1 tells of {name}, which is not among the networks to measure")
        for name, value in read.items():
            object.__setattr__(self, name, value)
        cores = len(os.sched_getaffinity(0))
        if (self.num_threads or 0) > cores:
            raise UserError(f"num_threads (={self.num_threads}) must be at most {cores}, the cores of this process")

    def published(self, network: str) -> float | None:
        """The ImageNet top-1 of a network in percent, None where none is known."""
        return self.top1.get(network, PUBLISHED_TOP1.get(network) if network in self.models else None)


def _read(option, value, kind):
    try:
        return kind.read(value)
    except (TypeError, ValueError):
        raise UserError(f"{option} (={value!r}) must be {kind.expected}") from None


def _read_list(option, value, kind):
    items = value.split(",") if isinstance(value, str) else value
    return tuple(dict.fromkeys(_read(option, item, kind) for item in items if item != ""))


def _read_top1(value) -> dict[str, float]:
    """Accuracies in percent by network, from a mapping or from text: 'resnet18=70.1,own.ckpt=66'."""
    pairs = [item.rpartition("=")[::2] for item in value.split(",")] if isinstance(value, str) else value.items()
    kind = kinds.number(least=0, most=100)
    if any(not name for name, _ in pairs):
        raise UserError(f"top1 (={value!r}) must be NAME=PERCENT,...")
    return {name: _read(f"top1 of {name}", percent, kind) for name, percent in pairs}


@dataclass(frozen=True)
class Result:
    """A contestant's times in seconds, by round; first_seconds: of its first call, in which graphs are built.

    memory: bytes, None where the system does not tell. parameters: what training learns, auxiliary heads left out.
    """

    contestant: Contestant
    device: str
    seconds: tuple[float, ...]
    first_seconds: float
    memory: int | None
    parameters: int

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """Of the seconds: lower quartile, median, upper quartile."""
        return tuple(np.percentile(self.seconds, (25, 50, 75)).tolist())

    @property
    def images_per_second(self) -> float:
        """At the median time."""
        return self.contestant.batch_size / self.quartiles[1]

    def speed_ratio(self, reference: Result) -> float:
        """How many times as fast as the reference: the median over the rounds."""
        pairs = zip(reference.seconds, self.seconds, strict=True)
        return statistics.median(other / own for other, own in pairs)


@dataclass
class Report:
    """What was measured so far. left_out: a line for each combination that was not, with the reason.

    failed: whether one of them was begun, and broke down.
    """

    settings: Settings
    results: list[Result] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    failed: bool = False

    def reference(self, batch_size: int) -> Result:
        """The row of a batch size whose speed is 1: ResNet-18's, or without it the first."""
        rows = [result for result in self.results if result.contestant.batch_size == batch_size]
        return next((result for result in rows if result.contestant.network == REFERENCE), rows[0])

    def rows(self) -> list[dict]:
        """A dict of plain values for each result, None where a value is not known."""
        return [
            {
                **result.contestant._asdict(),
                "image_size": self.settings.image_size,
                "device": result.device,
                **dict(zip(("q1_ms", "median_ms", "q3_ms"), (1000 * q for q in result.quartiles), strict=True)),
                "images_per_second": result.images_per_second,
                "first_call_s": result.first_seconds,
                "memory_mib": None if result.memory is None else result.memory / 2**20,
                "parameters": result.parameters,
                "published_top1": self.settings.published(result.contestant.network),
                "speed_ratio": result.speed_ratio(self.reference(result.contestant.batch_size)),
                "reference": self.reference(result.contestant.batch_size).contestant.network,
            }
            for result in self.results
        ]

    def format(self) -> str:
        """Markdown: what was measured where, the table, and what was left out."""
        headings = (
            *("network", "form", "engine", "precision", "batch", "median ms", "quartiles", "images/s", "first call s"),
            *("memory MiB", "parameters", "published top-1", "speed ratio"),
        )
        lines = [self._header(), "", _table_line(headings), "|" + "---|" * len(headings)]
        for row in self.rows():
            engine = row["engine"] if row["device"] == "CPU" else f"{row['engine']} ({row['device']})"
            lines.append(
                _table_line(
                    [
                        *(row["network"], row["form"], engine, row["precision"], str(row["batch_size"])),
                        f"{row['median_ms']:.2f}",
                        f"{row['q1_ms']:.2f} - {row['q3_ms']:.2f}",
                        *(f"{row['images_per_second']:.1f}", f"{row['first_call_s']:.1f}"),
                        "" if row["memory_mib"] is None else f"{row['memory_mib']:.0f}",
                        f"{row['parameters']:,}",
                        "" if row["published_top1"] is None else f"{row['published_top1']:.2f}",
                        f"{row['speed_ratio']:.2f}",
                    ]
                )
            )
        references = {self.reference(batch).contestant for batch in self.settings.batch_sizes if self._has(batch)}
        lines += ["", *(f"- speed ratio 1: {contestant.format()}" for contestant in sorted(references))]
        lines += [f"- left out: {line}" for line in self.left_out]
        return "\n".join(lines)

    def _has(self, batch_size):
        return any(result.contestant.batch_size == batch_size for result in self.results)

    def _header(self):
        """Everything but the contestants that decides a figure."""
        settings = self.settings
        engines = {result.contestant.engine: result.device for result in self.results}
        versions = [f"{engine} {importlib.metadata.version(engine)} on {engines[engine]}" for engine in sorted(engines)]
        cores = settings.num_threads or len(os.sched_getaffinity(0))
        turns = "one after the other" if settings.alone else "in turns"
        return (
            f"Inference, {settings.image_size}x{settings.image_size}, median of {settings.rounds} rounds after "
            f"{settings.warmup} of warm-up, {turns}; {processor()}, {cores} core{'s' * (cores > 1)}; "
            f"{', '.join(versions)}"
        )

    def write(self, path):
        """Write `format` as a file, atomically."""
        with atomic_write(path, "w") as stream:
            stream.write(self.format() + "\n")

    def write_csv(self, path):
        """Write `rows` as CSV, atomically; what is not known is empty."""
        rows = self.rows()
        with atomic_write(path, "w") as stream:
            writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    def points(self) -> list[Result]:
        """One result a network, for the plot: all of the largest batch, one engine (mindspore where it was measured)
        and the first precision; deploy form where there is one.
        """
        precisions = self.settings.precisions

        def rank(result):
            own = result.contestant
            return -own.batch_size, own.engine != MINDSPORE, precisions.index(own.precision), own.form == TRAIN

        ranked = sorted(self.results, key=rank)
        found = {}
        for result in ranked:
            if rank(result)[:3] == rank(ranked[0])[:3]:
                found.setdefault(result.contestant.network, result)
        return list(found.values())

    def draw(self, path):
        """Draw accuracy against speed as PNG, atomically: a line a family, names at the points.

        A network without a known accuracy is a vertical line at its speed.
        """
        # Drawn without pyplot: no global state, no display.
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 5.5), dpi=_DPI, layout="constrained")
        axes = figure.subplots()
        families: dict[str, list] = {}
        for result in sorted(self.points(), key=lambda result: result.images_per_second):
            network, speed = result.contestant.network, result.images_per_second
            top1 = self.settings.published(network)
            if top1 is None:
                axes.axvline(speed, color="grey", lw=0.8, ls=":")
                axes.annotate(
                    *(network, (speed, 0.02)),
                    **{"xycoords": ("data", "axes fraction"), "rotation": 90, "fontsize": 8, "color": "grey"},
                    **{"xytext": (-9, 0), "textcoords": "offset points", "parse_math": False},
                )
            else:
                families.setdefault(_family(network), []).append((speed, top1))
                axes.annotate(
                    *(network, (speed, top1)),
                    **{"xytext": (5, 5), "textcoords": "offset points", "fontsize": 8, "parse_math": False},
                )
        for family, points in sorted(families.items()):
            axes.plot(*zip(*points, strict=True), "o-", label=family)
        if families:
            axes.legend()
        size, shown = self.settings.image_size, self.points()[0].contestant
        axes.set_xlabel(f"images/s, {size}x{size}, batch {shown.batch_size}, {shown.engine}, {shown.precision}")
        axes.set_ylabel("published ImageNet top-1 at 224x224 (%)")
        axes.margins(0.12)
        axes.set_title(f"{processor()}, {self.points()[0].device}", parse_math=False)
        axes.grid(alpha=0.3)
        with atomic_write(path) as stream:
            figure.savefig(stream, format="png")


def check_plot(path, settings: Settings):
    """Raise UserError, before anything is measured, when the plot could not be written or would have no point."""
    from mindrepvgg.evaluation.classes import check_suffix

    check_suffix(path, (".png",))
    if not any(map(settings.published, (*settings.models, *settings.ckpt_paths, *settings.baselines))):
        raise UserError("none of the networks has a published accuracy to plot; give them with --top1 NAME=PERCENT,...")


def _table_line(cells):
    return f"| {' | '.join(cells)} |"


def _family(network):
    """The line of the plot a network belongs to."""
    known = {"repvgg": "RepVGG", "resnet": "ResNet"}
    return next((family for prefix, family in known.items() if network.startswith(prefix)), "others")
