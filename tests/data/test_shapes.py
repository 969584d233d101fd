"""The drawn set: the same pictures for the same seed, a folder for each class, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from mindrepvgg.data.shapes import CLASSES, write_shapes
from mindrepvgg.errors import UserError


def test_the_shapes_are_the_same_for_the_same_seed(tmp_path):
    folders = [write_shapes(tmp_path / str(number), count=2, size=32, seed=number % 2) for number in range(3)]
    found = [{path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.png")} for folder in folders]
    assert len(found[0]) == 2 * len(CLASSES)
    assert found[0] == found[2]
    assert not set(found[0].values()) & set(found[1].values())
    for path in folders[0].rglob("*.png"):
        with Image.open(path) as picture:
            assert picture.size == (32, 32)
            assert np.asarray(picture).std() > 10, "something is on it"


def test_the_verb_says_what_it_drew(tmp_path, call):
    status, out, _ = call("draw-shapes", tmp_path / "shapes", "--count", "2", "--size", "16")
    assert status == 0
    assert out.startswith(f"{tmp_path}/shapes: 16 pictures, 2 of each of triangle, square, ")
    assert sorted(path.name for path in (tmp_path / "shapes").iterdir()) == sorted(CLASSES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 1}, r"count \(=1\) must be at least 2"),
        ({"size": 8}, r"size \(=8\) must be 16 to 1024 pixels"),
        ({}, r"shapes holds something already; give a new folder"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path, options, message):
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes" / "kept.txt").write_text("kept")
    with pytest.raises(UserError, match=message):
        write_shapes(tmp_path / "shapes", **options)
    assert (tmp_path / "shapes" / "kept.txt").read_text() == "kept"
