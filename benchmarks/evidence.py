"""Write into docs/fusing.md what the folds are held against: wrong folds, a grid of blocks, other projects' networks.

python benchmarks/evidence.py             # all of it: a quarter of an hour
python benchmarks/evidence.py controls    # one section

The blocks, the wrong folds and the truth in PyTorch are those of the tests.
"""

import sys
from pathlib import Path

import mindspore as ms
import other_networks
from sections import replace_section

from mindrepvgg.text import markdown_table

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "fusing.md"
sys.path.append(str(ROOT / "tests"))


def controls():
    """A line for each wrong fold: what was made wrong, and how far the right and the wrong one are from PyTorch's."""
    from support.wrong_folds import CONTROLS

    rows = [(control.subject, control.wrong, *(f"{error:.0e}" for error in control.errors())) for control in CONTROLS]
    return markdown_table(["operation or block", "what was made wrong", "right fold", "wrong fold"], rows)


def grid():
    """A line for each block: the largest errors over its grid."""
    from support.block_pairs import GRIDS, both
    from support.folds import fold_errors

    rows = []
    for kind, (size, cases) in GRIDS.items():
        errors = [fold_errors(*both(kind, **options), size)[:3] for options in cases]
        rows.append((f"`{kind.__name__}`", len(cases), *(f"{max(column):.1e}" for column in zip(*errors, strict=True))))
        print(*rows[-1], flush=True)
    headings = ["block", "combinations", "fold in float64", "branches in float32", "deploy form in float32"]
    return markdown_table(headings, rows)


SECTIONS = {"networks": other_networks.measure, "grid": grid, "controls": controls}


def main(names):
    """Write these sections; all of them for none."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    for name in names or SECTIONS:
        table = SECTIONS[name]()
        print(f"{name}\n\n{table}\n", flush=True)
        replace_section(PAGE, name, table)


if __name__ == "__main__":
    main(sys.argv[1:])
