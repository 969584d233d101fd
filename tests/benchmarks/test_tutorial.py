"""docs/tutorial.md: its commands and its Python run as they are printed, and what they print stands behind them."""

import re
import socket

import pytest
from support import ROOT, script

from mindrepvgg.errors import UserError

TUTORIAL = script("benchmarks/tutorial")
TEXT = TUTORIAL.PAGE.read_text(encoding="utf-8")


def test_what_a_page_prints_stands_behind_its_commands(tmp_path):
    page = "```bash\necho one\ntouch a\n```\n\n```console\nold\n```\n\n```python\n# b.py: a file\nprint(2)\n```\n"
    page += "```bash\npython b.py && ls\nseq 9\n```\n\n<!-- shown: 3 first, 1 last -->\n```console\n```\nend\n"
    said = TUTORIAL.run(page, tmp_path, {"one": "two"})
    assert said[0] == "two\n"
    assert TUTORIAL.with_output(page, said) == page.replace("old\n", "two\n").replace(
        "```console\n```", "```console\n2\na\nb.py\n...\n9\n```"
    )


def test_a_command_that_fails_is_named(tmp_path):
    with pytest.raises(UserError, match="ls none"):
        TUTORIAL.run("```bash\necho said\n```\n```bash\nls none\n```\n", tmp_path)


def test_the_page_has_an_answer_behind_its_commands():
    kinds = [kind for kind, _ in TUTORIAL._BLOCK.findall(TEXT)]
    assert TEXT.count("```") == 2 * len(kinds), "a block that is not found"
    answers = [block for kind, block in TUTORIAL._BLOCK.findall(TEXT) if kind == "console"]
    assert len(answers) > 8
    assert all(answers)
    for kind, block in TUTORIAL._BLOCK.findall(TEXT):
        if kind == "python":
            compile(block, "the tutorial's program", "exec")


@pytest.mark.slow
def test_the_tutorial_with_a_short_training(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shorter = {
        "--epoch_size 40": "--epoch_size 4",
        "draw-shapes shapes": "draw-shapes shapes --count 10",
        "int8.onnx --preprocess": "int8.onnx --preprocess --allow_drop",
        "8000": port,
    }
    assert all(text in TEXT for text in shorter)
    said = TUTORIAL.run(TEXT, tmp_path, shorter)
    assert "80 pictures, 10 of each of triangle" in said[0]
    assert "equivalent (tolerance" in "".join(said)
    assert re.search(r'"class": "\w+"', said[-1])
    assert {path.name for path in tmp_path.glob("*.png")} == {"batch.png", "mistakes.png"}
    assert (tmp_path / "report.html").stat().st_size > 100_000
    assert {path.name for path in (ROOT / "docs" / "pictures").iterdir()} >= {"batch.png", "mistakes.png"}
