"""docs/ascend.md, the run-book: options, lines of the report and figures in it are right."""

import re
from pathlib import Path

import mindspore as ms
import pytest
from support import ROOT

from mindrepvgg.cli import verbs
from mindrepvgg.measure import ascend_check
from mindrepvgg.runtime.ranks import Ranks

DOCUMENT = ROOT / "docs" / "ascend.md"


def commands(program):
    """The options that the run-book gives a program, in its blocks of commands and in its text."""
    text = DOCUMENT.read_text("utf-8").replace("\\\n", " ")
    blocks = re.findall(r"(?s)```bash\n(.*?)```", text)
    lines = "\n".join(blocks).splitlines() + re.findall(r"`([^`\n]+)`", re.sub(r"(?s)```.*?```", "", text))
    found = {option for line in lines for part in line.split(program)[1:] for option in re.findall(r"--(\w+)", part)}
    assert found, program
    return found


@pytest.mark.parametrize("program", ["mindrepvgg ascend-check", "train.py"])
def test_the_run_book_gives_options_that_exist(program, capsys):
    verb = program.removeprefix("mindrepvgg ").removesuffix(".py")
    assert verbs.main([verb, "--help"]) == 0
    known = set(re.findall(r"--(\w+)", capsys.readouterr().out))
    assert commands(program) - known == set()


def test_the_run_book_gives_msrun_options_that_exist():
    source = (Path(ms.__file__).parent / "parallel" / "cluster" / "run.py").read_text("utf-8")
    text = DOCUMENT.read_text("utf-8")
    given = re.findall(r"--(\w+)", " ".join(re.findall(r"(?s)\bmsrun -.*?python ", text)))
    given += [option for option in ("cluster_time_out", "bind_numa") if f"`--{option}" in text]
    assert {"worker_num", "node_rank", "master_addr", "bind_core", "join", "cluster_time_out"} <= set(given)
    assert [option for option in given if f'"--{option}"' not in source] == []


def test_the_run_book_explains_the_lines_of_the_report():
    text = DOCUMENT.read_text("utf-8")
    names = [name for name, _ in ascend_check.checks("CPU", Ranks(), ("NETWORK",), ("float32", "float16"), {})]
    for name in ("processes meet", *names):
        short = name.replace("NETWORK train", "NETWORK FORM").replace("NETWORK deploy", "NETWORK FORM").split(",")[0]
        assert f"`{short}`" in text or f"`{short.partition(' ')[2]}`" in text, name


@pytest.mark.parametrize(("step", "speed"), [("20.58", "12,439"), ("20.70", "12,367")])
def test_the_published_speeds_agree_with_themselves(step, speed):
    assert f"| {step} | {speed} |" in DOCUMENT.read_text("utf-8")
    assert 256 / float(step) * 1e3 == pytest.approx(int(speed.replace(",", "")), abs=1)


def test_what_a_fault_costs_is_an_epoch_by_the_table():
    """1,281,167 pictures of ImageNet on eight cards: seconds with repvgg_a1, minutes with repvgg_b3."""
    text = DOCUMENT.read_text("utf-8")
    (a1, b3) = re.search(r"\n\| 8 \|[^|]*\|[^|]*\| ([\d,]+) \(100%\) \| ([\d,]+) \(100%\)", text).groups()
    seconds, minutes = (1281167 / int(speed.replace(",", "")) / unit for speed, unit in ((a1, 1), (b3, 60)))
    assert f"takes {seconds:.0f} s with repvgg_a1 and {minutes:.0f} minutes" in " ".join(text.split())
