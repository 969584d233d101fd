"""The recipes that come with the package: the folder `configs/`, and how a name on a command line finds one."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from mindrepvgg.errors import RecipeError
from mindrepvgg.text import listed, nearest, quoted, table

_PACKAGE = Path(__file__).parents[1]
_SUFFIXES = (".yaml", ".yml")
# Other recipes begin with those in this folder, which are not complete.
_BASES = "base"


def folder() -> Path:
    """The folder of the recipes: in an installed package its data, in a checkout `configs/` beside the package."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


@functools.cache
def recipes() -> dict[str, Path]:
    """The recipes' files by name, sorted: `quickstart`, `mindcv/repvgg_a0`."""
    root = folder()
    paths = sorted(root.rglob("*.yaml"), key=lambda path: (path.parent != root, path))
    names = {path.relative_to(root).with_suffix("").as_posix(): path for path in paths}
    return {name: path for name, path in names.items() if not name.startswith(f"{_BASES}/")}


def find(recipe: str | os.PathLike) -> str:
    """The path of a recipe.

    Args:
        recipe: a file's path, or the name of a recipe in `configs/`, with or without `configs/` before it and `.yaml`
            behind it. A file of that path comes first.

    Raises:
        RecipeError: it looks like a name, and there is no such recipe. A path is returned as it is.
    """
    text = os.fspath(recipe)
    if os.path.isfile(text):
        return text
    name = text.removeprefix("configs/")
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    known = recipes()
    if name in known:
        return str(known[name])
    if os.path.exists(text) or os.path.isabs(text) or text.endswith(_SUFFIXES):
        return text  # its reader says what is wrong with it
    near = nearest(name, known)
    hint = f"did you mean {near}?" if near else f"there are {listed(list(known))}; mindrepvgg train --list names them"
    raise RecipeError(f"there is no recipe {quoted(text)}: {hint}")


def listing() -> str:
    """The recipes, a line each: its name, and the first line of its file's header."""
    return table([(name, _headline(path)) for name, path in recipes().items()], "<")


def _headline(path):
    with path.open(encoding="utf-8") as file:
        return file.readline().lstrip("# ").strip()
