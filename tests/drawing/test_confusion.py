"""The drawn confusion matrix: right numbers in their places, legible at 1,000 classes."""

import io

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from mindrepvgg.drawing.confusion import draw_confusion

pytestmark = pytest.mark.compat

NAMES = ("cat", "dog, big", 'a "cow"', "$eel$", "fox")

# cow: no image; eel: always right; fox: one of three images gave NaN, and is in no column.
MATRIX = np.array([[1, 4, 0, 0, 4], [0, 7, 0, 1, 0], [0, 0, 0, 0, 0], [0, 0, 0, 2, 0], [2, 0, 0, 0, 0]])
IMAGES = np.array([9, 8, 0, 2, 3])


@pytest.mark.filterwarnings("error")
def test_few_classes_have_names_and_numbers(figures):
    draw_confusion(MATRIX, IMAGES, NAMES, io.BytesIO(), "net on data")
    (axes,) = figures[0].axes
    numbers = {tuple(map(round, reversed(text.get_position()))): int(text.get_text()) for text in axes.texts}
    assert numbers == {place: MATRIX[place] for place in zip(*map(np.ndarray.tolist, MATRIX.nonzero()), strict=True)}
    for axis in (axes.xaxis, axes.yaxis):
        assert [label.get_text() for label in axis.get_ticklabels()] == list(NAMES)
    assert [text.get_text() for text in figures[0].texts] == ["net on data", "10 of 22 images right, 5 classes"]
    right, wrong = (image.get_array() for image in axes.images)
    np.testing.assert_allclose((right.filled(0) + wrong.filled(0))[0], MATRIX[0] / 9)
    assert right.mask.sum() == 20, "what is right has a colour of its own"
    np.testing.assert_array_equal(wrong.mask, ~right.mask)


def test_long_names_are_cut(figures):
    draw_confusion(np.eye(2, dtype=int), np.ones(2, int), ("x" * 24, "y" * 200), io.BytesIO())
    assert [label.get_text() for label in figures[0].axes[0].get_yticklabels()] == ["x" * 24, "y" * 23 + "…"]


@pytest.fixture
def thousand():
    """1,000 classes of 50 images; a few are often taken for certain others."""
    matrix = np.diag(np.full(1000, 50))
    for row, column, times in ((3, 900, 20), (500, 501, 15), (999, 0, 1)):
        matrix[row, row] -= times
        matrix[row, column] = times
    return matrix, np.full(1000, 50), tuple(f"class {index}" for index in range(1000))


@pytest.mark.filterwarnings("error")
def test_a_thousand_classes_show_what_is_wrong_by_name(thousand, figures):
    matrix, images, names = thousand
    draw_confusion(matrix, images, names, io.BytesIO(), "net on data")
    axes, histogram = figures[0].axes
    words = [text.get_text() for text in figures[0].texts]
    assert words[:2] == ["net on data", "49,964 of 50,000 images right, 1,000 classes"]
    listed = ["class 3 taken for class 900", "class 500 taken for class 501", "class 999 taken for class 0"]
    assert [word for word in words if " taken for " in word] == listed, "the most frequent first"
    assert [word for word in words if word.endswith(" of 50")] == ["20 of 50", "15 of 50", "1 of 50"]
    (points,) = axes.collections
    assert points.get_offsets().tolist() == [[900, 3], [501, 500], [0, 999]]
    assert (np.diff(points.get_sizes()) < 0).all(), "an area tells the share"
    assert sum(bar.get_height() for bar in histogram.patches) == 1000


def test_all_letters_of_a_thousand_classes_are_in_the_picture_and_large_enough(thousand, figures):
    matrix, images, _ = thousand
    draw_confusion(matrix, images, ["n" * 200] * 1000, io.BytesIO())
    figure = figures[0]
    renderer = FigureCanvasAgg(figure).get_renderer()
    for text in figure.texts:
        box = text.get_window_extent(renderer)
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width
        assert text.get_fontsize() >= 8
    boxes = [text.get_window_extent(renderer) for text in figure.texts]
    assert not any(box.overlaps(other) for number, box in enumerate(boxes) for other in boxes[:number])


def test_confusions_of_one_share_are_all_shown(figures):
    """None is left out because of its place in the matrix."""
    matrix = np.full((200, 200), 1)
    draw_confusion(matrix, matrix.sum(axis=1), tuple(map(str, range(200))), io.BytesIO())
    assert len(figures[0].axes[0].collections[0].get_offsets()) == 200 * 199


@pytest.mark.filterwarnings("error")
def test_many_classes_without_a_mistake_or_an_image(figures):
    matrix = np.diag([5] * 30 + [0] * 10)
    draw_confusion(matrix, matrix.sum(axis=1), tuple(map(str, range(40))), io.BytesIO())
    assert any(text.get_text() == "no confusions" for text in figures[0].texts)
