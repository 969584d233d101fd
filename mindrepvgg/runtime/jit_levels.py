"""Which compile level `jit_level: auto` takes, by Ascend device and MindSpore; docs/ascend.md has the table.

O0 runs kernel by kernel, O1 fuses kernels, O2 lets CANN's GraphEngine compile and run the whole graph.
"""

from __future__ import annotations

from typing import NamedTuple

from mindrepvgg.text import markdown_table


class Row(NamedTuple):
    """A row of the table; `socs`: what MindSpore calls the hardware, `since`: the first version of MindSpore."""

    hardware: str
    socs: tuple[str, ...]
    since: tuple[int, int]
    mindspore: str
    cann: str
    auto: str
    reason: str


_FIRST = "910 (Atlas training series)", ("ascend910",)
_LATER = "910B (Atlas A2), 910C (Atlas A3)", ("ascend910b", "ascend910_93")
# Of the rows for a device, the last whose `since` is reached counts.
ROWS = (
    Row(*_FIRST, (0, 0), "up to 2.8", "8.2.RC1 to 8.5.0", "O2", "MindSpore's own default there"),
    Row(
        *_FIRST,
        (2, 9),
        "2.9, 2.10",
        "none documented",
        "O2",
        "deprecated, and no document tells of another level there",
    ),
    Row(*_LATER, (0, 0), "up to 2.8", "8.2.RC1 to 8.5.0", "O2", "the published figures were measured with it"),
    Row(*_LATER, (2, 9), "2.9, 2.10", "9.0.0, 9.1", "O1", "O2 is deprecated, its documents know O0 and O1"),
)


def row_of(soc: str | None, version: tuple[int, int]) -> Row:
    """The row of a device, as MindSpore names it, and a version of MindSpore; an unknown device counts as A2 or A3."""
    socs = _FIRST[1] if soc in _FIRST[1] else _LATER[1]
    return [row for row in ROWS if row.socs == socs and row.since <= version][-1]


def table() -> str:
    """The table as markdown."""
    header = "hardware", "MindSpore", "CANN", "`auto`", "why"
    return markdown_table(header, ((row.hardware, row.mindspore, row.cann, row.auto, row.reason) for row in ROWS))
