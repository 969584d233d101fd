"""The scripts that make the documents' pictures: the drawn set, and the speed picture from its table."""

import re
import sys

import numpy as np
import pytest
from PIL import Image
from support import ROOT, script

SHAPES = script("benchmarks/shapes")


@pytest.fixture
def pictures(monkeypatch):
    """The script, beside which `sections` and `shapes` lie."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    return script("benchmarks/pictures")


def test_the_shapes_are_the_same_for_the_same_seed(tmp_path):
    folders = [SHAPES.write_shapes(tmp_path / str(number), count=2, size=32, seed=number % 2) for number in range(3)]
    found = [{path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.png")} for folder in folders]
    assert len(found[0]) == 2 * len(SHAPES.CLASSES)
    assert found[0] == found[2]
    assert not set(found[0].values()) & set(found[1].values())
    for path in folders[0].rglob("*.png"):
        with Image.open(path) as picture:
            assert picture.size == (32, 32)
            assert np.asarray(picture).std() > 10, "something is on it"


def test_the_speed_picture_has_every_network_of_the_table(pictures, tmp_path, figures):
    pictures.speed(tmp_path / "speed.png")
    (axes,) = figures[0].axes
    table = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    networks = set(re.findall(r"(?m)^\| (res\w+|repvgg_\w+) \| (?:train|deploy|) \| (?:mindspore|onnx)", table))
    assert {text.get_text() for text in axes.texts} == networks
    assert len(networks) >= 8
    assert {line.get_label() for line in axes.lines if line.get_marker() != "None"} == {
        *("ResNet, mindspore", "RepVGG, train form, mindspore"),
        *("RepVGG, deploy form, mindspore", "RepVGG, deploy form, onnxruntime"),
    }


def test_every_picture_is_shown_and_made_by_the_script():
    text = (ROOT / "benchmarks" / "pictures.py").read_text(encoding="utf-8")
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    documents = "".join(page.read_text(encoding="utf-8") for page in pages)
    made = [*(ROOT / "docs" / "pictures").glob("*.png"), ROOT / "docs" / "speed.png"]
    assert len(made) > 5
    assert [path.name for path in made if f"/{path.name})" not in documents.replace("(speed", "(/speed")] == []
    assert [path.name for path in made if f'"{path.name}"' not in text] == []
