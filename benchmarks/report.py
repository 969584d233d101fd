"""Run benchmarks and write their tables into docs/performance.md.

python benchmarks/report.py                        # what takes minutes
python benchmarks/report.py --study                # what trains networks, which may take hours
python benchmarks/report.py --only engines,int8    # some of both
python benchmarks/report.py --only int8 --cached   # the study of INT8, of the networks that are trained already
"""

import functools
import sys
from pathlib import Path

import blocks
import cifar10
import converting
import engines
import file_kinds
import int8_ascend
import int8_study
import lite
import pipelines
import quantization_training
import resizing
import small_network
import train_step
import training_kinds
from sections import replace_section

from mindrepvgg.cli import entry
from mindrepvgg.errors import UserError

_ROOT = Path(__file__).resolve().parents[1]
_PAGE = _ROOT / "docs" / "performance.md"

BENCHMARKS = {
    "pipelines": pipelines.measure,
    "resizing": resizing.measure,
    "inference": engines.beside_mindcv,
    "engines": engines.engines,
    "exports": engines.files,
    "files": functools.partial(file_kinds.measure, _ROOT / "configs" / "quickstart.yaml"),
    "lite": lite.measure,
    "training": train_step.measure,
    "kinds": training_kinds.measure,
    "networks": functools.partial(engines.family, _ROOT / "docs" / "speed.png"),
    "converting": converting.measure,
}
STUDIES = {
    "int8": functools.partial(int8_study.measure, _ROOT / "configs"),
    "int8_ascend": functools.partial(int8_ascend.measure, _ROOT / "configs" / "cifar10_small.yaml"),
    "int8_digits": functools.partial(quantization_training.measure, _ROOT / "configs" / "quickstart.yaml"),
    "small": functools.partial(small_network.measure, _ROOT / "configs" / "cifar10_small.yaml"),
    "blocks": functools.partial(blocks.measure, _ROOT / "configs" / "cifar10_small.yaml"),
}
_ALL = {**BENCHMARKS, **STUDIES}


def main(argv=None):
    """Measure one section after the other; each is written as soon as it is done."""
    parser = entry.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", action="store_true", help="the studies, which train networks; not the benchmarks")
    parser.add_argument("--only", metavar="NAME,...", help=f"some of: {', '.join(_ALL)}")
    parser.add_argument("--cached", action="store_true", help="train nothing for the section int8")
    parser.add_argument("--page", type=Path, default=_PAGE)
    arguments = parser.parse_args(argv)
    chosen = STUDIES if arguments.study else BENCHMARKS
    names = arguments.only.split(",") if arguments.only else list(chosen)
    for name in names:
        if name not in _ALL:
            raise UserError(f"no section {name!r}; choose some of: {', '.join(_ALL)}")
    for name in names:
        try:
            table = _ALL[name](**({"trains": False} if arguments.cached and name == "int8" else {}))
        except (cifar10.NoPicturesError, lite.NoLiteError) as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        print(f"{name}\n\n{table}\n", flush=True)
        replace_section(arguments.page, name, table)
    return 0


if __name__ == "__main__":
    sys.exit(entry.run(main))
