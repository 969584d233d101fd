"""Where a recipe's values come from: yaml files with their bases, the command line, a checkpoint; and back to yaml."""

from __future__ import annotations

import json
import math
import os
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from mindrepvgg.errors import RecipeError
from mindrepvgg.files import read_regular
from mindrepvgg.recipe import configs, mindcv_keys, strict_yaml
from mindrepvgg.recipe.provenance import CHECKPOINT, COMMAND_LINE, describe
from mindrepvgg.recipe.rules import check_data_dir, refuse_unknown
from mindrepvgg.recipe.schema import KEYS, Key, Recipe
from mindrepvgg.runtime.environment import launched_processes
from mindrepvgg.text import listed, plain

_LONGEST_CHAIN = 20
_LARGEST_FILE = 1 << 16  # bytes; yaml's parser takes a second for as many


def _resolve(layers: Iterable[tuple[Mapping, str | Mapping]]) -> Recipe:
    """The recipe of (values, source) pairs laid over the defaults, the last on top; source: of all, or of each key."""
    values, sources = {}, {}
    for layer, source in layers:
        places = dict.fromkeys(layer, source) if isinstance(source, str) else source
        refuse_unknown(places, KEYS)
        values.update(layer)
        sources.update(places)
    return Recipe(**values, sources=sources)


def load_recipe(path: str | os.PathLike | None = None, overrides: Mapping | None = None) -> Recipe:
    """The recipe of a yaml file (None: the defaults) with `overrides` on top, noted as 'command line'.

    `path` may be the name of a recipe of the package as well, see `configs.find`.
    A file's `base: other.yaml`, relative to the file, is laid below it. A file of MindCV's is translated, with MindCV's
    defaults laid below everything. Raises RecipeError, one line, for anything unreadable, unknown or unfit.
    """
    layers = []
    for values, place in [] if path is None else _read_chain(configs.find(path)):
        if mindcv_keys.recognise(values):
            layers = [mindcv_keys.defaults(values, place), *layers, mindcv_keys.translate(values, place)]
        else:
            layers.append((values, place))
    return _resolve([*layers, (overrides or {}, COMMAND_LINE)])


def recipe_from_dict(
    values: Mapping, source: str = CHECKPOINT, overrides: Mapping | None = None, given: str = COMMAND_LINE
) -> Recipe:
    """The recipe `to_dict` gave, keys missing from it at their defaults, with `overrides` on top.

    `source` and `given` name the places of the values and of the overrides in errors.
    """
    return _resolve([(_require_mapping(values, source), source), (overrides or {}, given)])


def format_recipe(recipe: Recipe) -> str:
    """Every key as a line `key: value  # source`: itself a yaml file that loads."""
    return "".join(f"{_yaml_line(name, value)}  # {recipe.sources[name]}\n" for name, value in recipe.to_dict().items())


def explain_recipe(recipe: Recipe) -> str:
    """`format_recipe`, and as comments the learning rate that a run started like this process would have."""
    devices = (launched_processes() or 1) if recipe.distribute is not False else 1
    batch = recipe.global_batch(devices)
    factors = [f"{devices} device{'s' if devices > 1 else ''}", str(recipe.batch_size)]
    if recipe.gradient_accumulation_steps > 1:
        factors.append(str(recipe.gradient_accumulation_steps))
    place = f"at global batch {batch} ({' x '.join(factors)})"
    lines = []
    for name in ("lr", "min_lr"):
        if value := getattr(recipe, name):
            per = recipe.lr_per_batch
            # `schedule.scaled_lr` again (a test compares them): importing it would add NumPy's import.
            scaled = f" per {per} -> {value * batch / per:g}" if per else ""
            lines.append(f"# {name} {value:g}{scaled} {place}\n")
    return format_recipe(recipe) + "".join(lines)


def _yaml_line(name: str, value) -> str:
    """`name: value` on one line; flow style keeps lists and mappings on it too."""
    flow = yaml.safe_dump({name: value}, default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf)
    return flow.strip()[1:-1]


def _read_chain(path: str) -> list[tuple[dict, str]]:
    """(values, path) of the file and of those its `base` keys lead to, the lowest first."""
    chain: list[tuple[dict, str]] = []
    while True:
        values = _read_yaml(path, f" (the base of {chain[-1][1]})" if chain else "")
        circle = os.path.realpath(path) in [os.path.realpath(seen) for _, seen in chain]
        if circle or len(chain) == _LONGEST_CHAIN:
            names = listed([*(seen for _, seen in chain), path], 5, " -> ")
            problem = "go in a circle" if circle else f"lead through more than {_LONGEST_CHAIN} files"
            raise RecipeError(f"the `base` keys {problem}: {names}; remove one of them")
        base = values.pop("base", None)
        chain.append((values, path))
        if base is None:
            return chain[::-1]
        if not isinstance(base, str):
            raise RecipeError(f"{describe('base', base, path)} must be another yaml file's path, relative to this one")
        path = os.path.normpath(os.path.join(os.path.dirname(path), base))


def _read_yaml(path: str, remark: str) -> dict:
    """The mapping a yaml file holds, an empty file being an empty one; `remark` says what else the file is."""
    try:
        values = strict_yaml.load(read_regular(path, f"a recipe{remark}", RecipeError, _LARGEST_FILE))
    except strict_yaml.YamlError as error:
        line = f", line {error.line}" if error.line else ""
        raise RecipeError(f"{path}{line}: {error.problem}") from error
    return _require_mapping({} if values is None else values, path)


def _require_mapping(values, source: str) -> dict:
    """A copy of the mapping; RecipeError when it is something else."""
    if not isinstance(values, Mapping):
        raise RecipeError(f"{source} must hold lines `key: value`, it holds a {type(values).__name__}")
    return dict(values)


def add_recipe_arguments(parser: ArgumentParser):
    """Add -c/--config and a `--key VALUE` for every key of the schema, grouped by section.

    `--batch-size` is understood as `--batch_size`. Values stay text here; `recipe_from_arguments` reads them.
    """
    parser.add_argument("-c", "--config", metavar="RECIPE", help="a recipe's name or file; keys given here override it")
    groups = {}
    for name, key in KEYS.items():
        if key.section not in groups:
            groups[key.section] = parser.add_argument_group(key.section)
        text = f"{key.comment} (default: {_default_text(key)})".replace("%", "%%")
        group = groups[key.section]
        options: dict[str, Any] = {"dest": name, "metavar": key.kind.metavar, "default": SUPPRESS}
        group.add_argument(f"--{name}", help=text, **options)
        if "_" in name:
            # A second, hidden argument: as a second spelling of the first, it would double every line of --help.
            group.add_argument(f"--{name.replace('_', '-')}", help=SUPPRESS, **options)


def _default_text(key: Key) -> str:
    """The default as --help shows it."""
    return json.dumps(plain(key.default)) if not isinstance(key.default, str) else key.default or "empty"


def overrides_from_arguments(arguments: Namespace) -> dict[str, str]:
    """The recipe keys given on the command line, as text."""
    return {name: getattr(arguments, name) for name in KEYS if hasattr(arguments, name)}


def recipe_from_arguments(arguments: Namespace, needs_data: bool = True) -> Recipe:
    """The recipe of a parsed command line; needs_data: ready for a run, `data_dir` being there if the data need it."""
    recipe = load_recipe(arguments.config, overrides_from_arguments(arguments))
    if needs_data:
        check_data_dir(recipe)
    return recipe
