"""A few cases of every corpus, the same in every run: accepted, or refused in one line. `make fuzz` runs many more."""

import importlib

import pytest
from hypothesis import HealthCheck, given, settings

from fuzz.cases import RIGHT, judge

# Cases of each corpus, for about a second of it.
COUNTS = {
    "recipes": 80,
    "descriptions": 40,
    "checkpoints": 120,
    "onnx_files": 120,
    "file_names": 80,
    "pictures": 120,
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
