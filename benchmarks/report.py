"""Run the benchmarks and write their tables into docs/performance.md: python benchmarks/report.py [--only NAME,...]"""

import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT))  # run from a checkout, installed or not

import compare_mindcv
import convert_cost
import onnx_speed
import pipelines
import resize_backends
import train_step
from sections import replace_section

from mindrepvgg import cli
from mindrepvgg.errors import UserError

SECTIONS = {
    "pipelines": pipelines.measure,
    "resizing": resize_backends.measure,
    "inference": compare_mindcv.measure,
    "engines": lambda: "\n".join(onnx_speed.measure()),
    "training": train_step.measure,
    "converting": convert_cost.measure,
}


def main(argv=None):
    """Measure one section after the other; each is written as soon as it is done."""
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("--only", metavar="NAME,...", help=f"some of: {', '.join(SECTIONS)}")
    parser.add_argument("--page", type=Path, default=_ROOT / "docs" / "performance.md")
    arguments = parser.parse_args(argv)
    names = arguments.only.split(",") if arguments.only else list(SECTIONS)
    for name in names:
        if name not in SECTIONS:
            raise UserError(f"no section {name!r}; choose some of: {', '.join(SECTIONS)}")
    for name in names:
        table = SECTIONS[name]()
        print(f"{name}\n\n{table}\n", flush=True)
        replace_section(arguments.page, name, table)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
