"""The examples of docs/features.md run."""

import re
import runpy

import numpy as np
import pytest
from mindspore import Tensor
from support import ROOT, relative_difference, weights

BLOCKS = re.findall(r"(?s)```python\n(.*?)```", (ROOT / "docs" / "features.md").read_text(encoding="utf-8"))


def run(number, folder, capsys):
    """Run an example as a script: MindSpore reads the source of what it compiles."""
    script = folder / "example.py"
    script.write_text(BLOCKS[number], encoding="utf-8")
    return runpy.run_path(str(script), run_name="example"), capsys.readouterr().out


def test_what_a_features_network_tells(tmp_path, capsys):
    assert run(0, tmp_path, capsys)[1].strip() == BLOCKS[0].splitlines()[3].partition("# ")[2]


def test_a_pyramid_is_trained_fused_saved_loaded_and_exported(
    pynative_mode, tmp_path, monkeypatch, capsys, pytestconfig
):
    if pytestconfig.getoption("--announced-signatures"):
        pytest.skip("the example makes its own convolutions by today's signatures")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    names, printed = run(1, tmp_path, capsys)
    assert names["losses"][-1] < names["losses"][0]
    assert "equivalent (tolerance" in printed
    x = Tensor(np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32))
    expected = names["net"](x)
    assert [one.shape for one in expected] == [(2, 32, 8, 8), (2, 32, 4, 4), (2, 32, 2, 2)]
    for other in ("deployed", "again", "served"):
        for one, truth in zip(names[other](x), expected, strict=True):
            assert relative_difference(one, truth) < 1e-5
    assert not [name for name in weights(names["deployed"]) if "moving" in name]
