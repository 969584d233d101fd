"""The command `mindrepvgg`: its help, its verbs, and what is the same in all of them."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

import mindrepvgg
from mindrepvgg.cli import verbs

PACKAGE = Path(mindrepvgg.__file__).parent
# Modules of the package `cli` that are no verbs.
OTHERS = {"__init__", "entry", "options", "verbs"}


def test_every_module_is_a_verb():
    modules = {path.stem for path in (PACKAGE / "cli").glob("*.py")} - OTHERS
    assert {verb.replace("-", "_") for verb in verbs.VERBS} == modules


def test_help_groups_the_verbs_and_shows_the_life_cycle(capsys):
    assert verbs.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {verb} " in text for verb in verbs.VERBS)
    cycle = [line.split()[1] for line in text.splitlines() if line.startswith("  mindrepvgg ")]
    assert cycle == ["train", "validate", "convert", "predict", "export"]
    assert verbs.main([]) == 0
    assert capsys.readouterr().out == text


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("trian", "error: unknown verb 'trian'; did you mean train?\n"),
        ("check_dat", "error: unknown verb 'check_dat'; did you mean check-data?\n"),
        ("xyz", "error: unknown verb 'xyz'; mindrepvgg --help lists the verbs\n"),
        ("--lr", "error: unknown verb '--lr'; mindrepvgg --help lists the verbs\n"),
    ],
)
def test_an_unknown_verb_is_one_line_and_status_2(capsys, argument, line):
    assert verbs.main([argument, "--help"]) == 2
    assert capsys.readouterr() == ("", line)


def test_a_verb_may_be_written_as_its_module(capsys):
    assert verbs.main(["check_data", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: mindrepvgg check-data ")


@pytest.mark.compat
@pytest.mark.parametrize("verb", verbs.VERBS)
def test_help_is_quick(verb):
    """Half a second at most in a fresh process, which loads neither MindSpore nor NumPy."""
    heavy = ("mindspore", "numpy", "cv2", "matplotlib")
    code = (
        "import sys; from mindrepvgg.cli import verbs; status = verbs.main(sys.argv[1:])\n"
        f"print('heavy:', [name for name in {heavy} if name in sys.modules]); sys.exit(status)"
    )
    times = []
    for _ in range(4):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code, verb, "--help"], capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - start)
        assert done.stdout.startswith(f"usage: mindrepvgg {verb} ")
        assert done.stdout.endswith("heavy: []\n")
        if times[-1] < 0.5:
            break
    assert min(times) < 0.5, times


@pytest.mark.parametrize(
    ("verb", "others"),
    [
        ("validate", ()),
        ("convert", ("out.ckpt",)),
        ("predict", ("picture.png",)),
        ("export", ("out.onnx",)),
        ("quantize", ("out.onnx",)),
        ("summary", ()),
        ("benchmark", ()),
    ],
)
def test_a_checkpoint_is_an_argument_or_an_option(verb, others, call, tmp_path, monkeypatch):
    """All spellings read the same file, and say that it does not exist."""
    monkeypatch.chdir(tmp_path)
    Path("picture.png").touch()
    spellings = [["none.ckpt", *others], ["--ckpt_path", "none.ckpt", *others], [*others, "--ckpt_path=none.ckpt"]]
    for arguments in spellings:
        status, out, err = call(verb, *arguments)
        assert (status, out) == (2, "")
        assert err.startswith("error: none.ckpt does not exist"), arguments


def test_two_checkpoints_for_one_are_refused(call):
    status, _, err = call("validate", "a.ckpt", "--ckpt_path", "b.ckpt")
    assert (status, err) == (2, "error: unexpected argument 'a.ckpt'; --help shows the usage\n")
