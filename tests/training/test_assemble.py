"""What a recipe asks of a run, before anything is built."""

import types

import pytest

from mindrepvgg.errors import RecipeError
from mindrepvgg.recipe.schema import Recipe
from mindrepvgg.training.assemble import count_steps


def test_a_run_of_more_steps_than_fit_is_refused_before_memory_is_taken():
    loader = types.SimpleNamespace(steps_per_epoch=5004)
    assert count_steps(Recipe(epoch_size=600), loader) == 5004
    with pytest.raises(RecipeError, match=r"epoch_size \(=1000000\) of 5004 steps each makes more than 50000000 steps"):
        count_steps(Recipe(epoch_size=1_000_000), loader)
