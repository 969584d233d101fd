"""What a benchmark found: times, the table, the CSV and the plot."""

from __future__ import annotations

import csv
import importlib.metadata
import os
from dataclasses import dataclass, field
from typing import Any

from mindrepvgg.deployment.engine_base import MINDSPORE
from mindrepvgg.errors import UserError
from mindrepvgg.evaluation.class_report import check_suffix
from mindrepvgg.files import atomic_write
from mindrepvgg.measure.settings import PUBLISHED_TOP1, REFERENCE, Contestant, Settings
from mindrepvgg.models.variants import TRAIN
from mindrepvgg.runtime.environment import processor
from mindrepvgg.runtime.timing import quartiles, times_as_fast
from mindrepvgg.text import markdown_table, table

_DPI = 150
_SHOWN = (0, 1, 2, 3, 4, 5, 7, 9, 12)  # of the cells of a row, those for a terminal


@dataclass(frozen=True)
class Result:
    """What was measured of a contestant.

    Attributes:
        device: where it ran.
        seconds: of its call in each round.
        first_seconds: of its first call, in which graphs are built.
        memory: bytes; None where the system does not tell.
        parameters: numbers that training learns, without auxiliary heads; None where they are not known.
        max_rel: how far its logits are from those of the first contestant of its network and batch size, over the
            largest of these; None for MindCV's networks.
    """

    contestant: Contestant
    device: str
    seconds: tuple[float, ...]
    first_seconds: float
    memory: int | None
    parameters: int | None
    max_rel: float | None = None

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """Lower quartile, median and upper quartile of the seconds."""
        return quartiles(self.seconds)

    @property
    def images_per_second(self) -> float:
        """Images a second at the median time."""
        return self.contestant.batch_size / self.quartiles[1]

    def speed_ratio(self, reference: Result) -> float:
        """Return how many times as fast as the reference it is: the median over the rounds."""
        return times_as_fast(self.seconds, reference.seconds)


@dataclass
class Report:
    """What was measured so far.

    Attributes:
        left_out: a line for each combination that was not measured, with the reason.
        failed: whether a contestant broke down.
    """

    settings: Settings
    results: list[Result] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    failed: bool = False

    def reference(self, batch_size: int) -> Result:
        """Return the result of a batch size whose speed is 1: ResNet-18's, or without it the first."""
        rows = [result for result in self.results if result.contestant.batch_size == batch_size]
        return next((result for result in rows if result.contestant.network == REFERENCE), rows[0])

    def rows(self) -> list[dict]:
        """Return a dict of plain values for each result; None where a value is not known."""
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
                "published_top1": self.settings.published(result.contestant),
                "speed_ratio": result.speed_ratio(self.reference(result.contestant.batch_size)),
                "max_rel": result.max_rel,
                "reference": self.reference(result.contestant.batch_size).contestant.network,
            }
            for result in self.results
        ]

    def format(self) -> str:
        """Return what was measured where, the figures that fit a terminal, and what was left out."""
        headings = ("network", "form", "engine", "precision", "batch", "ms", "images/s", "MiB", "speed")
        rows = ((cells[i] for i in _SHOWN) for cells in map(_cells, self.rows()))
        return self._around(table([headings, *map(tuple, rows)], align="<<<<>"))

    def markdown(self) -> str:
        """Return what `format` tells with all figures, as Markdown."""
        headings = (
            *("network", "form", "engine", "precision", "batch", "median ms", "quartiles", "images/s", "first call s"),
            *("memory MiB", "parameters", "published top-1", "speed ratio"),
        )
        return self._around(markdown_table(headings, map(_cells, self.rows())))

    def _around(self, figures):
        """Return the figures with what was measured where above them, and what was left out below."""
        lines = [self._header(), "", figures]
        references = {self.reference(batch).contestant for batch in self.settings.batch_sizes if self._has(batch)}
        lines += ["", *(f"- speed ratio 1: {contestant.format()}" for contestant in sorted(references))]
        lines += [
            f"- {result.contestant.format()}: logits differ from the first's by {result.max_rel:.1e} of the largest"
            for result in self.results
            if result.max_rel and result.contestant.precision != "float32"
        ]
        lines += [f"- left out: {line}" for line in self.left_out]
        return "\n".join(lines)

    def _has(self, batch_size):
        return any(result.contestant.batch_size == batch_size for result in self.results)

    def _header(self):
        """Return what decides the figures, apart from the contestants."""
        settings = self.settings
        engines = {result.contestant.engine: result.device for result in self.results}
        packages = {engine: engine.partition(".")[0] for engine in sorted(engines)}  # of torch.compile, torch
        versions = [
            f"{engine} {importlib.metadata.version(package)} on {engines[engine]}"
            for engine, package in packages.items()
        ]
        cores = settings.num_threads or len(os.sched_getaffinity(0))
        turns = "one after the other" if settings.alone else "in turns"
        return (
            f"Inference, {settings.image_size}x{settings.image_size}, median of {settings.rounds} rounds after "
            f"{settings.warmup} of warm-up, {turns}; {processor()}, {cores} core{'s' * (cores > 1)}; "
            f"{', '.join(versions)}"
        )

    def write(self, path):
        """Write `markdown` as a file, atomically."""
        with atomic_write(path, "w") as stream:
            stream.write(self.markdown() + "\n")

    def write_csv(self, path):
        """Write `rows` as CSV, atomically; what is not known is empty."""
        rows = self.rows()
        with atomic_write(path, "w") as stream:
            writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    def points(self) -> list[Result]:
        """Return the results to plot, one for each network: in deploy form where there is one.

        All are of the largest batch, of one engine (mindspore where it was measured) and of the first precision.
        """
        precisions = self.settings.precisions

        def rank(result):
            own = result.contestant
            known = precisions.index(own.precision) if own.precision in precisions else len(precisions)
            return -own.batch_size, own.engine != MINDSPORE, known, own.form == TRAIN

        ranked = sorted(self.results, key=rank)
        found = {}
        for result in ranked:
            if rank(result)[:3] == rank(ranked[0])[:3]:
                found.setdefault((result.contestant.network, bool(result.contestant.form)), result)
        return list(found.values())

    def draw(self, path):
        """Draw accuracy against speed as PNG, atomically: a line for each family, names at the points.

        A network without a known accuracy is a vertical line at its speed.
        """
        # Drawn without pyplot: no global state, no display.
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 5.5), dpi=_DPI, layout="constrained")
        axes = figure.subplots()
        families: dict[str, list] = {}
        label: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "parse_math": False}
        for result in sorted(self.points(), key=lambda result: result.images_per_second):
            network, speed = result.contestant.network, result.images_per_second
            top1 = self.settings.published(result.contestant)
            if top1 is None:
                axes.axvline(speed, color="grey", lw=0.8, ls=":")
                axes.annotate(
                    network,
                    (speed, 0.02),
                    xycoords=("data", "axes fraction"),
                    rotation=90,
                    color="grey",
                    xytext=(-9, 0),
                    **label,
                )
            else:
                families.setdefault(_family(network), []).append((speed, top1))
                axes.annotate(network, (speed, top1), xytext=(5, 5), **label)
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
    """Raise UserError, before anything is measured, where the plot could not be written or would have no point."""
    check_suffix(path, (".png",))
    if not settings.top1 and not any(name in PUBLISHED_TOP1 for name in settings.models):
        raise UserError("none of the networks has a published accuracy to plot; give them with --top1 NAME=PERCENT,...")


def _cells(row):
    """Return a row's cells for the table."""
    return (
        *(row["network"], row["form"]),
        row["engine"] if row["device"] == "CPU" else f"{row['engine']} ({row['device']})",
        *(row["precision"], row["batch_size"]),
        f"{row['median_ms']:.2f}",
        f"{row['q1_ms']:.2f} - {row['q3_ms']:.2f}",
        f"{row['images_per_second']:.1f}",
        f"{row['first_call_s']:.1f}",
        "" if row["memory_mib"] is None else f"{row['memory_mib']:.0f}",
        "" if row["parameters"] is None else f"{row['parameters']:,}",
        "" if row["published_top1"] is None else f"{row['published_top1']:.2f}",
        f"{row['speed_ratio']:.2f}",
    )


def _family(network):
    """Return the line of the plot that a network belongs to."""
    known = {"repvgg": "RepVGG", "qarepvgg": "QARepVGG", "mobileone": "MobileOne", "resnet": "ResNet"}
    return next((family for prefix, family in known.items() if network.startswith(prefix)), "others")
