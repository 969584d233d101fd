"""The commands' shell: exit statuses, and errors of one line."""

import errno
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mindrepvgg.cli import entry
from mindrepvgg.errors import DataError, EquivalenceError, RecipeError
from mindrepvgg.recipe.sources import add_recipe_arguments, recipe_from_arguments

ROOT = Path(__file__).parents[2]


def raising(error):
    """A main that raises the error."""

    def main(argv):
        raise error

    return main


def train(argv):
    """A main as the entry scripts have it."""
    parser = entry.ArgumentParser(prog="train.py")
    add_recipe_arguments(parser)
    parser.add_argument("--resume", metavar="CKPT")
    recipe_from_arguments(parser.parse_args(argv))


def test_run_passes_arguments_and_gives_mains_status():
    assert entry.run(lambda argv: len(argv), ["a", "b", "c"]) == 3
    assert entry.run(lambda argv: None) == 0


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (RecipeError("lr (=0) must be\n  a number above 0"), 2, "error: lr (=0) must be a number above 0\n"),
        (DataError("no images"), 2, "error: no images\n"),
        (EquivalenceError("max difference 0.3", report=None), 1, "error: max difference 0.3\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (PermissionError(errno.EACCES, "Permission denied", "out/a.ckpt"), 2, "error: out/a.ckpt: Permission denied\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "error: No space left on device\n"),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", f"{'x' * 300}{'y' * 300}"),
            2,
            f"error: {'x' * 197}...{'y' * 100}: File name too long\n",
        ),
        (
            MemoryError(),
            2,
            "error: not enough memory; free memory, or make the batch, the images or the network smaller\n",
        ),
        (
            MemoryError("Unable to allocate 8. TiB for an array"),
            2,
            "error: not enough memory: Unable to allocate 8. TiB for an array; free memory, or make the batch, the "
            "images or the network smaller\n",
        ),
        (DataError("\x1b[2J\0x.jpg"), 2, "error: \\x1b[2J\\x00x.jpg\n"),
        (DataError("x " * 10**6), 2, f"error: {'x ' * 1332}...{'x ' * 667}".rstrip() + "\n"),
        (OSError(errno.ELOOP, "Too many levels", "link"), 2, "error: link: Too many levels\n"),
        (FileExistsError(errno.EEXIST, "File exists", "outputs"), 2, "error: outputs: File exists\n"),
    ],
)
def test_expected_errors_are_one_line_and_a_status(capsys, error, status, line):
    assert entry.run(raising(error)) == status
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize("error", [ValueError("bug"), OSError("no errno"), OSError(errno.EBADF, "Bad descriptor")])
def test_bugs_propagate(error):
    with pytest.raises(type(error)) as caught:
        entry.run(raising(error))
    assert caught.value is error


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--bathc_size", "3"], "error: unknown option --bathc_size; did you mean --batch_size?\n"),
        (["--bathc-size=3"], "error: unknown option --bathc-size; did you mean --batch_size?\n"),
        (["--epochs", "3"], "error: unknown option --epochs; did you mean --epoch_size?\n"),
        (["--resum", "x"], "error: unknown option --resum; did you mean --resume?\n"),
        (["--qqq"], "error: unknown option --qqq; --help lists the options\n"),
        (["configs/x.yaml"], "error: unexpected argument 'configs/x.yaml'; did you mean -c configs/x.yaml?\n"),
        (["--lr"], "error: argument --lr: expected one argument\n"),
        (["--lr", "fast"], "error: lr (='fast' on the command line) must be a number above 0\n"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(capsys, argv, line):
    assert entry.run(train, argv) == 2
    assert capsys.readouterr() == ("", line)


def test_a_prefix_of_an_option_is_not_the_option(capsys):
    assert entry.run(train, ["--warmup", "3"]) == 2
    assert "unknown option --warmup; did you mean --warmup_" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "ckpt_path", "others", "form"),
    [
        (["a.ckpt", "b", "c"], "a.ckpt", ["b", "c"], None),
        (["b", "--ckpt_path", "a.ckpt", "c"], "a.ckpt", ["b", "c"], None),
        (["b", "--form", "x", "c", "--ckpt-path=a.ckpt"], "a.ckpt", ["b", "c"], "x"),
        (["a.ckpt", "--form", "x", "b", "c"], "a.ckpt", ["b", "c"], "x"),
    ],
)
def test_a_checkpoint_is_the_first_argument_or_an_option(argv, ckpt_path, others, form):
    """Options may stand between the arguments."""
    parser = entry.ArgumentParser("verb")
    parser.add_checkpoint("CKPT", "a checkpoint")
    parser.add_argument("others", nargs="+")
    parser.add_argument("--form")
    found = parser.parse_args(argv)
    assert (found.ckpt_path, found.others, found.form) == (ckpt_path, others, form)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--ckpt_path"], "error: argument --ckpt_path: expected one argument\n"),
        (["--ckpt_pat", "a"], "error: unknown option --ckpt_pat; did you mean --ckpt_path?\n"),
        ([], "error: the following arguments are required: CKPT\n"),
    ],
)
def test_a_checkpoint_that_is_missing(capsys, argv, line):
    parser = entry.ArgumentParser("verb")
    parser.add_checkpoint("CKPT", "a checkpoint")
    assert (entry.run(parser.parse_args, argv), capsys.readouterr().err) == (2, line)


def test_outside_run_the_parser_exits_as_argparse_does(capsys):
    with pytest.raises(SystemExit) as stop:
        train(["--bathc_size", "3"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_help_is_status_0_on_stdout(capsys):
    assert entry.run(train, ["--help"]) == 0
    out, err = capsys.readouterr()
    assert "--resume CKPT" in out
    assert err == ""


def test_a_reader_that_has_seen_enough_is_no_error():
    program = (
        "import sys; from mindrepvgg.cli import entry\n"
        "sys.exit(entry.run(lambda argv: [print(i) for i in range(100000)] and None))"
    )
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(program)}"
    run = subprocess.run(
        ["bash", "-c", f"{command} | head -1; echo ${{PIPESTATUS[0]}}"], cwd=ROOT, capture_output=True, text=True
    )
    assert (run.stdout, run.stderr) == ("0\n141\n", "")


_CUT_SHORT = """
import signal
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    raise ImportError("initialization failed") from None
"""


@pytest.mark.parametrize("module", ["mindspore", "another"])
def test_ctrl_c_while_mindspore_is_imported_is_one_line(tmp_path, module):
    """Its libraries turn the interrupt into an error of their own, as any module may whose import is cut."""
    (tmp_path / f"{module}.py").write_text(_CUT_SHORT)
    program = f"import sys; from mindrepvgg.cli import entry; sys.exit(entry.run(lambda argv: __import__({module!r})))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    if module == "mindspore":
        assert (done.returncode, done.stderr) == (130, "error: interrupted\n")
    else:
        assert "initialization failed" in done.stderr, "the control: what happens without"
