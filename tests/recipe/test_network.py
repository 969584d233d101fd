"""The recipe of a network: what its checkpoint tells, with the command line on top."""

from types import SimpleNamespace

import pytest

from mindrepvgg.errors import RecipeError
from mindrepvgg.models.variants import find
from mindrepvgg.recipe.network import recipe_of

PREPROCESSING = {"mean": [0.1], "std": [0.3], "crop_pct": 0.9, "interpolation": "bicubic"}


def known(**metadata):
    """A network whose checkpoint told this."""
    variant = find("repvgg", num_blocks=(1, 1, 2, 1), widths=(4, 4, 8, 8, 8))
    return SimpleNamespace(metadata=metadata, variant=variant, num_classes=10, in_channels=1)


def test_everything_is_told():
    net = known(preprocessing=PREPROCESSING, image_size=[24, 32], dataset="mnist5k")
    recipe = recipe_of(net, {})
    assert (recipe.mean, recipe.std, recipe.crop_pct, recipe.interpolation) == ((0.1,), (0.3,), 0.9, "bicubic")
    assert (recipe.image_size, recipe.dataset) == ((24, 32), "mnist5k")
    assert (recipe.model, recipe.num_classes, recipe.in_channels) == ("repvgg", 10, 1)
    assert recipe.variant == net.variant


def test_the_training_recipe_is_the_rest():
    recipe = {"batch_size": 17, "in_channels": 1, "mean": [0.7], "std": [0.7], "image_resize": 99, "num_classes": 3}
    found = recipe_of(known(recipe=recipe, preprocessing=PREPROCESSING, image_size=[24, 32]), {"dataset": "mnist5k"})
    assert found.batch_size == 17
    assert (found.image_size, found.mean, found.num_classes) == ((24, 32), (0.1,), 10)


def test_overrides_come_last():
    net = known(preprocessing=PREPROCESSING, image_size=[24, 32], dataset="mnist5k")
    recipe = recipe_of(net, {"image_resize": "64", "batch_size": "9", "crop_pct": "0.5"})
    assert (recipe.image_size, recipe.batch_size, recipe.crop_pct) == ((64, 64), 9, 0.5)
    assert recipe.sources["crop_pct"] == "code", "Python gives overrides as the command does"


def test_an_override_that_does_not_fit():
    net = known(preprocessing=PREPROCESSING, dataset="mnist5k")
    with pytest.raises(RecipeError, match=r"batch_size \(='0'\) must be a whole number"):
        recipe_of(net, {"batch_size": "0"})


def test_a_key_of_a_later_version():
    net = known(preprocessing=PREPROCESSING, recipe={"colour_of_2030": 0.4}, dataset="mnist5k")
    with pytest.raises(RecipeError, match="unknown key 'colour_of_2030' in the checkpoint"):
        recipe_of(net, {})


@pytest.mark.parametrize(("wrote", "ends"), [("0.1.0", False), ("9.0.0", True), (None, False)])
def test_a_recipe_of_a_newer_version(wrote, ends):
    versions = {"versions": {"mindrepvgg": wrote}} if wrote else {}
    net = known(recipe={"lars": 1}, preprocessing=PREPROCESSING, **versions)
    with pytest.raises(RecipeError, match="unknown key 'lars'") as caught:
        recipe_of(net, {"dataset": "mnist5k"})
    assert str(caught.value).endswith(": update mindrepvgg") is ends
