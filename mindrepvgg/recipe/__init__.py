"""The training recipe: one schema of keys, read from yaml files and the command line and checked before anything runs.

`Recipe` is the schema: every key has one default, one comment (its --help) and one check. A yaml file states only what
differs from the defaults, or from the file its `base` names; the command line comes last. Yaml files of MindCV's are
taken too: `mindcv` puts them into these keys.
"""

from .kinds import Kind
from .mindcv import mindcv_notice
from .schema import CODE, COMMAND_LINE, DEFAULT, KEYS, Key, Recipe, check_data_dir, nearest
from .sources import (
    add_recipe_arguments,
    explain_recipe,
    format_recipe,
    load_recipe,
    overrides_from_arguments,
    recipe_from_arguments,
    recipe_from_dict,
)

__all__ = [
    "CODE",
    "COMMAND_LINE",
    "DEFAULT",
    "KEYS",
    "Key",
    "Kind",
    "Recipe",
    "add_recipe_arguments",
    "check_data_dir",
    "explain_recipe",
    "format_recipe",
    "load_recipe",
    "mindcv_notice",
    "nearest",
    "overrides_from_arguments",
    "recipe_from_arguments",
    "recipe_from_dict",
]
