"""The checks of compiled files, with stand-ins for ATC, ais_bench and npu-smi: onnxruntime in the chip's place."""

import sys

import pytest

from mindrepvgg.measure import om_checks
from mindrepvgg.measure.ascend_check_report import run_check

# As `npu-smi info` prints a 910B3 and a 310P3.
SMI = """\
+------------------------------------------------------------------------------------------------+
| npu-smi 25.5.0                   Version: 25.5.0                                               |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     {name}               | OK            | 93.1        48                0    / 0             |
| 0                         | 0000:C1:00.0  | 0           0    / 0          3349 / 65536         |
"""

# What ATC is asked for becomes the compiled file; what AIPP was told goes into a file beside it.
ATC = """#!{python}
import shutil, sys
told = dict(argument[2:].split("=", 1) for argument in sys.argv[1:])
print(" ".join(sys.argv[1:]), file=open("{log}", "a"))
shutil.copy(told["model"], told["output"] + ".om")
if "insert_op_conf" in told:
    shutil.copy(told["insert_op_conf"], "aipp")
"""

AIS_BENCH = """
import os, re, sys
import numpy as np, onnxruntime
told = dict(zip(sys.argv[1::2], sys.argv[2::2]))
images = np.load(told["--input"])
if os.path.exists("aipp"):
    values = dict(re.findall(r"(\\w+): (\\S+)", open("aipp").read()))
    least, scale = (np.array([float(values[f"{key}_{i}"]) for i in range(3)]) for key in ("min_chn", "var_reci_chn"))
    images = ((images - least) * scale).transpose(0, 3, 1, 2).astype(np.float32)
run = onnxruntime.InferenceSession(open(told["--model"], "rb").read(), providers=["CPUExecutionProvider"])
found = run.run(None, {"images": images})[0]
os.mkdir(told["--output"] + "/now")
np.save(told["--output"] + "/now/images_0.npy", found * float(os.environ.get("FACTOR", 1)))
"""


# The file for ATC is the file itself, which onnxruntime runs too.
AMCT = """
import shutil

def convert_qat_model(model_file, save_path):
    shutil.copy(model_file, save_path + "_deploy_model.onnx")
"""


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A function that puts a program on PATH; PATH has nothing else. npu-smi and ATC are there."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def put(name, text):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)

    monkeypatch.setenv("PATH", str(folder))
    put("npu-smi", "#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in SMI.format(name="910B3").splitlines()))
    put("atc", ATC.format(python=sys.executable, log=tmp_path / "log"))
    return put


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """A package ais_bench, for this process and those that it starts."""
    package = tmp_path / "packages" / "ais_bench"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(AIS_BENCH)
    (package.parent / "amct_onnx.py").write_text(AMCT)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setenv("PYTHONPATH", str(package.parent))


def outcome(kind="float32"):
    result = run_check("x", lambda: om_checks.check_om(om_checks.KINDS[kind]))
    return result.status, result.detail


@pytest.mark.parametrize("kind", om_checks.KINDS)
def test_a_chip_that_computes_rightly(kind, tools, bench, tmp_path):
    status, detail = outcome(kind)
    assert (status, detail.partition(" by ")[0]) == ("PASS", "Ascend910B3: the logits differ from onnxruntime's"), (
        detail
    )
    log = (tmp_path / "log").read_text()
    assert "--model=check.onnx --framework=5 --output=check --input_format=NCHW --input_shape=images:4,3,64,64" in log
    assert log.endswith("--soc_version=Ascend910B3\n")
    assert ("--insert_op_conf=check.aipp.cfg" in log) == (kind == "AIPP")
    assert ("--precision_mode_v2=fp16" in log) == (kind in ("AIPP", "float16"))
    assert ("--precision_mode" in log) == (kind != "INT8")


def test_a_chip_that_computes_something_else_fails(tools, bench, monkeypatch):
    monkeypatch.setenv("FACTOR", "1.001")
    assert outcome() == (
        "FAIL", "Ascend910B3: the logits differ from onnxruntime's by 1.0e-03 of the largest: too much",
    )  # fmt: skip
    monkeypatch.setenv("FACTOR", "nan")
    assert outcome("float16")[0] == "FAIL"
    monkeypatch.setenv("FACTOR", "1.06")
    assert outcome("INT8")[0] == "FAIL"


def test_what_is_missing_is_told(tools, tmp_path):
    assert outcome() == ("SKIP", "compiled for Ascend910B3 and not run: the package ais_bench is not installed")
    assert outcome("INT8") == ("SKIP", "the package amct_onnx is not installed: AMCT for ONNX, of CANN")
    tools("npu-smi", "#!/bin/sh\necho no driver\n")
    assert outcome() == ("SKIP", "the chip's name is not known: no driver")
    (tmp_path / "bin" / "atc").unlink()
    assert outcome() == ("SKIP", "atc is not on PATH: source CANN's set_env.sh")


def test_what_atc_refuses_is_told(tools):
    tools(
        "atc", "#!/bin/sh\necho ATC start working now\necho 'E19010: No parser is registered for Op Concat.'\nexit 1\n"
    )
    assert outcome() == ("FAIL", "atc fails with status 1: E19010: No parser is registered for Op Concat.")


@pytest.mark.parametrize("name", ["910B3", "310P3", "910ProB"])
def test_the_chip(name, tools, monkeypatch):
    monkeypatch.setattr(om_checks, "npu_smi", lambda: SMI.format(name=name))
    assert om_checks._chip() == f"Ascend{name}"
