"""The model zoo's tables in the documents are those that the package's tables make."""

import sys

import pytest
from support import ROOT, script

from mindrepvgg.models.variants import published_models
from mindrepvgg.weights.released import RELEASED


@pytest.fixture
def zoo(monkeypatch):
    """The script, beside which `sections` lies."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    return script("benchmarks/zoo")


def rows(table):
    """The cells of a table, without its head."""
    return [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]


def test_the_tables_are_current(zoo):
    for page, table in zoo.PAGES.items():
        held = page.read_text(encoding="utf-8").split("<!-- zoo: begin -->\n")[1].split("\n<!-- zoo: end -->")[0]
        assert held == table(), f"{page.name}: run `python benchmarks/zoo.py`"


def test_the_short_table_holds_lines_of_the_full_one(zoo):
    full = {row[0]: row for row in rows(zoo.zoo())}
    short = rows(zoo.short_zoo())
    assert [row[0].strip("`") for row in short] == list(zoo.SHORT)
    for name, params, macs, top1 in short:
        assert [params, macs] == full[name][1:3]
        default = [cell for cell in full[name] if cell.startswith("**")]
        assert [f"**{top1.partition(' (')[0]}**"] == default


def test_every_file_stands_in_it_once(zoo):
    found = rows(zoo.zoo())
    assert [row[0].strip("`") for row in found] == published_models()
    assert sum(cell != "-" for row in found for cell in row[5:]) == len(RELEASED)
    a0 = found[0]
    assert a0[:3] == ["`repvgg_a0`", "9.11 / 8.31", "1.51 / 1.36"]  # the paper has 8.30 and 1.4 in deploy form
    assert a0[4:] == ["72.41", "**72.37**", "72.43", "72.19"]
