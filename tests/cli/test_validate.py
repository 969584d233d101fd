"""mindrepvgg validate, in its plain use; tests/evaluation has the ways to validate."""

import json
import subprocess
import sys

import pytest
from support import ROOT, VALIDATION_KEYS


@pytest.mark.compat
def test_both_forms_judge_alike(files, call):
    """Converted to either container, the network gets the same images right."""
    facts = {}
    for name in ("fused.ckpt", "fused.safetensors"):
        status, out, err = call("convert", files / "train.ckpt", files / name)
        assert (status, err) == (0, ""), err
        assert f"written: {files / name} (deploy form, " in out
    for name in ("train.ckpt", "fused.ckpt", "fused.safetensors"):
        status, out, err = call("validate", "--ckpt_path", files / name, "--json", "--mode", "1")
        assert (status, err) == (0, ""), err
        facts[name] = json.loads(out)
    train, *fused = facts.values()
    assert (train["form"], [f["form"] for f in fused]) == ("train", ["deploy", "deploy"])
    assert len({f["correct"] for f in facts.values()}) == 1
    assert 0 < train["correct"] < train["num_images"] == 1000
    assert all(f["loss"] == pytest.approx(train["loss"], rel=1e-5) for f in fused)
    assert set(train) == set(VALIDATION_KEYS)


def test_for_people(files, call):
    status, out, err = call("validate", "--ckpt_path", files / "train.ckpt", "--batch_size", "999", "--mode", "1")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "repvgg in train form on mnist5k: 1,000 images"
    assert lines[1].startswith("top-1 ")
    assert lines[2].endswith(" images/s on CPU")


def test_the_command_line_changes_how_it_is_judged(files, call):
    options = ("validate", "--ckpt_path", files / "train.ckpt", "--json", "--mode", "1")
    _, out, _ = call(*options)
    status, other, _ = call(*options, "--image_resize", "32")
    assert status == 0
    assert json.loads(other)["loss"] != json.loads(out)["loss"]


def test_as_a_process(files):
    """What is in-process elsewhere, once for real: standard output is the JSON alone."""

    def validate(file, *options):
        program = [sys.executable, "validate.py", "--ckpt_path", str(file), *options]
        return subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

    result = validate(files / "train.ckpt", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["num_images"] == 1000
    result = validate(files / "cut.ckpt")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
