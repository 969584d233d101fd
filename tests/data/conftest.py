"""Fixtures of several modules."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.pictures import CLASSES, noise_picture

from mindrepvgg.data.pack import pack_folder
from mindrepvgg.data.samples import labelled_photos


@pytest.fixture(scope="session")
def photos():
    """20 real JPEGs with three channels; the tenth or so is 1024x683, the others are 512x512."""
    source = labelled_photos()
    if source is None:
        pytest.skip("needs the photos of foolbox: pip install --no-deps foolbox==3.3.4")
    return [Path(path) for path in source.files.paths]


@pytest.fixture(scope="session")
def pictures(photos):
    """Real photographs, (N, 96, 128, 3); flat colours and few colours among them, where tables have corner cases."""
    arrays = [np.asarray(Image.open(path).convert("RGB").resize((128, 96))) for path in photos[:8]]
    flat = np.full((96, 128, 3), (9, 200, 30), np.uint8)
    few = np.where(np.random.default_rng(0).random((96, 128, 3)) < 0.001, 250, flat).astype(np.uint8)
    stack = np.stack([*arrays, flat, few])
    stack.setflags(write=False)
    return stack


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """An image folder of three classes: about 3 MB to train on, of PNG and JPEG, and 0.2 MB to validate."""
    root = tmp_path_factory.mktemp("imägenet")
    for split, count in (("train", 40), ("val", 6)):
        for number in range(count):
            suffix = ("png", "jpg", "JPEG")[number % 3]
            name = f"{split}/{CLASSES[number % 3]}/деталь '{number % 2}/写真 {number}.{suffix}"
            noise_picture(root / name, 150 + number, 320 - 4 * number, number, "L" if number % 5 == 1 else "RGB")
    return root


@pytest.fixture(scope="session")
def packed(folder, tmp_path_factory):
    """The folder in shards of 1 MB."""
    dst = tmp_path_factory.mktemp("päcked") / "a b"
    pack_folder(folder, dst, shard_size=1, num_parallel_workers=3)
    return dst
