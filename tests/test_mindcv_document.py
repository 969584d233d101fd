"""The examples of docs/mindcv.md run."""

import re

import pytest
from support import ROOT

BLOCKS = re.findall(r"(?s)```python\n(.*?)```", (ROOT / "docs" / "mindcv.md").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def _mindcv(pytestconfig):
    pytest.importorskip("mindcv")
    if pytestconfig.getoption("--announced-signatures"):
        pytest.skip("MindCV makes its convolutions by today's signatures")


def test_our_networks_in_mindcv(capsys):
    exec(compile(BLOCKS[0], "docs/mindcv.md, example 0", "exec"), {})
    assert capsys.readouterr().out == "[160, 320, 640, 2560]\n"
