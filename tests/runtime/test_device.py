"""The process around the network: device, compile level, and temporary changes that leave nothing behind."""

import subprocess
import sys
from pathlib import Path

import mindspore as ms
import pytest
from mindspore import nn

from mindrepvgg.errors import UserError
from mindrepvgg.runtime import device, jit_levels

ROOT = Path(__file__).parents[2]


@pytest.fixture
def machine(monkeypatch):
    """Sets up a version of MindSpore and an Ascend device, as MindSpore names it."""

    def set_up(version=(2, 10), soc="ascend910b"):
        monkeypatch.setattr(device, "mindspore_version", lambda: version)
        monkeypatch.setattr(device, "_soc", lambda: soc)

    return set_up


@pytest.mark.parametrize(
    ("requested", "target", "version", "soc", "level"),
    [
        ("auto", "Ascend", (2, 8), "ascend910b", "O2"),
        ("auto", "Ascend", (2, 9), "ascend910b", "O1"),
        ("auto", "Ascend", (2, 10), "ascend910_93", "O1"),
        ("auto", "Ascend", (2, 10), None, "O1"),
        ("auto", "Ascend", (2, 10), "ascend910", "O2"),
        ("auto", "Ascend", (2, 7), "ascend910", "O2"),
        ("O2", "Ascend", (2, 10), "ascend910b", "O2"),
        ("O1", "Ascend", (2, 10), "ascend910", "O1"),
        ("O0", "Ascend", (2, 7), "ascend910", "O0"),
        ("auto", "CPU", (2, 10), None, None),
        ("O2", "CPU", (2, 8), None, None),
    ],
)
def test_the_compile_level(machine, requested, target, version, soc, level):
    machine(version, soc)
    assert device.choose_jit_level(requested, target).level == level


def test_the_reason_is_told(machine):
    machine()
    assert "O1 has no effect" in device.choose_jit_level("O1", "CPU").reason
    assert "no effect" not in device.choose_jit_level("auto", "CPU").reason
    reason = device.choose_jit_level("auto", "Ascend").reason
    assert reason.startswith("O1, auto on 910B (Atlas A2), 910C (Atlas A3): O2 is deprecated")
    assert device.choose_jit_level("O1", "Ascend").reason == "O1, as asked"
    assert device.choose_jit_level("O2", "Ascend").reason == "O2, as asked; deprecated since MindSpore 2.9"
    assert device.choose_jit_level("O2", "Ascend", ms.PYNATIVE_MODE).level is None


@pytest.mark.parametrize(("requested", "soc"), [("auto", "ascend910"), ("O2", "ascend910b")])
def test_a_mindspore_without_o2_gets_its_successor(machine, monkeypatch, requested, soc):
    def refuse(jit_level):
        raise ValueError(f"{jit_level} must be in ['O0', 'O1']")

    machine(soc=soc)
    monkeypatch.setattr(device.ms, "JitConfig", refuse)
    reason = f"O1 instead of O2, which MindSpore {ms.__version__} no longer has"
    assert device.choose_jit_level(requested, "Ascend") == ("O1", reason)


def test_the_run_book_has_the_table_of_levels():
    assert jit_levels.table() in (ROOT / "docs" / "ascend.md").read_text("utf-8")


@pytest.mark.compat
def test_setup_may_be_called_again_on_the_same_device():
    before = ms.get_context("mode")
    try:
        assert device.setup("CPU") == "CPU"
        nn.Dense(2, 2)(ms.Tensor([[1.0, 2.0]]))
        assert device.setup("CPU", mode=ms.PYNATIVE_MODE) == "CPU"
        assert ms.get_context("mode") == ms.PYNATIVE_MODE
    finally:
        ms.set_context(mode=before)


def test_a_device_that_is_not_there_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"^device_target \(=Ascend\) cannot be used on this machine: ") as refused:
        device.setup("Ascend")
    assert "\n" not in str(refused.value)


@pytest.mark.compat
def test_inference_mode_gives_every_cell_its_flag_back():
    net = nn.SequentialCell(nn.Dense(2, 2), nn.BatchNorm1d(2), nn.Dropout(p=0.5))
    net.set_train()
    net[1].set_train(False)  # a BN frozen on purpose
    with device.inference_mode(net):
        assert not any(cell.training for _, cell in net.cells_and_names())
    assert [cell.training for _, cell in net.cells_and_names()] == [True, True, False, True]


@pytest.mark.compat
@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
def test_execution_mode_returns_to_the_mode_of_before(mode):
    before = ms.get_context("mode")
    with device.execution_mode(mode):
        assert ms.get_context("mode") == mode
    assert ms.get_context("mode") == before


SETUP_AFTER_WORK = """
from mindrepvgg.runtime import device
from mindrepvgg.errors import UserError
import mindspore as ms
assert float((ms.Tensor([1.0]) + 1).asnumpy()[0]) == 2
print(device.setup("CPU", seed=1), device.setup("auto"))
try:
    device.setup("Ascend")
except UserError as error:
    print(error)
"""


@pytest.mark.skipif(any(Path("/dev").glob("davinci[0-9]*")), reason="this machine has an Ascend device")
def test_a_run_may_start_where_mindspore_has_worked_already():
    """In a notebook, say: MindSpore then refuses to be told the device, even the one it runs on."""
    result = subprocess.run(
        [sys.executable, "-c", SETUP_AFTER_WORK], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "CPU CPU"
    assert lines[1].startswith("device_target (=Ascend) cannot be used on this machine: ")
