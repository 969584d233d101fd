"""Pictures in files, and what packing makes of their folders."""

import numpy as np
from PIL import Image

CLASSES = ("Füße", "猫 и собака", "n01")


def noise_picture(path, height, width, seed, mode="RGB"):
    """Write noise, which does not compress: a large file for its size."""
    shape = (height, width) if mode == "L" else (height, width, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8)).save(path)
    return path


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def shards(root):
    return sorted(map(str, root.glob("*.mindrecord")))


def flip(path, place):
    """Change one bit of a file's byte."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
