"""Crop boxes: their distribution, and what is taken when none fits."""

import time

import numpy as np
import pytest
from PIL import Image

from mindrepvgg.data.crop import CentreCrop, padded_crop, random_resized_crop
from mindrepvgg.models.preprocessing import Preprocessing


def test_a_crop_of_fixed_area_and_ratio_reaches_every_position():
    rng = np.random.default_rng(0)
    boxes = {random_resized_crop(6, 8, (1 / 3, 1 / 3), (1, 1), rng) for _ in range(2000)}
    assert boxes == {(top, left, 4, 4) for top in range(3) for left in range(5)}


def test_crop_area_is_uniform_and_aspect_log_uniform():
    rng = np.random.default_rng(0)
    # Small enough areas that every first draw fits, so the distributions are the plain ones.
    boxes = np.array([random_resized_crop(1000, 1000, (0.1, 0.3), (0.5, 2), rng) for _ in range(4000)])
    area = boxes[:, 2] * boxes[:, 3] / 1e6
    aspect = np.log2(boxes[:, 3] / boxes[:, 2])
    np.testing.assert_allclose(np.quantile(area, [0, 0.25, 0.5, 0.75, 1]), [0.1, 0.15, 0.2, 0.25, 0.3], atol=0.01)
    np.testing.assert_allclose(np.quantile(aspect, [0, 0.25, 0.5, 0.75, 1]), [-1, -0.5, 0, 0.5, 1], atol=0.05)


@pytest.mark.parametrize(
    ("shape", "box"),
    [((10, 100), (0, 43, 10, 13)), ((100, 10), (43, 0, 13, 10)), ((1, 1), (0, 0, 1, 1)), ((2, 500), (0, 248, 2, 3))],
)
def test_a_crop_that_cannot_fit_is_the_largest_centred_one(shape, box):
    assert random_resized_crop(*shape, (1, 1), (3 / 4, 4 / 3), np.random.default_rng(0)) == box


def test_crops_stay_inside():
    rng = np.random.default_rng(0)
    for height, width in rng.integers(1, 40, size=(500, 2)).tolist():
        top, left, crop_height, crop_width = random_resized_crop(height, width, (0.08, 1), (3 / 4, 4 / 3), rng)
        assert 0 <= top < top + crop_height <= height
        assert 0 <= left < left + crop_width <= width


@pytest.mark.parametrize("channels", [(), (3,)])
def test_a_padded_crop_is_each_shifted_picture_once_in_a_while(channels):
    rng = np.random.default_rng(0)
    picture = rng.integers(1, 256, (5, 7, *channels), np.uint8)
    wide = np.pad(picture, ((2, 2), (2, 2), *[(0, 0)] * len(channels)))
    windows = {wide[top : top + 5, left : left + 7].tobytes() for top in range(5) for left in range(5)}
    assert {padded_crop(picture, (5, 7), 2, rng).tobytes() for _ in range(500)} == windows


@pytest.mark.parametrize("backend", ["pillow", "opencv"])
def test_of_a_picture_that_is_one_row_the_middle_alone_is_resized(backend):
    gray = {"mean": (0.5,), "std": (0.5,), "in_channels": 1}
    crop = CentreCrop(Preprocessing(image_size=(224, 224), resize_backend=backend, **gray))
    row = np.zeros((1, 60_001), np.uint8)
    row[0, 30_000] = 255
    start = time.process_time()
    found, turned = crop(row), crop(row.T).T
    assert time.process_time() - start < 1, "256 x 15,360,256 pixels"
    assert found.shape == (224, 224)
    assert np.argmax(found[0]) in range(108, 116)
    np.testing.assert_allclose(found, turned, atol=1)


def test_a_picture_of_usual_length_is_resized_whole():
    picture = np.random.default_rng(0).integers(0, 256, (20, 20 * 32, 3), np.uint8)
    rgb = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "in_channels": 3}
    whole = np.asarray(Image.fromarray(picture).resize((40 * 32, 40), Image.Resampling.BILINEAR))
    found = CentreCrop(Preprocessing(image_size=(20, 20), crop_pct=0.5, **rgb))(picture)
    np.testing.assert_array_equal(found, whole[10:30, 630:650])
