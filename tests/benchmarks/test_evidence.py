"""The tables of docs/fusing.md have a line for each thing that the tests check, within the tests' bounds."""

from support import ROOT
from support.block_pairs import GRIDS
from support.folds import EXACT, OUTPUT
from support.wrong_folds import CONTROLS


def rows(section):
    """The cells of a table of the page, without its head."""
    page = (ROOT / "docs" / "fusing.md").read_text(encoding="utf-8")
    table = page.split(f"<!-- {section}: begin -->\n")[1].split(f"\n<!-- {section}: end -->")[0]
    return [line.strip("| ").split(" | ") for line in table[table.index("\n|---") + 1 :].splitlines()[1:]]


def test_every_wrong_fold_stands_in_the_page():
    found = rows("controls")
    assert [row[:2] for row in found] == [[control.subject, control.wrong] for control in CONTROLS]
    for row, control in zip(found, CONTROLS, strict=True):
        assert float(row[2]) < EXACT
        assert float(row[3]) > control.least


def test_every_grid_stands_in_the_page():
    found = rows("grid")
    assert [row[:2] for row in found] == [[f"`{kind.__name__}`", str(len(cases))] for kind, (_, cases) in GRIDS.items()]
    for _, _, exact, *outputs in found:
        assert float(exact) < EXACT
        assert max(map(float, outputs)) < OUTPUT


def test_networks_of_other_projects_stand_in_the_page():
    found = rows("networks")
    assert len(found) == 7
    for name, convolutions, norms, difference, *_ in found:
        before, after = map(int, convolutions.split(" / "))
        assert (before > after, norms.endswith(" / 0"), float(difference) < 1e-5) == (True, True, True), name
