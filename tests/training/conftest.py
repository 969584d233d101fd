"""Fixtures of the tests that run a trainer."""

import dataclasses
import functools

import pytest
from support import context_mode

from mindrepvgg.data import datasets


@pytest.fixture(scope="module")
def digits_read_once():
    """Read the digits once; give the mode back, which a run sets for the process."""
    opened = datasets.DATASETS["mnist5k"]
    datasets.DATASETS["mnist5k"] = functools.cache(opened)
    with context_mode("graph"):
        yield
    datasets.DATASETS["mnist5k"] = opened


@pytest.fixture
def no_curves(monkeypatch):
    """The curves take longer to draw than the steps to run."""
    monkeypatch.setattr("mindrepvgg.training.loop.draw_curves", lambda *_: None)


@pytest.fixture
def few_digits(monkeypatch):
    """A tenth of the digits, for tests of what happens around the steps; an epoch of TINY is one step then."""

    def open_few(data_dir, split):
        source = opened(data_dir, split)
        return dataclasses.replace(source, images=source.images[::10], labels=source.labels[::10])

    opened = datasets.DATASETS["mnist5k"]
    monkeypatch.setitem(datasets.DATASETS, "mnist5k", open_few)
