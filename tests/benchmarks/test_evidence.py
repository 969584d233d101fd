"""The tables of docs/reparam.md have a line for each thing that the tests check, within the tests' bounds."""

from support import ROOT
from support.folds import EXACT
from support.wrong_folds import CONTROLS


def rows(section):
    """The cells of a table of the page, without its head."""
    page = (ROOT / "docs" / "reparam.md").read_text(encoding="utf-8")
    table = page.split(f"<!-- {section}: begin -->\n")[1].split(f"\n<!-- {section}: end -->")[0]
    return [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]


def test_every_wrong_fold_stands_in_the_page():
    found = rows("controls")
    assert [row[:2] for row in found] == [[control.subject, control.wrong] for control in CONTROLS]
    for row, control in zip(found, CONTROLS, strict=True):
        assert float(row[2]) < EXACT
        assert float(row[3]) > control.least
