"""The recipe of a network that exists: what its checkpoint tells, with the command line on top."""

from __future__ import annotations

from collections.abc import Mapping

from mindrepvgg.errors import RecipeError, UserError
from mindrepvgg.models.preprocessing import described_keys
from mindrepvgg.recipe.provenance import CODE
from mindrepvgg.recipe.schema import Recipe
from mindrepvgg.recipe.sources import recipe_from_dict
from mindrepvgg.version import update_hint


def recipe_of(net, overrides: Mapping, maps: bool = False) -> Recipe:
    """How to validate a network: what its checkpoint tells, with `overrides` on top.

    Args:
        net: the network, or what tells as much of one; its `variant` is None where it is not known.
        overrides: recipe keys.
        maps: whether a network that gives maps and has no classes will do.

    Raises:
        RecipeError: the two do not go together. The data set's folder may be missing.
        UserError: the network has no classes.
    """
    variant = net.variant
    if variant and variant.features and not maps:
        raise UserError(
            f"the features network of {variant.name} gives maps and has no classes; give one that classifies"
        )
    known = net.metadata
    values = dict(known.get("recipe") or {})
    values.update(described_keys(known))
    if "dataset" in known:
        values["dataset"] = known["dataset"]
    if variant:
        values |= {"model": variant.name, "model_args": variant.size_args}
        values |= {"block": variant.block, "block_where": variant.block_where}
    values["num_classes"], values["in_channels"] = net.num_classes or None, net.in_channels
    try:
        return recipe_from_dict(values, overrides=overrides, given=CODE)
    except RecipeError as error:
        raise RecipeError(f"{error}{update_hint((known.get('versions') or {}).get('mindrepvgg'))}") from error
