"""The command `mindrepvgg`: its help, its verbs, and what is the same in all of them."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

from mindrepvgg.cli import verbs

# Modules of the package `cli` that are no verbs.
OTHERS = {"__init__", "entry", "options", "verbs"}


def test_every_module_is_a_verb():
    modules = {path.stem for path in (ROOT / "mindrepvgg" / "cli").glob("*.py")} - OTHERS
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
        (
            "--lr",
            "error: the verb comes before its options, and '--lr' is an option; mindrepvgg --help lists the verbs\n",
        ),
    ],
)
def test_an_unknown_verb_is_one_line_and_status_2(capsys, argument, line):
    assert verbs.main([argument, "--help"]) == 2
    assert capsys.readouterr() == ("", line)


def test_a_verb_may_be_written_as_its_module(capsys):
    assert verbs.main(["check_data", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: mindrepvgg check-data ")


# (program, arguments, exit status, what is said): answered without MindSpore, whose import takes seconds.
QUICK = [
    *(("mindrepvgg", [verb, "--help"], 0, f"usage: mindrepvgg {verb} ") for verb in verbs.VERBS),
    ("train.py", ["--help"], 0, "--batch_size N"),
    ("validate.py", ["--help"], 0, "--ckpt_path FILE"),
    ("convert.py", ["--help"], 0, "SRC"),
    ("train.py", ["--show_config", "--lr", "0.2"], 0, "lr: 0.2  # command line\n"),
    ("train.py", ["--lr", "-1"], 2, "error: lr (='-1' on the command line) must be a number above 0\n"),
    ("train.py", ["-c", "no.yaml"], 2, "error: no.yaml does not exist, expected a recipe; check the path"),
    ("train.py", ["--epochs", "3"], 2, "error: unknown option --epochs; did you mean --epoch_size?\n"),
    ("validate.py", [], 2, "error: the following arguments are required: CKPT\n"),
    ("validate.py", ["--ckpt_path", "x", "--dataset_dir", "y"], 2, "did you mean --data_dir?\n"),
    ("convert.py", ["a.ckpt"], 2, "error: give either DST, the file to write, or --inspect\n"),
]


@pytest.mark.compat
@pytest.mark.parametrize(("program", "arguments", "status", "words"), QUICK, ids=lambda value: str(value)[:40])
def test_a_quick_answer(program, arguments, status, words):
    """A fresh process answers within half a second, and loads neither MindSpore nor NumPy.

    Its processor time is measured, and held to half of that: a busy machine stretches the time on the clock.
    """
    run = "run_path" if program.endswith(".py") else "run_module"
    code = (
        f"import runpy, sys; sys.argv = {[program, *arguments]}\n"
        f"try: runpy.{run}('{program}', run_name='__main__')\n"
        "except SystemExit as stop: status = stop.code\n"
        "heavy = [name for name in ('mindspore', 'numpy', 'cv2', 'matplotlib') if name in sys.modules]\n"
        "sys.exit(status if not heavy else f'loaded {heavy}')"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == status, done.stderr
    assert words in (done.stderr if status else done.stdout)
    assert (len(done.stderr.splitlines()), done.stdout == "") == ((1, True) if status else (0, False))
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 0.25


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
