"""Fixtures of the tests that run a trainer."""

import dataclasses
import functools
import shutil
from pathlib import Path

import pytest
from support import context_mode
from support.processes import once
from support.runs import tiny

from mindrepvgg.data import datasets
from mindrepvgg.training.result import RunResult
from mindrepvgg.training.run_folder import RunFolder


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


def _train(folder, **changes):
    # Not imported above: a conftest may be read before the classes are swapped, see support/announced.py.
    from mindrepvgg.training.trainer import Trainer

    return Trainer(tiny(folder, **changes)).run()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run from start to end in graph mode; nothing may be changed in its folder."""

    def make(folder):
        result = _train(folder)
        return [result.finished, result.best_top1]

    folder, (finished, best_top1) = once(tmp_path_factory, "graph_run", make)
    files = RunFolder(folder, "repvgg")
    return RunResult(finished, None, best_top1, files.last, files.best, files.curves)


@pytest.fixture(scope="module")
def pynative_run(tmp_path_factory):
    """The folder of a run in PyNative mode, from start to end; nothing may be changed there."""
    return once(tmp_path_factory, "pynative_run", lambda folder: _train(folder, mode=1).finished)[0]


@pytest.fixture
def copied(run, tmp_path):
    """A copy of the finished run's folder."""
    return Path(shutil.copytree(run.last.parent, tmp_path / "copy"))
