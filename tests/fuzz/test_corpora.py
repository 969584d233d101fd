"""A few cases of every corpus, the same in every run: accepted, or refused in one line. `make fuzz` runs many more."""

import importlib

import pytest
from hypothesis import HealthCheck, given, settings

from fuzz import checkpoints, onnx_files, pictures, samples
from fuzz.cases import ACCEPTED, RIGHT, Case, judge

# Cases of each corpus, for about a second of it.
COUNTS = {
    "recipes": 40,
    "descriptions": 16,
    "checkpoints": 120,
    "onnx_files": 120,
    "file_names": 80,
    "pictures": 60,
}


@pytest.mark.parametrize("name", COUNTS)
def test_every_case_is_accepted_or_refused_in_one_line(name, pynative_mode):
    corpus = importlib.import_module(f"fuzz.{name}")

    @settings(derandomize=True, max_examples=COUNTS[name], deadline=None, suppress_health_check=list(HealthCheck))
    @given(corpus.cases())
    def check(case):
        outcome, text = judge(case, corpus.DOORS)
        assert outcome in RIGHT, text

    check()


def test_what_the_corpora_break_is_whole(pynative_mode):
    """Or each case would be refused at the door, and nothing behind it be tried."""
    models = [model.SerializeToString() for model in samples.onnx_models()]
    whole = [("load", content, checkpoints.DOORS) for found in samples.checkpoints().values() for content in found]
    whole += [("run", content, onnx_files.DOORS) for content in models]
    whole += [("3 channels", content, pictures.DOORS) for content in pictures.pictures().values()]
    for door, content, doors in whole:
        assert judge(Case(door, "x", {"x": content}), doors) == (ACCEPTED, "")
