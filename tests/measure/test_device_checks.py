"""Checks of a device without a network, on a CPU: what is wrong is noticed."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor
from support import context_mode

from mindrepvgg.measure import ascend_check_report, device_checks
from mindrepvgg.models import synthetic
from mindrepvgg.reparam import fake_quant
from mindrepvgg.runtime.ranks import Ranks
from mindrepvgg.training import distillation


@pytest.fixture(autouse=True)
def _mode():
    """Graph mode, which a command also sets."""
    with context_mode("graph"):
        yield


def test_a_grouped_convolution_that_is_none_fails(monkeypatch):
    class Wrong(device_checks._ConvGradients):
        def __init__(self, weight, groups, *grouped):
            super().__init__(weight, groups, *grouped)
            self.factor = 1.0 if groups == 1 else 1.1

        def construct(self, x, probe):
            y, by_input, by_weight = super().construct(x, probe)
            return y, by_input * self.factor, by_weight

    monkeypatch.setattr(device_checks, "_ConvGradients", Wrong)
    with pytest.raises(
        ascend_check_report.CheckFailed, match=r"from 2 plain convolutions: .*gradient of the input 1\.0e-01"
    ):
        device_checks.check_grouped(2)


@pytest.mark.parametrize("opt", ["momentum", pytest.param("adamw", marks=pytest.mark.slow)])
def test_an_update_by_another_rule_fails(monkeypatch, opt):
    device_checks.check_repoptimizer(opt)
    right = device_checks.gradient_multiplier
    monkeypatch.setattr(device_checks, "gradient_multiplier", lambda *place: 1.01 * right(*place))
    with pytest.raises(ascend_check_report.CheckFailed, match=r"differ from float64's by \d\.\de-0[1234]: too much"):
        device_checks.check_repoptimizer(opt)


def test_qat_of_another_scale_or_teacher_fails(monkeypatch):
    """In PyNative mode, for time: the self-check of a whole CPU compiles it."""
    with context_mode("pynative"):
        _, figures = device_checks.check_qat()
        assert max(figures.values()) < 1e-5
        for name, wrong in (
            ("FakeQuantDense", lambda dense, per_channel: fake_quant.FakeQuantDense(dense, True)),
            ("FakeQuantDense", lambda dense, per_channel: fake_quant.FakeQuantDense(dense, False, bits=7)),
            ("Distillation", lambda teacher, share: distillation.Distillation(teacher, 0.9 * share)),
        ):
            with monkeypatch.context() as patched:
                patched.setattr(device_checks, name, wrong)
                with pytest.raises(ascend_check_report.CheckFailed, match="differ from float64's: loss "):
                    device_checks.check_qat()


def test_an_overflow_that_goes_unnoticed_fails(monkeypatch):
    saturated = Tensor(np.full(16, 65504, np.float16)), Tensor(True)
    monkeypatch.setattr(device_checks, "_Overflow", lambda: lambda _: saturated)
    with pytest.raises(ascend_check_report.CheckFailed, match=r"is 65504 \(saturation\) and was taken for finite"):
        device_checks.check_overflow()


def test_a_fused_network_that_computes_something_else_fails(monkeypatch):
    monkeypatch.setattr(device_checks, "to_deploy", lambda net: lambda x: net(x) * 1.1)
    with context_mode("pynative"), pytest.raises(ascend_check_report.CheckFailed, match=r"by 1\.0e-01: too much$"):
        device_checks.check_mixed_precision("float16", "CPU")
    with pytest.raises(ascend_check_report.CheckSkipped, match="no bfloat16 convolution on CPU"):
        device_checks.check_mixed_precision("bfloat16", "CPU")


class TwoRanks(Ranks):
    """Rank 0 of two, the other of which says of itself what the test wants."""

    def __init__(self, other):
        super().__init__(0, 2)
        self.other = np.array(other, np.float32)

    def gather(self, array):
        return np.stack([array, self.other])

    def broadcast(self, parameters):
        pass


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ([0.3, 0], "all-reduce is wrong on rank 1"),
        ([0, 1], "broadcast is wrong on rank 1"),
        ([np.nan, 0], "all-reduce is wrong on rank 1"),
    ],
)
def test_collectives_name_who_is_wrong(monkeypatch, other, message):
    total = synthetic.uniform("rank 0", (4096,)).astype("f") + synthetic.uniform("rank 1", (4096,)).astype("f")
    monkeypatch.setattr(device_checks, "_Sum", lambda: lambda x: Tensor(total) if x.shape == (4096,) else x)
    with pytest.raises(ascend_check_report.CheckFailed, match=f"^{message}$"):
        device_checks.check_collectives(TwoRanks(other))
    line, figures = device_checks.check_collectives(TwoRanks([0, 0]), elements=1000, rounds=2)
    assert line.startswith("2 ranks agree; 0.0 MB all-reduced in ")
    assert figures["all_reduce_seconds"] > 0


@pytest.mark.parametrize(
    ("other", "message"),
    [([0, 0.3, 0], "each on rank 1"), ([np.nan, 0, 1], "bundled on rank 1, mindspore on rank 1")],
)
def test_a_wrong_mean_of_gradients_is_named(monkeypatch, other, message):
    """Rank 0's gradients are one noise, rank 1's are twice that: the mean is 1.5 times it."""
    mean = lambda *_: lambda gradients: [gradient * 1.5 for gradient in gradients]  # noqa: E731
    monkeypatch.setattr(device_checks, "gradient_mean", mean)
    with pytest.raises(ascend_check_report.CheckFailed, match=f"^the mean is wrong: {message}$"):
        device_checks.check_gradient_mean(TwoRanks(other), "repvgg_nano")
    line, figures = device_checks.check_gradient_mean(TwoRanks([0, 0, 0]), "repvgg_nano", rounds=1)
    assert line.startswith("gradients of repvgg_nano: bundled ")
    assert max(map(max, figures["differences"].values())) < 1e-6
    monkeypatch.setattr(device_checks, "gradient_mean", lambda *_: lambda gradients: gradients)
    with pytest.raises(ascend_check_report.CheckFailed, match="bundled on rank 0, each on rank 0, mindspore"):
        device_checks.check_gradient_mean(TwoRanks([0, 0, 0]), "repvgg_nano")


@pytest.mark.slow
def test_two_processes_check_their_collectives(tmp_path):
    """Both write a report of their own, and agree."""
    folder = Path(sys.executable).parent
    command = [
        folder / "msrun",
        "--worker_num",
        "2",
        "--local_worker_num",
        "2",
        "--master_port",
        "8217",
        "--join",
        "True",
    ]
    command += ["--log_dir", tmp_path / "log", "python", "-m", "mindrepvgg", "ascend-check", "--device_target", "CPU"]
    command += ["--precision", "float32", "--report", tmp_path / "report.md"]
    environment = {"PATH": f"{folder}:/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    for rank, name in enumerate(("report.md", "report.rank1.md")):
        text = (tmp_path / name).read_text("utf-8")
        assert f"| PASS | processes meet | rank {rank} of 2 |" in text
        assert re.search(r"\| PASS \| collectives \| 2 ranks agree; 56\.4 MB all-reduced in [\d.]+ ms \|", text)
        assert re.search(
            r"\| PASS \| mean of gradients \| gradients of repvgg_a1: bundled [\d.]+ ms, each [\d.]+ ms,", text
        )
        assert "| PASS | repvgg_nano train float32 |" in text
        assert "| processes | 2 |" in text
