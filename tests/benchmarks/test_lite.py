"""MindSpore Lite where Python 3.7 is: the files it reads, and its traps; elsewhere the reason."""

import sys

import numpy as np
import onnx
import pytest
from support import ROOT, images, relative_difference, script
from support.exports import FACTS, make
from support.onnx_files import session

import mindrepvgg
from mindrepvgg import save_checkpoint

SIDE = 40


@pytest.fixture
def lite(monkeypatch):
    """The script, beside which its neighbours lie."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    return script("benchmarks/lite")


def test_without_python_3_7_the_reason_is_told(lite, monkeypatch, tmp_path):
    monkeypatch.setattr(lite, "ENVIRONMENT", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(lite.NoLiteError, match=r"needs Python 3\.7, and there is no python3\.7 on PATH: give --python"):
        lite.environment()
    with pytest.raises(lite.NoLiteError, match="does not start"):
        lite.environment(str(tmp_path / "python3.7"))


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("kill -SEGV $$", "crashes: SIGSEGV"),
        ("echo one >&2; echo refused by the converter >&2; exit 1", "refused by the converter"),
        ("exit 1", "no message"),
    ],
)
def test_a_file_that_does_not_run(program, reason, lite, tmp_path):
    """A stand-in for Lite's Python: what becomes of the others is not lost."""
    stand_in = tmp_path / "python"
    stand_in.write_text(f"#!/bin/sh\n{program}\n")
    stand_in.chmod(0o755)
    assert lite.run(stand_in, tmp_path / "a.onnx", np.zeros((3, 1, 2, 2), np.float32), "NCHW") == reason


@pytest.fixture
def converted(lite, tmp_path):
    """A function (layout, options of export): what Lite makes of five images, what onnxruntime does."""
    if not lite.ENVIRONMENT.exists():
        pytest.skip("python benchmarks/lite.py has not made the environment of MindSpore Lite")
    python = lite.environment()
    save_checkpoint(make("plain"), tmp_path / "net.ckpt", **{**FACTS, "image_size": [SIDE, SIDE]})
    x = images(5, 3, SIDE, SIDE)

    def run(layout="NCHW", **options):
        mindrepvgg.export(tmp_path / "net.ckpt", tmp_path / "net.onnx", **options)
        padded = np.resize(x, (8, *x.shape[1:]))
        both = [session(tmp_path / "net.onnx")(padded[start : start + 4]) for start in (0, 4)]
        return lite.run(python, tmp_path / "net.onnx", x, layout), np.concatenate(both)[:5]

    run.python = python
    return run


@pytest.mark.slow
def test_the_layout_trap(converted):
    """Left to itself the converter makes a file that takes NHWC, and the same NCHW numbers give others, silently."""
    found, expected = converted(batch_size=4)
    assert relative_difference(found, expected) < 1e-5
    silent, _ = converted(layout=None, batch_size=4)
    assert relative_difference(silent, expected) > 1e-2


@pytest.mark.slow
def test_the_other_traps(converted, lite, tmp_path):
    """float16 needs a fixed batch; a Conv without strides is refused, and ours never is."""
    found, expected = converted(batch_size=4, precision="float16")
    assert relative_difference(found, expected) < 1e-2
    assert isinstance(converted(precision="float16")[0], str)
    found, expected = converted()
    assert relative_difference(found, expected) < 1e-5
    lite._without_strides(tmp_path / "net.onnx", tmp_path / "other.onnx", None, None)
    onnx.checker.check_model(onnx.load(tmp_path / "other.onnx"))
    assert lite.run(converted.python, tmp_path / "other.onnx", images(4, 3, SIDE, SIDE), "NCHW") == (
        "refused by the converter"
    )
