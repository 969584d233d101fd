"""The recipe of a network that exists: what its checkpoint tells, with the command line on top."""

from __future__ import annotations

from collections.abc import Mapping

from mindrepvgg.errors import RecipeError
from mindrepvgg.models.preprocessing import described_keys
from mindrepvgg.recipe.provenance import CODE
from mindrepvgg.recipe.schema import Recipe
from mindrepvgg.recipe.sources import recipe_from_dict
from mindrepvgg.version import update_hint


def recipe_of(net, overrides: Mapping) -> Recipe:
    """How to validate a network: what its checkpoint tells, with `overrides` on top.

    Raises RecipeError when the two do not go together. The data set's folder may be missing.
    """
    known = net.metadata
    values = dict(known.get("recipe") or {})
    values.update(described_keys(known))
    if "dataset" in known:
        values["dataset"] = known["dataset"]
    variant = net.variant
    values |= {"model": variant.name, "model_args": variant.size_args}
    values |= {"block": variant.block, "block_where": variant.block_where}
    values["num_classes"], values["in_channels"] = net.num_classes, net.in_channels
    try:
        return recipe_from_dict(values, overrides=overrides, given=CODE)
    except RecipeError as error:
        raise RecipeError(f"{error}{update_hint((known.get('versions') or {}).get('mindrepvgg'))}") from error
