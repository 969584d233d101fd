"""The notebook of examples/ runs from its first to its last cell, and holds no outputs."""

import io
import json

import pytest
from PIL import Image
from support import ROOT
from support.notebooks import code_cells, run_cells

NOTEBOOK = ROOT / "examples" / "fold_a_block.ipynb"


def test_the_notebook_folds_proves_and_draws():
    names = run_cells(code_cells(NOTEBOOK))
    assert names["by_hand"] < 1e-14 < 0.1 < names["noticed"]
    assert Image.open(io.BytesIO(names["stream"].getvalue())).width > 500


def test_it_holds_no_outputs():
    """They would be of one machine, and hide a change of the code in a diff."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("beta - mean * factor", "beta"),
        ("(1, 1), (1, 1))", "(2, 0), (1, 1))"),
        ("np.eye(CHANNELS)", "np.eye(CHANNELS, k=1)"),
    ],
)
def test_a_mistake_in_the_notebook_would_be_noticed(right, wrong):
    cells = code_cells(NOTEBOOK)
    end = next(number for number, cell in enumerate(cells) if "assert by_hand" in cell)
    assert any(right in cell for cell in cells[: end + 1])
    with pytest.raises(AssertionError):
        run_cells([cell.replace(right, wrong) for cell in cells[: end + 1]])
