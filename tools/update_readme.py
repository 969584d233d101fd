"""Measure, and write the results into README.md between its markers; run `make demo` first."""

import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_ROOT), str(_ROOT / "benchmarks")]  # run from a checkout, installed or not

import compare_mindcv
import demo
import train_step

from mindrepvgg import cli
from mindrepvgg.errors import UserError
from mindrepvgg.files import atomic_write

_BEGIN, _END = "<!-- results: begin -->", "<!-- results: end -->"


def main(argv=None):
    """Replace what stands between the markers by fresh figures."""
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("--readme", type=Path, default=_ROOT / "README.md")
    readme = parser.parse_args(argv).readme
    text = readme.read_text(encoding="utf-8")
    if text.count(_BEGIN) != 1 or text.count(_END) != 1:
        raise UserError(f"{readme} must hold one {_BEGIN} and one {_END}, between which the results stand")
    checkpoints = [_ROOT / path for path in demo.CHECKPOINTS]
    if not all(path.exists() for path in checkpoints):
        raise UserError(f"{checkpoints[0].parent} has no finished demo; run make demo first")
    results = f"{demo.report(*checkpoints)}\n\n{compare_mindcv.measure()}\n\n{train_step.measure()}"
    before, rest = text.split(_BEGIN)
    with atomic_write(readme, "w") as stream:
        stream.write(f"{before}{_BEGIN}\n{results}\n{_END}{rest.split(_END)[1]}")
    print(results)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
