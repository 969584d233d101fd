"""Make the pictures that the documents show, into docs/pictures and docs/speed.png.

python benchmarks/pictures.py                # the speed picture, from the table in docs/performance.md
python benchmarks/pictures.py --run FOLDER   # those of a run too: of what `tutorial.py --keep FOLDER` left there
python benchmarks/pictures.py --diagnosis    # that of the network that INT8 ruins too; trains it where no study has

Every picture of a set in them is one that `mindrepvgg draw-shapes` draws: nobody's rights are touched.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import cifar10
from sections import section_of
from trained import trained

from mindrepvgg.cli import entry, verbs
from mindrepvgg.drawing.speed import SpeedPoint, draw_speed
from mindrepvgg.errors import UserError
from mindrepvgg.measure.report import YLABEL, family_of
from mindrepvgg.recipe.sources import load_recipe

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures"
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_PAGE = "1180,2880"  # pixels of the report's picture


def speed(picture=ROOT / "docs" / "speed.png", page=ROOT / "docs" / "performance.md") -> None:
    """Draw accuracy over speed from the table of networks in docs/performance.md."""
    lines = section_of(page, "networks").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    points = []
    for row in rows[2:]:
        found = dict(zip(rows[0], row, strict=True))
        form = f"{found['form']} form, " if found["form"] else ""
        top1 = float(found["published top-1"]) if found["published top-1"] else None
        way = f"{form}{found['engine']}"
        points.append(SpeedPoint(found["network"], family_of(found["network"]), way, float(found["images/s"]), top1))
    below = f"{lines[0].partition('; ')[2]}; batch {rows[2][rows[0].index('batch')]}, 224x224 pixels, float32"
    draw_speed(points, picture, "Accuracy over speed", below, "images/s", YLABEL)


def of_the_run(folder: Path) -> None:
    """Take what the tutorial's verbs drew in a folder, and draw the rest of that run: confusions, fold, report."""
    PICTURES.mkdir(exist_ok=True)
    checkpoint = folder / "runs" / "shapes" / "repvgg_nano_best.ckpt"
    if not checkpoint.exists():
        raise UserError(f"{folder} is no folder that benchmarks/tutorial.py --keep made; run that first")
    shutil.copy(checkpoint.with_name("curves.png"), PICTURES / "curves.png")
    shutil.copy(folder / "batch.png", PICTURES / "batch.png")
    shutil.copy(folder / "mistakes.png", PICTURES / "mistakes.png")
    shutil.copy(folder / "drawn" / "star_007.png", PICTURES / "prediction.png")
    _call("validate", checkpoint, "--data_dir", folder / "shapes", "--confusion", PICTURES / "confusion.png")
    folding(checkpoint)
    photograph(folder / "report.html", PICTURES / "report.png")


def folding(checkpoint) -> None:
    """Draw a block before and after folding."""
    from mindrepvgg import load_checkpoint
    from mindrepvgg.evaluation.fold_picture import fold_of

    net = load_checkpoint(checkpoint)
    fold_of(net).draw(PICTURES / "folding.png", net.variant.name)


def photograph(page: Path, picture: Path) -> None:
    """Open a page in a browser without a window, and keep what it shows."""
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        raise UserError(f"none of {', '.join(_BROWSERS)} is installed; the picture of the report is not made anew")
    options = "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={_PAGE}"
    command = [browser, *options, f"--screenshot={picture}", page.resolve().as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def diagnosis() -> None:
    """Draw what INT8 does to the first of the networks that it ruins."""
    recipe = load_recipe(str(ROOT / "configs" / "int8_repvgg_s14.yaml"), {**cifar10.as_recipe(), "seed": 1})
    pictures = "--dataset", "folder", "--data_dir", recipe.data_dir, "--calibration_images", "512"
    _call("quantize", trained(recipe), PICTURES / "layers.png", "--diagnose", "--per_tensor", *pictures)


def _call(*command):
    if verbs.main([str(part) for part in command]):
        raise UserError(f"mindrepvgg {command[0]} failed")


def main(argv=None) -> int:
    """Make them."""
    parser = entry.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="where the tutorial's run is")
    parser.add_argument("--diagnosis", action="store_true", help="draw that of the network that INT8 ruins")
    arguments = parser.parse_args(argv)
    speed()
    if arguments.run:
        of_the_run(arguments.run)
    if arguments.diagnosis:
        diagnosis()
    return 0


if __name__ == "__main__":
    sys.exit(entry.run(main))
