"""Geometry: training's random crops and the resized centre of evaluation, on uint8 pictures (H, W) or (H, W, 3)."""

import functools
import math

import cv2
import numpy as np
from PIL import Image

from mindrepvgg.models.preprocessing import Preprocessing

OPENCV_KERNELS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
_PILLOW_KERNELS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

# OpenCV's bilinear and bicubic kernels skip source pixels beyond this reduction; its area kernel uses them all, but
# takes about eight times as long, and photos of ImageNet's usual 500x375 never come here when cropped for 224x224.
_ALIASING_REDUCTION = 2

_CROP_ATTEMPTS = 10

# Of a picture that is longer than so many crops beside each other, the middle alone is resized: a picture of one row of
# pixels would become a gigabyte.
_MOST_CROPS = 32


def random_resized_crop(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw a crop box of random area and aspect ratio inside a picture.

    Args:
        height, width: the picture's.
        scale: (lowest, highest) share of the area, uniform.
        ratio: (lowest, highest) width / height, log-uniform.
        rng: draws the numbers.

    Returns:
        (top, left, crop height, crop width). When ten draws do not fit, the largest centred box of an allowed ratio.

    Source: arXiv:1409.4842, section 6, as torchvision's RandomResizedCrop has it.
    """
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_CROP_ATTEMPTS):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * rng.random())
        aspect = math.exp(log_low + (log_high - log_low) * rng.random())
        crop_width = round(math.sqrt(area * aspect))
        crop_height = round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(height - crop_height + 1))
            left = int(rng.integers(width - crop_width + 1))
            return top, left, crop_height, crop_width
    aspect = min(max(width / height, ratio[0]), ratio[1])
    crop_width = max(1, min(width, round(height * aspect)))
    crop_height = max(1, min(height, round(width / aspect)))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def padded_crop(picture: np.ndarray, size: tuple[int, int], padding: int, rng: np.random.Generator) -> np.ndarray:
    """Shift a picture of `size` (height, width) by up to `padding` pixels each way; what comes into view is black.

    Source: arXiv:1512.03385, section 4.2, as torchvision's RandomCrop with padding has it.
    """
    top, left = rng.integers(2 * padding + 1, size=2)
    wide = cv2.copyMakeBorder(picture, padding, padding, padding, padding, cv2.BORDER_CONSTANT)
    return wide[top : top + size[0], left : left + size[1]]


def resize_fast(picture: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """Resize a picture to size (height, width) with OpenCV; areas are averaged where it shrinks to less than half."""
    reduction = min(have / want for have, want in zip(picture.shape, size, strict=False))
    kernel = cv2.INTER_AREA if reduction > _ALIASING_REDUCTION else OPENCV_KERNELS[interpolation]
    return cv2.resize(picture, size[::-1], interpolation=kernel)


class CentreCrop:
    """What evaluation sees of a picture, uint8: the short side is resized to floor(image size / crop_pct), the centre
    cut.

    Pillow and torchvision do the same. With crop_pct 1 a picture of image_size's shape is only resized.
    """

    def __init__(self, preprocessing: Preprocessing):
        self.image_size = preprocessing.image_size
        self._target = [math.floor(side / preprocessing.crop_pct) for side in self.image_size]
        self._resize = functools.partial(
            _RESIZERS[preprocessing.resize_backend], interpolation=preprocessing.interpolation
        )

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """Return what evaluation sees: (height, width[, 3])."""
        picture = _middle(picture, self._target)
        size = _covering_size(picture.shape[:2], self._target)
        resized = self._resize(picture, size)
        top, left = (round((have - want) / 2) for have, want in zip(size, self.image_size, strict=True))
        return resized[top : top + self.image_size[0], left : left + self.image_size[1]]


def _resize_pillow(picture, size, interpolation):
    return np.asarray(Image.fromarray(picture).resize(size[::-1], _PILLOW_KERNELS[interpolation]))


def _resize_mindspore(picture, size, interpolation):
    from mindspore.dataset import vision  # for those who ask for it: the import takes a while

    kernel = vision.Inter.BILINEAR if interpolation == "bilinear" else vision.Inter.BICUBIC
    return vision.Resize(size, kernel)(picture)


_RESIZERS = {"pillow": _resize_pillow, "opencv": resize_fast, "mindspore": _resize_mindspore}


def _middle(picture, target):
    """Return a picture without its ends where it is far longer than target's proportions."""
    place = []
    for axis in (0, 1):
        side, crop = picture.shape[axis], math.ceil(picture.shape[1 - axis] * target[axis] / target[1 - axis])
        cut = max(0, side - _MOST_CROPS * crop) // 2
        place.append(slice(cut, side - cut))
    return picture[tuple(place)]


def _covering_size(shape, target):
    """Return the smallest (height, width) of shape's proportions that covers target; fractions are dropped."""
    height, width = shape
    if target[0] * width >= target[1] * height:
        return target[0], target[0] * width // height
    return target[1] * height // width, target[1]
