"""Run the benchmarks and write their tables into docs/performance.md: python benchmarks/report.py [--only NAME,...]"""

import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT))  # run from a checkout, installed or not

import compare_mindcv
import convert_cost
import onnx_speed
import pipelines
import quantization_training
import resize_backends
import train_step

from mindrepvgg.cli import entry
from mindrepvgg.errors import UserError
from mindrepvgg.files import replace_section
from mindrepvgg.recipe.sources import load_recipe

_DOCS = _ROOT / "docs"


def _networks():
    """Table 4 of the paper, as far as a CPU goes in reasonable time, and its picture."""
    from mindrepvgg.measure import contest, report
    from mindrepvgg.runtime import device

    device.setup("CPU")
    settings = report.Settings(
        models="repvgg_a0,repvgg_a1,repvgg_b0,repvgg_b1",
        baselines="resnet18,resnet34,resnet50,resnet101",
        engines="mindspore,onnxruntime",
        batch_sizes="1",
        rounds=12,
    )
    *_, found = contest.measure(settings)
    found.draw(_DOCS / "speed.png")
    return found.format()


def _int8():
    recipe = load_recipe(str(_ROOT / "configs" / "quickstart.yaml"), {"epoch_size": 6, "warmup_epochs": 1})
    return quantization_training.measure(recipe, 2, range(3))


SECTIONS = {
    "pipelines": pipelines.measure,
    "resizing": resize_backends.measure,
    "inference": compare_mindcv.measure,
    "engines": lambda: "\n".join(onnx_speed.measure()),
    "training": train_step.measure,
    "networks": _networks,
    "int8": _int8,
    "converting": convert_cost.measure,
}


def main(argv=None):
    """Measure one section after the other; each is written as soon as it is done."""
    parser = entry.ArgumentParser(description=__doc__)
    parser.add_argument("--only", metavar="NAME,...", help=f"some of: {', '.join(SECTIONS)}")
    parser.add_argument("--page", type=Path, default=_DOCS / "performance.md")
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
    sys.exit(entry.run(main))
