"""What a file is exported for: options it then has, files written beside it, and commands that are printed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mindrepvgg.deployment.ascend import ascend_commands, check_lite, lite_commands
from mindrepvgg.deployment.ascend_files import ascend_files, check_ascend, deploy_commands
from mindrepvgg.deployment.graph import GraphOptions
from mindrepvgg.deployment.tensorrt import check_tensorrt, tensorrt_commands
from mindrepvgg.deployment.triton import check_triton, model_place, triton_commands, triton_files
from mindrepvgg.deployment.written import Written
from mindrepvgg.errors import UserError
from mindrepvgg.files import atomic_write
from mindrepvgg.recipe.kinds import kind_of
from mindrepvgg.text import quoted

Commands = tuple[tuple[str, str], ...]

DYNAMIC = "dynamic"
_LARGEST_BATCH = 4096  # of an exported file, which is run and compared


@dataclass(frozen=True)
class Target:
    """What a file is exported for.

    Attributes:
        heading: what stands above the commands.
        commands: an exported file -> (what it makes, command) of each.
        files: an exported file -> text by path, of what is written beside it.
        check: raises UserError for options that the target cannot have.
        place: (destination, source) as the user gave them -> the exported file.
        batch_size: unless one is given; None: any.
        suffixes: of the exported file.
    """

    heading: str
    commands: Callable[[Written], Commands]
    files: Callable[[Written], Mapping[Path, str]] = lambda written: {}
    check: Callable[[GraphOptions], None] = lambda options: None
    place: Callable[[Path, Path], Path] = lambda destination, source: destination
    batch_size: int | None = None
    suffixes: tuple[str, ...] = (".onnx",)


def write_files(texts: Mapping[Path, str]) -> tuple[Path, ...]:
    """Write the files beside an exported one, see `Target.files`; returns their paths."""
    for path, text in texts.items():
        with atomic_write(path, "w") as file:
            file.write(text)
    return tuple(texts)


ANY = Target("for Ascend, not run here:", ascend_commands, suffixes=(".onnx", ".mindir", ".air", ".wts"))

# Published images a second of RepVGG-A0 on a 310P3 are highest at batch 16.
TARGETS = {
    "ascend": Target("not run on an NPU:", deploy_commands, ascend_files, check_ascend, batch_size=16),
    "lite": Target("not run here:", lite_commands, check=check_lite),
    "tensorrt": Target("not run on a GPU:", tensorrt_commands, check=check_tensorrt),
    "triton": Target("not run on a server:", triton_commands, triton_files, check_triton, model_place),
}


def target_of(name: str | None) -> Target:
    """The target of a name, or `ANY` for None; raise UserError for a name that is none."""
    if name is not None and name not in TARGETS:
        raise UserError(f"target (={quoted(name)}) must be one of {', '.join(TARGETS)}")
    return ANY if name is None else TARGETS[name]


def read_batch_size(value: int | str) -> int | None:
    """An exported file's batch size as a user gives it; None for "dynamic"."""
    kind = kind_of("int", least=1, most=_LARGEST_BATCH)
    try:
        return None if value == DYNAMIC else kind.read(value)
    except (TypeError, ValueError):
        raise UserError(f"batch_size (={quoted(value)}) must be {kind.expected}, or {DYNAMIC}") from None
