"""Recipes for tests: how one is refused, and how a command line gives one."""

import pytest

from mindrepvgg.cli import entry
from mindrepvgg.errors import RecipeError
from mindrepvgg.recipe import sources
from mindrepvgg.recipe.sources import load_recipe


def refusal(path=None, overrides=None):
    """The one line a recipe is refused with."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def parse(*argv):
    parser = entry.ArgumentParser(prog="train.py")
    sources.add_recipe_arguments(parser)
    return sources.recipe_from_arguments(parser.parse_args(argv))
