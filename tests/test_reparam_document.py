"""The examples of docs/reparam.md run."""

import re
import sys

import pytest
from support import ROOT
from support.other_projects import other_project

BLOCKS = re.findall(r"(?s)```python\n(.*?)```", (ROOT / "docs" / "reparam.md").read_text(encoding="utf-8"))


def run(number):
    """Run an example in this process; what it has named."""
    names = {}
    exec(compile(BLOCKS[number], f"docs/reparam.md, example {number}", "exec"), names)
    return names


@pytest.fixture
def _today(pytestconfig):
    if pytestconfig.getoption("--announced-signatures"):
        pytest.skip("MindCV and MindYOLO make their convolutions by today's signatures")


@pytest.mark.slow
@pytest.mark.usefixtures("_today", "pynative_mode")
def test_a_network_is_grown_trained_and_folded(capsys):
    pytest.importorskip("mindcv")
    names = run(0)
    assert "of 16 convolutions, 16 became DiverseBranchBlock" in capsys.readouterr().out
    assert names["losses"][-1] < names["losses"][0]
    assert not [cell for _, cell in names["deployed"].cells_and_names() if hasattr(cell, "moving_mean")]
    assert len([line for line in BLOCKS[0].splitlines() if line]) == 10


@pytest.mark.usefixtures("_today", "pynative_mode")
def test_a_mindyolo_network_is_fused(capsys):
    other_project("mindyolo.models.layers")
    run(1)
    assert "equivalent" in capsys.readouterr().out


def test_an_adapter_is_registered(monkeypatch):
    from mindrepvgg.reparam import adapters

    monkeypatch.setattr(adapters, "_ADAPTERS", dict(adapters._ADAPTERS))
    run(2)
    assert "my_project.blocks.TwoBranches" in adapters._ADAPTERS
    assert "my_project" not in sys.modules
