"""Operations, colour jitter and erasing: against Pillow, and against their definitions."""

import itertools

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from mindrepvgg.data.image_operations import Canvas, color_jitter, operate, random_erasing

FILL = (124, 116, 104)
CANVAS = Canvas(FILL, cv2.INTER_LINEAR)


def largest_difference(got, expected):
    return np.abs(got.astype(int) - np.asarray(expected)).max()


# Operations against Pillow


def enhance(kind):
    return lambda picture, factor: kind(picture).enhance(factor)


EXACT = {
    "AutoContrast": (lambda picture, _: ImageOps.autocontrast(picture), [None]),
    "Equalize": (lambda picture, _: ImageOps.equalize(picture), [None]),
    "Identity": (lambda picture, _: picture, [None]),
    "Invert": (lambda picture, _: ImageOps.invert(picture), [None]),
    "Posterize": (ImageOps.posterize, range(1, 9)),
    "Solarize": (ImageOps.solarize, [0, 1, 127, 128, 255, 256, 300]),
}
BLENDED = {
    "Brightness": (enhance(ImageEnhance.Brightness), [0, 0.1, 0.37, 0.999, 1, 1.4, 1.9, 2.8]),
    "Color": (enhance(ImageEnhance.Color), [0, 0.1, 0.37, 1, 1.4, 1.9]),
    "Contrast": (enhance(ImageEnhance.Contrast), [0, 0.1, 0.37, 1, 1.4, 1.9]),
    "Sharpness": (enhance(ImageEnhance.Sharpness), [0.1, 0.37, 1, 1.4, 1.9]),
}


@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize(("name", "tolerance"), [*zip(EXACT, itertools.repeat(0)), *zip(BLENDED, itertools.repeat(1))])
def test_an_operation_is_pillows(pictures, name, tolerance, gray):
    pillows, amounts = (EXACT | BLENDED)[name]
    for picture, amount in itertools.product(pictures, amounts):
        original = Image.fromarray(picture).convert("L" if gray else "RGB")
        got = operate(np.asarray(original), name, amount, CANVAS)
        assert got.dtype == np.uint8
        assert largest_difference(got, pillows(original, amount)) <= tolerance, amount


def test_the_comparison_sees_a_slightly_different_amount(pictures):
    for name, amount, other in (("Posterize", 4, 5), ("Solarize", 128, 130), ("Brightness", 1.4, 1.42),
                                ("Color", 1.4, 1.45), ("Contrast", 0.6, 0.63), ("Sharpness", 1.9, 1.8)):  # fmt: skip
        pillows = (EXACT | BLENDED)[name][0]
        difference = largest_difference(
            operate(pictures[0], name, amount, CANVAS), pillows(Image.fromarray(pictures[0]), other)
        )
        assert difference > (name in BLENDED), name


def test_posterizing_to_no_bit_is_black(pictures):
    assert not operate(pictures[0], "Posterize", 0, CANVAS).any()


def test_blurring_is_pillows_gaussian(pictures):
    for radius in (0.1, 0.5, 1, 2):
        expected = Image.fromarray(pictures[0]).filter(ImageFilter.GaussianBlur(radius))
        got = operate(pictures[0], "GaussianBlur", radius, CANVAS)
        assert np.abs(got.astype(int) - np.asarray(expected)).mean() < 0.8  # Pillow's is an approximation
        assert radius < 0.5 or np.abs(got.astype(int) - pictures[0]).mean() > 2


def pillow_moved(picture, name, amount, kernel):
    original = Image.fromarray(picture)
    fill = FILL if picture.ndim == 3 else FILL[0]
    if name == "Rotate":
        return original.rotate(amount, resample=kernel, fillcolor=fill)
    matrix = {
        "ShearX": (1, amount, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, amount, 1, 0),
        "TranslateX": (1, 0, amount * original.width, 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, amount * original.height),
    }[name]
    return original.transform(original.size, Image.Transform.AFFINE, matrix, resample=kernel, fillcolor=fill)


KERNELS = {cv2.INTER_LINEAR: Image.Resampling.BILINEAR, cv2.INTER_CUBIC: Image.Resampling.BICUBIC}
MOVES = [("Rotate", 24.0), ("Rotate", -135.0), ("ShearX", 0.3), ("ShearX", -0.9), ("ShearY", 0.3), ("ShearY", -0.15),
         ("TranslateX", 0.45), ("TranslateX", -0.1), ("TranslateY", 0.45), ("TranslateY", -0.1)]  # fmt: skip


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("name", "amount"), MOVES)
def test_a_moved_picture_lies_where_pillow_puts_it(pictures, name, amount, kernel):
    canvas = Canvas(FILL, kernel)
    # On a ramp every kernel gives the position itself; 4x is well inside both pictures and away from their seams.
    rows, columns = np.mgrid[:96, :128]
    ramp = np.dstack([2 * rows, columns, rows + columns]).astype(np.uint8)
    got = operate(ramp, name, amount, canvas).astype(int)
    expected = np.asarray(pillow_moved(ramp, name, amount, KERNELS[kernel])).astype(int)
    filled = (expected == FILL).all(axis=2).astype(np.uint8)
    inside = cv2.dilate(filled, np.ones((7, 7))) == 0
    inside[:4], inside[-4:], inside[:, :4], inside[:, -4:] = 0, 0, 0, 0
    assert inside.mean() > 0.2
    assert np.abs(got - expected)[inside].max() <= 1
    outside = cv2.erode(filled, np.ones((5, 5)), borderValue=1) == 1
    assert outside.mean() > 0.03
    assert (got[outside] == FILL).all()
    for picture in pictures[:3]:
        for view in (picture, picture[..., 1]):
            got = operate(view, name, amount, canvas).astype(int)
            expected = np.asarray(pillow_moved(view, name, amount, KERNELS[kernel]))
            mirrored = np.asarray(pillow_moved(view, name, -amount, KERNELS[kernel]))
            assert np.abs(got - expected).mean() < 3
            assert np.abs(got - mirrored).mean() > 10


# Colour jitter


class Scripted:
    """A generator whose numbers are given."""

    def __init__(self, factors, order):
        self.factors, self.order = factors, order

    def uniform(self, low, high, size):
        assert (low, high, size) == (0.6, 1.4, 3)
        return np.array(self.factors)

    def permutation(self, count):
        assert count == 3
        return np.array(self.order)


def blended(values, index, factor):
    """The definition in float64: brightness, contrast or saturation of (H, W) or (H, W, 3)."""
    luma = values if values.ndim == 2 else values @ [0.299, 0.587, 0.114]
    start = (0, luma.mean(), luma if values.ndim == 2 else luma[..., None])[index]
    return np.clip(start + factor * (values - start), 0, 255)


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
def test_jitter_changes_colours_in_the_order_drawn(pictures, order):
    factors = (1.4, 0.65, 1.35)
    for picture in (*pictures[:4], *pictures[:2, ..., 1]):
        expected, others = picture.astype(float), picture.astype(float)
        for index, other in zip(order, reversed(order), strict=True):
            expected, others = blended(expected, index, factors[index]), blended(others, other, factors[other])
        got = color_jitter(picture, 0.4, Scripted(factors, order))
        # Each stage rounds, which the later factors enlarge.
        assert np.abs(got - expected).max() <= 3
        assert np.abs(got - expected).mean() < 0.7
        assert np.abs(got - others).mean() > 2


@pytest.mark.parametrize(("strength", "low", "high"), [(0.4, 60, 140), (0, 100, 100), (1.5, 0, 250)])
def test_jitter_factors_are_uniform(strength, low, high):
    # Contrast and saturation do not change a flat gray picture, which shows the factor of brightness alone.
    rng = np.random.default_rng(0)
    flat = np.full((2, 2, 3), 100, np.uint8)
    values = [color_jitter(flat, strength, rng)[0, 0, 0] for _ in range(3000)]
    quartiles = np.linspace(low, high, 5)
    assert np.abs(np.quantile(values, [0, 0.25, 0.5, 0.75, 1]) - quartiles).max() <= 0.04 * (high - low) + 1


# Random erasing


def erased(shape, scale, ratio, rng, value=5):
    image = np.zeros((3, *shape), np.float32)
    random_erasing(image, scale, ratio, value, rng)
    assert ((image == 0) | (image == value)).all()
    assert (image == image[:1]).all()
    rows, columns = np.nonzero(image[0])
    if not len(rows):
        return None
    box = rows.min(), columns.min(), np.ptp(rows) + 1, np.ptp(columns) + 1
    assert len(rows) == box[2] * box[3]
    return box


def test_erased_boxes_are_as_published():
    rng = np.random.default_rng(0)
    # Small enough that every first draw fits, so the distributions are the plain ones.
    boxes = np.array([erased((200, 200), (0.02, 0.2), (0.5, 2), rng) for _ in range(3000)])
    area, aspect = boxes[:, 2] * boxes[:, 3] / 200**2, boxes[:, 2] / boxes[:, 3]
    np.testing.assert_allclose(np.quantile(area, [0, 0.25, 0.5, 0.75, 1]), [0.02, 0.065, 0.11, 0.155, 0.2], atol=0.008)
    np.testing.assert_allclose(np.quantile(aspect, [0, 0.25, 0.5, 0.75, 1]), [0.5, 0.875, 1.25, 1.625, 2], atol=0.08)
    room = 200 - boxes[:, 2:]
    place = boxes[:, :2] / room
    assert place.min() == 0
    assert place.max() == 1
    np.testing.assert_allclose(place.mean(axis=0), 0.5, atol=0.03)


def test_a_box_that_does_not_fit_is_drawn_ten_times():
    class Counting:
        draws = 0

        def uniform(self, low, high):
            self.draws += 1
            return high

    rng = Counting()
    assert erased((10, 10), (0.9, 0.9), (3, 3), rng) is None
    assert rng.draws == 20
    assert erased((10, 10), (1, 1), (1, 1), np.random.default_rng(0)) == (0, 0, 10, 10)
