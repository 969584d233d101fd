"""What a run ended with."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from mindrepvgg.evaluation.loop import Evaluation


@dataclass(frozen=True)
class RunResult:
    """How a run ended: `finished`, or stopped by a signal; the last validation, and where everything lies.

    scales: the file of the scales that the run was a search for; None: it was none.
    """

    finished: bool
    evaluation: Evaluation | None
    best_top1: float
    last: Path
    best: Path
    curves: Path
    scales: Path | None = None

    def format(self) -> str:
        """What came out, and the commands that go on from here."""
        if not self.finished:
            return f"stopped; the state is saved. To continue: mindrepvgg train --resume {_quoted(self.last)}"
        checkpoint = self.best if self.best.exists() else self.last
        deployed = checkpoint.with_name(f"{self.last.name.removesuffix('_last.ckpt')}_deploy.ckpt")
        lines = [
            f"done: {checkpoint}; curves in {self.curves}",
            f"validate it: mindrepvgg validate {_quoted(checkpoint)}",
            f"fuse it:     mindrepvgg convert {_quoted(checkpoint)} {_quoted(deployed)}",
        ]
        if self.scales is not None:
            lines.append(f"its scales:  mindrepvgg train --scales {_quoted(self.scales)} ...")
        return "\n".join(lines)


def _quoted(path):
    """The path as a shell takes it."""
    return shlex.quote(str(path))
