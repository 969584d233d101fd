"""Draw a set of pictures to try things on: bright shapes on dark, noisy grounds, a folder for each class.

python benchmarks/shapes.py FOLDER [--count 150] [--size 96]

The pictures are drawn here, by a rule and a seed, and belong to nobody: documents may show them.
"""

import math
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from mindrepvgg.cli import entry

_SIDES = {"triangle": 3, "square": 4, "pentagon": 5, "hexagon": 6}
CLASSES = (*_SIDES, "circle", "cross", "ring", "star")
_DARK, _BRIGHT = (20, 100), (130, 245)  # colours of the grounds, and of the shapes
_FINER = 4  # drawn so many times as large, for smooth edges


def draw_shape(name: str, rng: np.random.Generator, size: int) -> Image.Image:
    """A picture of size x size pixels with one shape somewhere, turned and coloured at random."""
    side = _FINER * size
    ground, colour = (tuple(rng.integers(low, high, 3).tolist()) for low, high in (_DARK, _BRIGHT))
    image = Image.new("RGB", (side, side), ground)
    radius = side * rng.uniform(0.24, 0.4)
    centre = rng.uniform(radius, side - radius, 2)
    _fill(ImageDraw.Draw(image), name, centre, radius, rng.uniform(0, 2 * math.pi), colour, ground)
    image = image.resize((size, size), Image.Resampling.LANCZOS).filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.2)))
    noise = rng.normal(0, rng.uniform(2, 14), (size, size, 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def _fill(pen, name, centre, radius, angle, colour, ground):
    box = [*(centre - radius), *(centre + radius)]
    if name in _SIDES:
        pen.polygon(_corners(centre, [radius] * _SIDES[name], angle), fill=colour)
    elif name == "star":
        pen.polygon(_corners(centre, [radius, 0.45 * radius] * 5, angle), fill=colour)
    elif name == "cross":
        for turned in (angle, angle + math.pi / 2):
            arm = np.array([[-1, -0.3], [1, -0.3], [1, 0.3], [-1, 0.3]]) * radius
            turn = np.array([[math.cos(turned), math.sin(turned)], [-math.sin(turned), math.cos(turned)]])
            pen.polygon([tuple(point) for point in arm @ turn + centre], fill=colour)
    else:
        pen.ellipse(box, fill=colour)
        if name == "ring":
            pen.ellipse([*(centre - 0.55 * radius), *(centre + 0.55 * radius)], fill=ground)


def _corners(centre, radii, angle):
    turns = angle + 2 * math.pi * np.arange(len(radii)) / len(radii)
    return [
        (centre[0] + r * math.cos(turn), centre[1] + r * math.sin(turn)) for r, turn in zip(radii, turns, strict=True)
    ]


def write_shapes(folder, count=150, size=96, seed=0) -> Path:
    """Write `count` pictures of each class into `folder`/CLASS/; the same ones for the same seed."""
    rng = np.random.default_rng(seed)
    for name in CLASSES:
        place = Path(folder, name)
        place.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            draw_shape(name, rng, size).save(place / f"{name}_{number:03d}.png")
    return Path(folder)


def main(argv=None):
    """Write the set."""
    parser = entry.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--count", type=int, default=150, help="pictures of each class (%(default)s)")
    parser.add_argument("--size", type=int, default=96, help="pixels of a side (%(default)s)")
    arguments = parser.parse_args(argv)
    print(f"{len(CLASSES)} classes in {write_shapes(arguments.folder, arguments.count, arguments.size)}")
    return 0


if __name__ == "__main__":
    sys.exit(entry.run(main))
