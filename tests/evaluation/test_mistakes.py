"""The worst mistakes: the wrong images of the largest confidence, whatever the batches and ranks."""

import io

import numpy as np
import pytest
from PIL import Image

from mindrepvgg.data.source import Source
from mindrepvgg.evaluation.metrics import softmax
from mindrepvgg.evaluation.mistakes import MistakeReport, MistakeSum

pytestmark = pytest.mark.compat


@pytest.fixture
def judged():
    """Logits and labels of 300 images of five classes, and which of them count; some logits are no numbers."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (300, 5)).astype(np.float32)
    logits[7, 2] = np.nan
    logits[8, 1] = np.inf
    return logits, rng.integers(0, 5, 300), rng.random(300) < 0.9


def expected(logits, labels, valid, most):
    """The rows by sorting all of them."""
    with np.errstate(invalid="ignore"):
        sure = softmax(logits)
    rows = []
    for index in np.flatnonzero(valid):
        other = logits[index].argmax()
        if other != labels[index] and np.isfinite(logits[index]).all():
            rows.append((index, labels[index], other, sure[index, other], sure[index, labels[index]]))
    return np.array(sorted(rows, key=lambda row: -row[3])[:most])


@pytest.mark.parametrize("batch_size", [1, 32, 300])
@pytest.mark.parametrize("most", [3, 24])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_they_are_the_surest_of_all(judged, batch_size, most):
    logits, labels, valid = judged
    found = MistakeSum(most)
    for start in range(0, 300, batch_size):
        part = slice(start, start + batch_size)
        found.update(np.arange(300)[start:], logits[part], labels[part], valid[part])
    np.testing.assert_array_equal(found.rows, expected(*judged, most))


class Both:
    """Two ranks of which this one is the second."""

    def __init__(self, first):
        self.first = first

    def gather(self, array):
        return np.stack([self.first, array])


@pytest.mark.filterwarnings("ignore:invalid value")
def test_ranks_find_what_one_finds(judged):
    logits, labels, valid = judged
    parts = [MistakeSum(10), MistakeSum(10)]
    for rank, part in enumerate(parts):
        own = slice(rank, None, 2)
        part.update(np.arange(300)[own], logits[own], labels[own], valid[own])
    parts[1].add_ranks(Both(parts[0].rows))
    np.testing.assert_array_equal(parts[1].rows, expected(*judged, 10))


def test_a_mistake_is_told_with_its_picture():
    source = Source("data", ("cat", "dog"), np.array([0, 1, 0], np.int32), images=np.zeros((3, 4, 4, 3), np.uint8))
    found = MistakeSum()
    logits = np.log(np.array([[0.25, 0.75], [0.5, 0.5], [0.9, 0.1]]))
    found.update(np.arange(3), logits, source.labels, np.ones(3, bool))
    report = found.report(source, lambda chosen: chosen.images)
    first, second = report.mistakes
    assert first[:4] == (0, "picture 0 of data", "cat", "dog")
    assert (first.confidence, first.true_confidence) == (pytest.approx(0.75), pytest.approx(0.25))
    assert second[:4] == (1, "picture 1 of data", "dog", "cat"), "of equal logits the lower class is predicted"
    assert report.pictures.shape == (2, 4, 4, 3)
    stream = io.BytesIO()
    report.draw(stream, "net on data")
    assert Image.open(stream).format == "PNG"


def test_no_mistake_is_a_sheet_too():
    source = Source("data", ("cat",), np.zeros(1, np.int32), images=np.zeros((1, 4, 4, 1), np.uint8))
    report = MistakeSum().report(source, None)
    assert report.mistakes == ()
    stream = io.BytesIO()
    MistakeReport((), None).draw(stream)
    assert Image.open(stream).format == "PNG"
