"""The watch sees every kind of fault, keeps it, and runs it again: on faults that are planted."""

import json
import subprocess
import sys

import pytest
from support import ROOT

from fuzz import planted
from fuzz.cases import RIGHT, Case, judge
from fuzz.watch import Limits, replay, run_corpus

LIMITS = Limits(seconds=1, memory=2**26)


def test_a_case_survives_as_text():
    case = Case("door", "\udcff\0\ud800", {"a\udcff": b"\0\xff", "pipe": None, "folder/": b""})
    assert Case.from_json(case.to_json()) == case


@pytest.mark.parametrize(
    "door", ["take", "refuse", "refuse in two lines", "refuse at length", "say nothing", "stumble"]
)
def test_what_comes_of_a_case(door):
    assert judge(Case(door, "x"), planted.DOORS)[0] == planted.EXPECTED[door]


@pytest.mark.slow
def test_every_planted_fault_is_found_and_found_again(tmp_path):
    tally = run_corpus("planted", 0, 40, tmp_path, LIMITS)
    assert set(tally.outcomes) == set(planted.EXPECTED.values()), "each comes up, and nothing else"
    found = {}
    for path in tmp_path.iterdir():
        values = json.loads(path.read_text())
        assert values["outcome"] == planted.EXPECTED[values["door"]]
        found[values["door"]] = path
    wrong = {door for door, outcome in planted.EXPECTED.items() if outcome not in RIGHT}
    assert set(found) == wrong
    for door, path in found.items():
        assert replay("planted", path, LIMITS)[0] == planted.EXPECTED[door]
    done = subprocess.run(
        [sys.executable, "-m", "fuzz", "--replay", found["abort"]], cwd=ROOT / "tests", capture_output=True
    )
    assert done.returncode == 1
    assert done.stdout.startswith(b"crash\n")
    assert b"in <lambda>" in done.stdout, "where it died"


def test_a_crash_is_found_and_kept(tmp_path):
    case = tmp_path / "case.json"
    case.write_text(Case("abort", "x").to_json())
    outcome, text = replay("planted", case, LIMITS)
    assert outcome == "crash"
    assert "planted.py" in text
