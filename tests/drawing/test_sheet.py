"""Sheets of pictures, and one picture with its classes beneath: pixels in their places, text where there is room."""

import io

import numpy as np
import pytest
from PIL import Image

from mindrepvgg.drawing.sheet import Line, draw_sheet, with_classes
from mindrepvgg.drawing.style import BLUE, fitting, font

pytestmark = pytest.mark.compat

TOP = [("star " + "a very long name " * 9, 0.93), ("ёж", 0.04), ("猫", 0.02)]


@pytest.mark.parametrize(("height", "width"), [(300, 200), (28, 28), (7, 500), (1, 1), (1000, 20)])
def test_a_picture_is_whole_above_its_classes(height, width):
    picture = np.random.default_rng(0).integers(0, 200, (height, width, 3), np.uint8)
    before = picture.copy()
    drawn = np.asarray(with_classes(picture, TOP))
    np.testing.assert_array_equal(picture, before, "the original is not touched")
    times = max(1, min(-(-360 // max(height, width)), 16))
    left = (drawn.shape[1] - times * width) // 2
    shown = drawn[: times * height : times, left : left + times * width : times]
    np.testing.assert_array_equal(shown, picture, "every pixel is there, enlarged or not")
    assert drawn.shape[1] == max(360, times * width)
    panel = drawn[times * height :]
    assert (panel < 100).any(axis=2).any(), "there is text"
    assert len(panel) > 3 * 20


def test_the_bars_tell_the_shares_and_the_winner_is_set_off():
    drawn = np.asarray(with_classes(np.full((400, 400, 3), 255, np.uint8), [("a", 0.5), ("b", 0.25), ("c", 0.0)]))
    blue = np.array([int(BLUE[place : place + 2], 16) for place in (1, 3, 5)])
    counts = (drawn[400:] == blue).all(axis=2).sum(axis=1)
    grey = (drawn[400:] == (123, 135, 148)).all(axis=2).sum(axis=1)
    assert counts.max() == pytest.approx(2 * grey.max(), abs=3)
    assert (counts == counts.max()).sum() >= 3, "one bar, of the first class"


def test_a_sheet_has_every_picture(tmp_path):
    pictures = [np.full((30, 20, 3), 10 * n, np.uint8) for n in range(1, 11)] + [np.full((50, 50, 1), 200, np.uint8)]
    captions = [[Line(f"class {n}"), Line("猫 " * 50)] for n in range(11)]
    draw_sheet(pictures, captions, tmp_path / "sheet.png", "heading", "below", columns=4)
    with Image.open(tmp_path / "sheet.png") as sheet:
        found = np.asarray(sheet)
    for value in (*range(10, 101, 10), 200):
        area = (found == value).all(axis=2).sum()
        longer = 176 * 176 if value == 200 else 176 * round(176 * 20 / 30)
        assert longer <= area <= longer + 400, "its letters have few pixels of that gray"


@pytest.mark.parametrize("count", [0, 1])
def test_a_sheet_of_hardly_anything(count):
    stream = io.BytesIO()
    draw_sheet([np.zeros((4, 4, 3), np.uint8)] * count, [[]] * count, stream, "nothing is wrong")
    assert Image.open(stream).size[0] >= 560


def test_unicode_names_are_letters():
    """A letter the font lacks is drawn as a box, the same for all; where a font of Chinese is installed, none is."""
    drawings = {np.asarray(font(40, letter).getmask(letter)).tobytes() for letter in "aШγשع…"}
    assert len(drawings) == 6


def test_a_text_is_cut_to_its_room():
    letters = font(20)
    assert fitting("short", letters, 200) == "short"
    assert fitting("two\nlines", letters, 200) == "two lines"
    cut = fitting("w" * 100, letters, 200)
    assert cut.endswith("w…")
    assert letters.getlength(cut) <= 200
    assert fitting("w", letters, 1) == "…"
