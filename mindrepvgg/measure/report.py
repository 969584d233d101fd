"""What a benchmark found: times, the table, the CSV and the plot."""

from __future__ import annotations

import csv
import importlib.metadata
import os
from dataclasses import dataclass, field

from mindrepvgg.drawing.speed import SpeedPoint, draw_speed
from mindrepvgg.errors import UserError
from mindrepvgg.evaluation.class_report import check_suffix
from mindrepvgg.files import atomic_write
from mindrepvgg.measure.settings import FILE, MINDCV_TOP1, PUBLISHED_TOP1, REFERENCE, Contestant, Settings
from mindrepvgg.models.variants import PLAIN_FORMS
from mindrepvgg.runtime.environment import processor
from mindrepvgg.runtime.timing import quartiles, times_as_fast
from mindrepvgg.text import markdown_table, table

YLABEL = "published ImageNet top-1 at 224x224 (%)"
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

    def points(self) -> list[SpeedPoint]:
        """Return what is drawn of the results: those of the largest batch and of the first precision.

        Exported files have a precision of their own, and are drawn too. A way to compute is named by the form, and by
        the engine where there are several.
        """
        first, engines = self.settings.precisions[0], {result.contestant.engine for result in self.results}
        batch = max(result.contestant.batch_size for result in self.results)
        shown = [r for r in self.results if r.contestant.batch_size == batch and self._is_plain(r, first)]
        found = []
        for result in shown or self.results:
            own = result.contestant
            form = f"{own.form} form" if own.form in PLAIN_FORMS else ""
            way = ", ".join(filter(None, (form, own.engine if len(engines) > 1 else "")))
            top1 = self.settings.published(own)
            found.append(SpeedPoint(own.network, family_of(own.network), way, result.images_per_second, top1))
        return found

    @staticmethod
    def _is_plain(result, precision):
        """Whether a result is of this precision, or of a file, which has its own."""
        return result.contestant.form == FILE or result.contestant.precision == precision

    def draw(self, target):
        """Draw accuracy over speed as PNG, see `drawing.speed.draw_speed`; target: a path or a binary stream."""
        settings, first = self.settings, self.results[0]
        batch = max(result.contestant.batch_size for result in self.results)
        cores = settings.num_threads or len(os.sched_getaffinity(0))
        side, engines = settings.image_size, sorted({result.contestant.engine for result in self.results})
        where = f"{first.device} ({processor()}, {cores} core{'s' * (cores > 1)})"
        below = f"{', '.join(engines)}; {where}; batch {batch}, {side}x{side} pixels, {settings.precisions[0]}"
        draw_speed(self.points(), target, "Accuracy over speed", below, "images/s", YLABEL)


def check_plot(path, settings: Settings):
    """Raise UserError, before anything is measured, where the plot could not be written or would have no point."""
    check_suffix(path, (".png",))
    known = {*PUBLISHED_TOP1} & {*settings.models} | {*MINDCV_TOP1} & {*settings.baselines}
    if not settings.top1 and not known:
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


def family_of(network):
    """Return the family that a network belongs to, by its name."""
    known = {"repvgg": "RepVGG", "qarepvgg": "QARepVGG", "mobileone": "MobileOne", "resnet": "ResNet"}
    return next((family for prefix, family in known.items() if network.startswith(prefix)), "others")
