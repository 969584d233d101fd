"""The report of a self-check."""

import shutil
import stat

from mindrepvgg.measure import ascend_check_report


def test_a_report_is_json_whatever_was_measured():
    result = ascend_check_report.Result(
        "a", "FAIL", "b", figures={"differences": {"loss": float("nan"), "logits": 1.0}}
    )
    found = ascend_check_report.report_json({}, [result], "")["results"][0]["figures"]["differences"]
    assert found == {"loss": "NaN", "logits": 1.0}


def test_the_report_tells_of_the_machine(tmp_path, monkeypatch):
    root = tmp_path / "Ascend"
    for place, version in (
        ("driver/version.info", "Version=25.5.0"),
        ("firmware/version.info", "Version=7.8.0.5.216"),
        ("ascend-toolkit/latest/compiler/version.info", "required=1\nVersion=8.5.0"),
    ):
        (root / place).parent.mkdir(parents=True)
        (root / place).write_text(f"{version}\n")
    (tmp_path / "bin").mkdir()
    smi = tmp_path / "bin" / "npu-smi"
    smi.write_text('#!/bin/sh\necho "| npu-smi 25.5.0 $1 |"\n')
    smi.chmod(smi.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("HCCL_INTRA_ROCE_ENABLE", "1")
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    facts = ascend_check_report.environment("Ascend", "O2", root)
    assert facts[str(root / "driver/version.info")] == "Version=25.5.0"
    assert facts[str(root / "ascend-toolkit/latest/compiler/version.info")] == "Version=8.5.0"
    assert (facts["jit_level"], facts["HCCL_INTRA_ROCE_ENABLE"]) == ("O2", "1")
    text = ascend_check_report.report(
        facts, [ascend_check_report.Result("a", "FAIL", "b | c")], ascend_check_report.npu_smi()
    )
    assert "| npu-smi 25.5.0 info |" in text
    assert "| FAIL | a | b \\| c | 0.0 |" in text
    monkeypatch.setenv("PATH", "/nowhere")
    assert shutil.which("npu-smi") is None
    assert ascend_check_report.npu_smi() == "npu-smi is not on PATH"
