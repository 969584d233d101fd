"""The sheet of a training batch: the very pictures that training gets, with their classes."""

import io

import numpy as np
import pytest
from PIL import Image
from support import TINY_DIGITS

from mindrepvgg.data import show_batch
from mindrepvgg.data.loaders import train_loader
from mindrepvgg.data.show_batch import as_pixels, draw_batch
from mindrepvgg.recipe.sources import load_recipe
from mindrepvgg.runtime.ranks import Ranks

SIZES = {"batch_size": 40, "num_parallel_workers": 2}


@pytest.fixture
def sheets(monkeypatch):
    """What was given to be drawn."""
    given = []

    def record(pictures, captions, target, heading, below):
        given.append((np.asarray(pictures), captions, heading, below))
        target.write(b"drawn")

    monkeypatch.setattr(show_batch, "draw_sheet", record)
    return given


@pytest.mark.parametrize("changes", [{}, {"mixup": 0.8}, {"re_prob": 0.5}])
def test_it_is_the_first_batch_of_training(sheets, changes):
    recipe = load_recipe(None, {**TINY_DIGITS, **SIZES, **changes})
    said = draw_batch(recipe, io.BytesIO())
    ((pictures, captions, heading, below),) = sheets
    assert said == "32 of the 40 pictures of the first batch, 16x16 pixels"
    assert heading == "repvgg on mnist5k: what training sees"
    assert below.startswith(said)
    images, targets = next(train_loader(recipe, Ranks()).epoch(0))
    assert pictures.shape == (32, 16, 16, 1)
    assert pictures.std() > 10
    for picture, image, caption, target in zip(pictures, images, captions, targets, strict=False):
        normalised = picture[..., 0] if image.dtype == np.uint8 else (picture[..., 0] / 255 - 0.1307) / 0.3081
        own = image[..., 0] if image.dtype == np.uint8 else image[0]
        inside = (normalised > normalised.min()) & (normalised < normalised.max())  # erased ones are no pixels
        np.testing.assert_allclose(normalised[inside], own[inside], atol=0.51 / 255 / 0.3081)
        if "mixup" not in changes:
            assert [line.text for line in caption] == [str(target)]
        else:
            words = [line.text for line in caption]
            labels = np.argsort(-target)[: len(words)]
            told = [f"{target[label]:.0%} {label}" for label in labels] if len(words) > 1 else [str(labels[0])]
            assert sorted(words) == sorted(told)


def test_pixels_come_back_exactly():
    recipe = load_recipe(None, {**TINY_DIGITS, "in_channels": 3, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.1, 0.3]})
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    gain, bias = recipe.preprocessing.gain_and_bias()
    images = pixels.transpose(0, 3, 1, 2) * gain + bias
    np.testing.assert_array_equal(as_pixels(images.astype(np.float32), recipe.preprocessing), pixels)
    np.testing.assert_array_equal(as_pixels(pixels, recipe.preprocessing), pixels)


def test_the_command_draws_and_starts_no_run(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["-c", "quickstart", "--num_parallel_workers", "2"]
    assert call("train", *options, "--show_batch")[:2] == (
        0,
        "batch.png: 32 of the 50 pictures of the first batch, 32x32 pixels\n",
    )
    with Image.open("batch.png") as picture:
        assert picture.format == "PNG"
    assert [path.name for path in tmp_path.iterdir()] == ["batch.png"]
    status, out, err = call("train", *options, "--show_batch", "batch.jpg")
    assert (status, out, err) == (2, "", "error: show_batch (='batch.jpg') must end in .png\n")
