"""How an image becomes a network's input, as a recipe says it and as a checkpoint keeps it."""

import numpy as np
import pytest
from support.loaders import RGB, preprocessing

from mindrepvgg.models.preprocessing import Preprocessing, described_keys
from mindrepvgg.recipe.schema import Recipe
from mindrepvgg.recipe.sources import recipe_from_dict

VALUES = {**RGB, "image_size": (24, 32), "crop_pct": 0.9, "interpolation": "bicubic"}


def test_a_description_has_its_form_and_is_read_back():
    description = preprocessing(**VALUES).describe()
    assert description == {
        "image_size": [24, 32],
        "preprocessing": {
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "crop_pct": 0.9,
            "interpolation": "bicubic",
        },
    }
    assert recipe_from_dict(described_keys(description)).preprocessing == Preprocessing(**VALUES)


@pytest.mark.parametrize("description", [{}, {"preprocessing": None}, {"model": "repvgg_a0"}])
def test_a_description_that_tells_nothing(description):
    assert described_keys(description) == {}
    assert Recipe().preprocessing == Preprocessing(**RGB, image_size=(224, 224))


def test_gain_and_bias_normalise():
    pixels = np.arange(256).repeat(3).reshape(256, 3)
    gain, bias = preprocessing(**VALUES).gain_and_bias()
    assert (gain.shape, gain.dtype, bias.shape, bias.dtype) == ((3, 1, 1), np.float32, (3, 1, 1), np.float32)
    expected = (pixels / 255 - RGB["mean"]) / RGB["std"]
    np.testing.assert_allclose(pixels * gain.ravel() + bias.ravel(), expected, atol=1e-6)
