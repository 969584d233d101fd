"""The script that makes the documents' pictures."""

import re
import sys

import pytest
from support import ROOT, script


@pytest.fixture
def pictures(monkeypatch):
    """The script, beside which `sections` lies."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    return script("benchmarks/pictures")


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
