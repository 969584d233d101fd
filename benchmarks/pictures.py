"""Make the pictures that the documents show, into docs/pictures and docs/speed.png.

python benchmarks/pictures.py                  # trains a small network on drawn shapes first, a few minutes
python benchmarks/pictures.py --only speed     # the speed picture alone, from the table in docs/performance.md
python benchmarks/pictures.py --keep FOLDER    # the shapes and the run stay there, and are used again

Every picture of a set in them is one that `mindrepvgg draw-shapes` draws: nobody's rights are touched.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from sections import section_of

from mindrepvgg.cli import entry, verbs
from mindrepvgg.data.shapes import write_shapes
from mindrepvgg.drawing.speed import SpeedPoint, draw_speed
from mindrepvgg.errors import UserError
from mindrepvgg.measure.report import YLABEL, family_of

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures"
_SIZE = ("--image_resize", "48")
# As configs/folder.yaml, without its policy, which is for photos: a turned or sheared shape may be another one.
RECIPE = (
    *("--model", "repvgg_nano", "--val_share", "0.2", "--batch_size", "32", "--epoch_size", "12", *_SIZE),
    *("--warmup_epochs", "2", "--lr", "0.05", "--weight_decay", "0.0005", "--label_smoothing", "0.1"),
    *("--scale", "[0.7, 1.0]", "--vflip", "0.5"),
)
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_PAGE = "1180,2560"  # pixels of the report's picture


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


def trained(folder: Path) -> Path:
    """Draw the shapes and train on them, where that is not done yet; returns the checkpoint."""
    photos, run = folder / "shapes", folder / "run"
    if not photos.exists():
        write_shapes(photos, count=150)
    best = run / "repvgg_nano_best.ckpt"
    if not best.exists():
        _call("train", *RECIPE, "--data_dir", photos, "--ckpt_save_dir", run)
    return best


def of_the_run(checkpoint: Path, folder: Path) -> None:
    """Draw what the verbs draw of a run: curves, a batch, predictions, confusions, mistakes, the report."""
    photos, out = folder / "shapes", folder / "drawn"
    PICTURES.mkdir(exist_ok=True)
    shutil.copy(checkpoint.with_name("curves.png"), PICTURES / "curves.png")
    _call("train", "-c", "folder", *_SIZE, "--data_dir", photos, "--show_batch", PICTURES / "batch.png")
    report = folder / "report.html"
    pictures = "--confusion", PICTURES / "confusion.png", "--mistakes", PICTURES / "mistakes.png"
    _call("validate", checkpoint, *pictures, "--report", report)
    chosen = photos / "star" / "star_007.png"
    _call("predict", checkpoint, chosen, "--topk", "3", "--out", out)
    shutil.copy(out / chosen.name, PICTURES / "prediction.png")
    folding(checkpoint)
    photograph(report, PICTURES / "report.png")


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


def _call(*command):
    if verbs.main([str(part) for part in command]):
        raise UserError(f"mindrepvgg {command[0]} failed")


def main(argv=None) -> int:
    """Make them."""
    parser = entry.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("speed", "run"), help="some of them")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where the shapes and the run stay")
    arguments = parser.parse_args(argv)
    if arguments.only != "run":
        speed()
    if arguments.only != "speed":
        with tempfile.TemporaryDirectory() as temporary:
            folder = arguments.keep or Path(temporary)
            of_the_run(trained(folder), folder)
    return 0


if __name__ == "__main__":
    sys.exit(entry.run(main))
