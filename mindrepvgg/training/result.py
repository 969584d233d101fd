"""What a run ended with."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from mindrepvgg.evaluation.loop import Evaluation


@dataclass(frozen=True)
class RunResult:
    """How a run ended: `finished`, or stopped by a signal; the last validation, and where everything lies."""

    finished: bool
    evaluation: Evaluation | None
    best_top1: float
    last: Path
    best: Path
    curves: Path

    def format(self) -> str:
        """What came out, and the commands that go on from here."""
        if not self.finished:
            return f"stopped; the state is saved. To continue: mindrepvgg train --resume {_quoted(self.last)}"
        checkpoint = self.best if self.best.exists() else self.last
        deployed = checkpoint.with_name(f"{self.last.name.removesuffix('_last.ckpt')}_deploy.ckpt")
        return (
            f"done: {checkpoint}; curves in {self.curves}\n"
            f"validate it: mindrepvgg validate {_quoted(checkpoint)}\n"
            f"fuse it:     mindrepvgg convert {_quoted(checkpoint)} {_quoted(deployed)}"
        )


def _quoted(path):
    """The path as a shell takes it."""
    return shlex.quote(str(path))
