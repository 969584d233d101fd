"""The bar of quantising."""

import io
from types import SimpleNamespace

import pytest

from mindrepvgg.deployment.int8 import progress
from mindrepvgg.deployment.int8.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    stream = Terminal()
    # Not sys.stderr itself, which pytest sets anew between a fixture and its test.
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=stream))
    return stream


def test_it_tells_the_share_the_phase_and_the_time_left(terminal):
    with Progress(True) as bar:
        bar.expect(40)
        bar.phase("calibration")
        bar.step(10)
        bar.phase("layers alone")
    text = terminal.getvalue()
    assert "calibration" in text
    assert "layers alone  25%" in text
    assert "left" in text


def test_more_work_than_expected_fills_it_no_further_than_to_the_end(terminal):
    with Progress(True) as bar:
        bar.expect(4)
        bar.step(10)
        bar.phase("done")
    assert "done 100%" in terminal.getvalue()


def test_nothing_is_drawn_where_nobody_asked_or_no_terminal_is(terminal, monkeypatch):
    with Progress(False) as bar:
        bar.expect(4)
        bar.phase("calibration")
        bar.step(1)
    assert terminal.getvalue() == ""
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=io.StringIO()))
    with Progress(True) as bar:
        bar.expect(4)
        bar.step(2)
    assert progress.sys.stderr.getvalue() == ""
