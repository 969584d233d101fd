"""The model zoo's table in the documents is the one that the package's tables make."""

import sys

import pytest
from support import ROOT, script

from mindrepvgg.weights.released import RELEASED


@pytest.fixture
def zoo(monkeypatch):
    """The script, beside which `sections` lies."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    return script("benchmarks/zoo")


def test_the_table_is_current(zoo):
    page = zoo.PAGE.read_text(encoding="utf-8")
    held = page.split("<!-- zoo: begin -->\n")[1].split("\n<!-- zoo: end -->")[0]
    assert held == zoo.zoo(), "run `python benchmarks/zoo.py`"


def test_every_file_stands_in_it_once(zoo):
    rows = [line.strip("| ").split(" | ") for line in zoo.zoo().splitlines()[2:]]
    assert len(rows) == 15
    assert sum(cell != "-" for row in rows for cell in row[5:]) == len(RELEASED)
    a0 = rows[0]
    assert a0[:3] == ["`repvgg_a0`", "9.11 / 8.31", "1.51 / 1.36"]  # the paper has 8.30 and 1.4 in deploy form
    assert a0[4:] == ["72.41", "**72.37**", "72.43", "72.19"]
