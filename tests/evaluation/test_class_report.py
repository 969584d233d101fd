"""Tables and drawings of classes: right figures, names in their places, files as other programs read them."""

import csv

import numpy as np
import pytest

from mindrepvgg.errors import UserError
from mindrepvgg.evaluation.class_report import ClassReport, check_suffix
from mindrepvgg.evaluation.metrics import ConfusionSum

NAMES = ("cat", "dog, big", 'a "cow"', "$eel$", "fox")

# cow: no image; eel: always right; fox: one of three images gave NaN, and is in no column.
MATRIX = np.array([[1, 4, 0, 0, 4], [0, 7, 0, 1, 0], [0, 0, 0, 0, 0], [0, 0, 0, 2, 0], [2, 0, 0, 0, 0]])
IMAGES = np.array([9, 8, 0, 2, 3])
TOP5 = np.array([6, 8, 0, 2, 1])


@pytest.fixture
def report():
    return ClassReport(NAMES, ConfusionSum(MATRIX.copy(), IMAGES.copy(), TOP5.copy()))


def rows(path):
    with open(path, newline="") as stream:
        return list(csv.reader(stream))


def test_every_class(report):
    assert [tuple(result) for result in report.results] == [
        ("cat", 9, 1, pytest.approx(100 / 9), pytest.approx(600 / 9), "dog, big", 4),
        ("dog, big", 8, 7, 87.5, 100, "$eel$", 1),
        ('a "cow"', 0, 0, None, None, None, 0),
        ("$eel$", 2, 2, 100, 100, None, 0),
        ("fox", 3, 0, 0, pytest.approx(100 / 3), "cat", 2),
    ]
    np.testing.assert_array_equal(report.confusion.matrix, MATRIX, "it is only read")


def test_random_logits_against_numpy(tmp_path):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(500, 20)), rng.integers(0, 19, 500)  # the last class has no image
    logits[np.arange(500), labels] += 1
    confusion = ConfusionSum.of(20)
    confusion.update(logits, labels)
    names = tuple(f"n{index}" for index in range(20))
    ClassReport(names, confusion).write_classes(tmp_path / "c.csv")
    first = np.argsort(-logits, axis=1)
    header, *lines = rows(tmp_path / "c.csv")
    assert header == ["class", "images", "correct", "top1", "top5", "most_taken_for", "times"]
    assert [line[0] for line in lines] == list(names)
    assert lines[19] == ["n19", "0", "0", "", "", "", "0"]
    for label, (_, images, correct, top1, top5, taken_for, times) in enumerate(lines[:19]):
        own = first[labels == label]
        assert (int(images), int(correct)) == (len(own), np.sum(own[:, 0] == label))
        assert float(top1) == pytest.approx(100 * np.mean(own[:, 0] == label), abs=1e-4)
        assert float(top5) == pytest.approx(100 * np.mean((own[:, :5] == label).any(axis=1)), abs=1e-4)
        taken = np.bincount(own[:, 0], minlength=20)
        taken[label] = 0
        assert (taken_for, int(times)) == (names[taken.argmax()], taken.max())


def test_the_worst(report):
    assert [result.name for result in report.worst()] == ["fox", "cat", "dog, big"]
    assert report.format() == (
        "worst classes: 'fox' 0.0% (2 of 3 taken for 'cat'), 'cat' 11.1% (4 of 9 taken for 'dog, big'), "
        "'dog, big' 87.5% (1 of 8 taken for '$eel$')"
    )


def test_none_is_bad():
    confusion = ConfusionSum(np.diag([3, 0]), np.array([3, 0]), np.array([3, 0]))
    assert ClassReport(("a", "b"), confusion).format() == "no class has an image wrong"


def test_nan_alone_makes_a_class_bad():
    confusion = ConfusionSum(np.zeros((2, 2), np.int64), np.array([4, 0]), np.array([0, 0]))
    assert ClassReport(("a", "b"), confusion).format() == "worst classes: 'a' 0.0%"


def test_the_matrix_as_a_table(report, tmp_path):
    report.write_confusion(tmp_path / "m.csv")
    header, *lines = rows(tmp_path / "m.csv")
    assert header == ["true class", *NAMES]
    assert [line[0] for line in lines] == list(NAMES)
    np.testing.assert_array_equal(np.array([line[1:] for line in lines], int), MATRIX)


def test_a_drawing_of_its_numbers(report, tmp_path, monkeypatch):
    """What it looks like is drawing.confusion's."""
    drawn = []
    monkeypatch.setattr("mindrepvgg.evaluation.class_report.draw_confusion", lambda *given: drawn.append(given))
    report.write_confusion(tmp_path / "m.PNG", "net on data")
    ((matrix, images, names, target, network),) = drawn
    np.testing.assert_array_equal(matrix, MATRIX)
    np.testing.assert_array_equal(images, IMAGES)
    assert (names, target, network) == (NAMES, tmp_path / "m.PNG", "net on data")


@pytest.mark.parametrize("path", ["m.pdf", "m", "m.csv.gz"])
def test_another_suffix(report, tmp_path, path):
    with pytest.raises(UserError, match=rf"{path} must end in \.csv or \.png"):
        report.write_confusion(tmp_path / path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"m\.png must end in \.csv$"):
        check_suffix("m.png", (".csv",))
