"""The recipe of a network that exists: what its checkpoint tells, with the command line on top."""

from __future__ import annotations

from collections.abc import Mapping

from mindrepvgg.recipe.schema import Recipe, check_data_dir
from mindrepvgg.recipe.sources import recipe_from_dict


def recipe_of(net, overrides: Mapping) -> Recipe:
    """How to validate a network: what its checkpoint tells, with the command line's `overrides` on top.

    Raises RecipeError when the two do not go together, or the data set's folder is named nowhere.
    """
    known = net.metadata
    values = dict(known.get("recipe") or {})
    values.update(known.get("preprocessing") or {})
    if "image_size" in known:
        values["image_resize"] = known["image_size"]
    if "dataset" in known:
        values["dataset"] = known["dataset"]
    values["model"] = net.variant.name
    values["model_args"] = net.variant.to_dict() if net.variant.name == "repvgg" else {}
    values["num_classes"], values["in_channels"] = net.num_classes, net.in_channels
    recipe = recipe_from_dict(values, overrides=overrides)
    check_data_dir(recipe)
    return recipe
