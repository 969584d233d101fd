"""Operations of augmentation on single pictures, uint8 (H, W) or (H, W, 3) RGB, which they never change in place.

The policies were published with Pillow's ImageOps, ImageEnhance and affine transforms. OpenCV and tables compute the
same operations here in a fraction of the time. A table gives Pillow's values. Blended or sharpened colours are at most
one gray level off, because Pillow cuts fractions off and OpenCV rounds. Where pixels move, the kernels are OpenCV's.
All random numbers come from the caller's generator.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np

_ERASE_ATTEMPTS = 10


def _luma(picture):
    return picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)


def _toward(picture, level, factor):
    """Return level + factor * (picture - level); a table, though exact, takes twice the time and more."""
    return cv2.addWeighted(picture, factor, picture, 0, (1 - factor) * level)


def _brightness(picture, factor):
    return _toward(picture, 0, factor)


def _contrast(picture, factor):
    return _toward(picture, int(cv2.mean(_luma(picture))[0] + 0.5), factor)


def _color(picture, factor):
    if picture.ndim == 2:
        return picture
    return cv2.transform(picture, factor * np.eye(3) + (1 - factor) * np.array([0.299, 0.587, 0.114]))


def _sharpness(picture, factor):
    # factor * picture + (1 - factor) * smoothed picture in one filter; Pillow smooths all but the outermost pixels.
    kernel = np.full((3, 3), (1 - factor) / 13)
    kernel[1, 1] = factor + (1 - factor) * 5 / 13
    result = picture.copy()
    result[1:-1, 1:-1] = cv2.filter2D(picture, -1, kernel)[1:-1, 1:-1]
    return result


def _posterize(picture, bits):
    return cv2.LUT(picture, (np.arange(256) & (256 - (1 << (8 - bits)))).astype(np.uint8))


def _solarize(picture, threshold):
    values = np.arange(256)
    return cv2.LUT(picture, np.where(values < threshold, values, 255 - values).astype(np.uint8))


def _invert(picture, _):
    return cv2.bitwise_not(picture)


def _by_channel(picture, table):
    """Send each channel through table(channel)."""
    return cv2.merge([cv2.LUT(channel, table(channel)) for channel in cv2.split(picture)])


def _auto_contrast(picture, _):
    def table(channel):
        low, high, *_ = cv2.minMaxLoc(channel)
        values = np.arange(256)
        if high > low:
            scale = 255 / (high - low)
            values = np.clip(values * scale - low * scale, 0, 255)
        return values.astype(np.uint8)

    return _by_channel(picture, table)


def _equalize(picture, _):
    def table(channel):
        counts = cv2.calcHist([channel], [0], None, [256], [0, 256])[:, 0].astype(np.int64)
        step = (channel.size - counts[counts.nonzero()[0][-1]]) // 255
        values = (step // 2 + counts.cumsum() - counts) // step if step else np.arange(256)
        return np.minimum(values, 255).astype(np.uint8)

    return _by_channel(picture, table)


def _gaussian_blur(picture, radius):
    return cv2.GaussianBlur(picture, (0, 0), radius, borderType=cv2.BORDER_REPLICATE)


_CHANGES = {
    "AutoContrast": _auto_contrast,
    "Brightness": _brightness,
    "Color": _color,
    "Contrast": _contrast,
    "Equalize": _equalize,
    "GaussianBlur": _gaussian_blur,
    "Identity": lambda picture, _: picture,
    "Invert": _invert,
    "Posterize": _posterize,
    "Sharpness": _sharpness,
    "Solarize": _solarize,
}


def _rotation(degrees, height, width):
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = width / 2, height / 2
    return (cos, -sin, x - cos * x + sin * y), (sin, cos, y - sin * x - cos * y)


# Rows of the matrix from a place in the result to its place in the picture; as in Pillow (0, 0) is the corner and
# (0.5, 0.5) the middle of the first pixel.
_MOVES = {
    "Rotate": _rotation,
    "ShearX": lambda tangent, _height, _width: ((1, tangent, 0), (0, 1, 0)),
    "ShearY": lambda tangent, _height, _width: ((1, 0, 0), (tangent, 1, 0)),
    "TranslateX": lambda share, _height, width: ((1, 0, share * width), (0, 1, 0)),
    "TranslateY": lambda share, height, _width: ((1, 0, 0), (0, 1, share * height)),
}


class Canvas(NamedTuple):
    """How a picture is moved: fill: the colour beyond its edges; kernel: OpenCV's number of the interpolation."""

    fill: tuple[int, ...]
    kernel: int


def operate(picture: np.ndarray, name: str, amount, canvas: Canvas) -> np.ndarray:
    """Return the picture after an operation; amount: its strength, None where it has none."""
    if name in _CHANGES:
        return _CHANGES[name](picture, amount)
    height, width = picture.shape[:2]
    matrix = np.array(_MOVES[name](amount, height, width), np.float64)
    matrix[:, 2] += matrix[:, :2].sum(axis=1) / 2 - 0.5  # OpenCV has (0, 0) in the middle of the first pixel
    flags = canvas.kernel | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(picture, matrix, (width, height), flags=flags, borderValue=canvas.fill)


def color_jitter(picture: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast and saturation, in random order, by factors uniform in 1 - strength ... 1 + strength.

    Factors below 0 become 0. Gray pictures have no saturation to change.
    """
    factors = rng.uniform(max(0, 1 - strength), 1 + strength, 3)
    for index in rng.permutation(3):
        picture = (_brightness, _contrast, _color)[index](picture, factors[index])
    return picture


def random_erasing(
    image: np.ndarray, scale: tuple[float, float], ratio: tuple[float, float], value: float, rng: np.random.Generator
):
    """Write a value into a random box of an image, in place. After ten boxes that do not fit, nothing is written.

    Args:
        image: (C, H, W).
        scale: (lowest, highest) share of the area, uniform.
        ratio: (lowest, highest) height / width, uniform.
        value: what is written.
        rng: draws the numbers.

    Source: arXiv:1708.04896, algorithm 1.
    """
    _, height, width = image.shape
    for _ in range(_ERASE_ATTEMPTS):
        area = height * width * rng.uniform(*scale)
        aspect = rng.uniform(*ratio)
        box_height, box_width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_height <= height and 0 < box_width <= width:
            top = rng.integers(height - box_height + 1)
            left = rng.integers(width - box_width + 1)
            image[:, top : top + box_height, left : left + box_width] = value
            return
