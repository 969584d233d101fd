"""The training recipe: one schema of keys, read from yaml files and the command line and checked before anything runs.

`Recipe` is the schema: every key has one default, one comment (its --help) and one check. A yaml file states only what
differs from the defaults, or from the file its `base` names; the command line comes last.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import operator
import os
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import yaml

from . import variants
from .errors import RecipeError, UserError

DEFAULT, COMMAND_LINE, CODE = "default", "command line", "code"

# `schedule.SCHEDULERS` again (a test compares them): importing it would add NumPy's import to every --help and error.
_SCHEDULERS = ("cosine_decay", "constant")


class Kind(NamedTuple):
    """What a key accepts.

    read: gives the plain value of a yaml value or a command line's text; ValueError or TypeError when it is unfit.
    expected: ends the sentence "batch_size (=0) must be ..."; metavar: stands for the value in --help.
    """

    read: Callable[[Any], Any]
    expected: str
    metavar: str


class Key(NamedTuple):
    """One entry of the schema."""

    section: str
    default: Any
    kind: Kind
    comment: str


_BOUNDS = {
    "least": ("at least", operator.ge),
    "above": ("above", operator.gt),
    "most": ("at most", operator.le),
    "below": ("below", operator.lt),
}


def _words(bounds: Mapping[str, float]) -> str:
    """The interval in words: `of at least 0 and below 1`."""
    words = " and ".join(f"{_BOUNDS[name][0]} {bound}" for name, bound in bounds.items())
    return f"of {words}" if words.startswith("at") else words


def _within(number, bounds: Mapping[str, float]):
    """The number itself; ValueError when it lies outside the bounds."""
    if not all(_BOUNDS[name][1](number, bound) for name, bound in bounds.items()):
        raise ValueError
    return number


def _read_number(value) -> float:
    """A finite float, from text too: yaml 1.1 takes `1e-4`, having no point, for text."""
    if isinstance(value, bool):
        raise TypeError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _read_whole(value) -> int:
    """An int, from text too; never a float, whose fraction would be lost."""
    if isinstance(value, bool):
        raise TypeError
    return int(value) if isinstance(value, str) else operator.index(value)


def _read_items(value) -> list:
    """The items of a list, a tuple, or text such as `0.08,1.0` and `[0.08, 1.0]`."""
    if isinstance(value, str):
        return value.strip().removeprefix("[").removesuffix("]").split(",")
    if not isinstance(value, list | tuple):
        raise TypeError
    return list(value)


def _number(**bounds) -> Kind:
    return Kind(lambda value: _within(_read_number(value), bounds), f"a number {_words(bounds)}", "X")


def _whole(**bounds) -> Kind:
    return Kind(lambda value: _within(_read_whole(value), bounds), f"a whole number {_words(bounds)}", "N")


def _numbers(**bounds) -> Kind:
    """One number or more, kept as a tuple."""

    def read(value):
        return tuple(_within(_read_number(item), bounds) for item in _read_items(value))

    return Kind(read, f"a list of numbers {_words(bounds)}", "X,X,...")


def _range(**bounds) -> Kind:
    """Two numbers in order, kept as a tuple."""

    def read(value):
        low, high = (_within(_read_number(item), bounds) for item in _read_items(value))
        return _within(low, {"most": high}), high

    return Kind(read, f"two numbers [low, high] {_words(bounds)}, low <= high", "LOW,HIGH")


def _image_size() -> Kind:
    """A side, or (height, width) kept as a tuple."""
    least = {"least": 1}

    def read(value):
        items = _read_items(value) if not isinstance(value, int) else [value]
        sides = tuple(_within(_read_whole(item), least) for item in items)
        if len(sides) > 2:
            raise ValueError
        return sides if len(sides) == 2 else sides[0]

    return Kind(read, "a whole number of at least 1, or two of them [height, width]", "N|H,W")


def _choice(*choices) -> Kind:
    """One of the choices, whatever the case of its letters."""
    by_text = {str(choice).lower(): choice for choice in choices}

    def read(value):
        if str(value).lower() not in by_text:
            raise ValueError
        return by_text[str(value).lower()]

    names = [str(choice) for choice in choices]
    return Kind(read, " or ".join(filter(None, [", ".join(names[:-1]), names[-1]])), "|".join(names))


def _flag() -> Kind:
    return Kind(_choice(True, False).read, "true or false", "true|false")


def _text(allow_empty: bool = False) -> Kind:
    """Text without line breaks, so that it fits into a line of `format_recipe`."""

    def read(value):
        if not isinstance(value, str):
            raise TypeError
        if "".join(value.splitlines()) != value or not (value or allow_empty):
            raise ValueError
        return value

    words = "one line of text" if allow_empty else "one line of text, not empty"
    return Kind(read, f"{words} (in yaml, quote what looks like a number or a date)", "TEXT")


def _mapping() -> Kind:
    def read(value):
        if isinstance(value, str):
            value = yaml.load(value, _UniqueKeyLoader)
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise TypeError
        return _plain(value)

    return Kind(read, "a mapping such as {num_blocks: [2, 4, 14, 1], widths: [48, 48, 96, 192, 1280]}", "MAPPING")


def _optional(kind: Kind) -> Kind:
    """The kind, or null."""

    def read(value):
        return None if value is None or str(value).lower() in ("null", "none") else kind.read(value)

    return Kind(read, f"{kind.expected}, or null", kind.metavar)


def _plain(value):
    """The value with tuples as lists and mappings as dicts, all the way down: what json and yaml can write."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _key(section: str, default, kind: Kind, comment: str):
    """A dataclass field carrying its schema entry."""
    return dataclasses.field(default_factory=lambda: default, metadata={"key": Key(section, default, kind, comment)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A complete, checked recipe; constructing one with an unfit value raises RecipeError.

    Lists are kept as tuples and `model` in the house's spelling. `sources[key]` says where the value came from:
    'default', the yaml file's path, 'command line', or what else set it; it takes no part in comparisons.
    """

    model: str = _key("model", "repvgg_a0", _text(), "network: repvgg_a0 ... repvggplus_l2pse, or repvgg (own sizes)")
    model_args: Mapping[str, Any] = _key(
        "model", {}, _mapping(), "sizes of the network 'repvgg': num_blocks, widths, group_size, se..."
    )
    num_classes: int = _key("model", 1000, _whole(least=1), "classes the network tells apart")
    in_channels: int = _key("model", 3, _whole(least=1), "channels of an image")
    pretrained: str = _key(
        "model",
        "",
        _text(allow_empty=True),
        "checkpoint of any project to start from; another class count: a fresh head",
    )

    dataset: str = _key(
        "data",
        "imagenet",
        _choice("imagenet", "mnist5k"),
        "imagenet: a folder with train/ and val/, one folder a class in each; mnist5k: built in",
    )
    data_dir: str = _key("data", "", _text(allow_empty=True), "folder of the data set; required for imagenet")
    batch_size: int = _key("data", 128, _whole(least=1), "images a step, per device")
    drop_remainder: bool = _key("data", True, _flag(), "leave out the epoch's last, smaller batch (training only)")
    num_parallel_workers: int = _key("data", 8, _whole(least=1), "threads reading images; at most the machine's cores")
    image_resize: int | tuple[int, int] = _key("data", 224, _image_size(), "pixels the network sees: side, or H,W")
    crop_pct: float = _key("data", 0.875, _number(above=0, most=1), "share of each side the validation crop keeps")
    interpolation: str = _key("data", "bilinear", _choice("bilinear", "bicubic"), "how images are resized")
    mean: tuple[float, ...] = _key(
        "data", (0.485, 0.456, 0.406), _numbers(least=0, most=1), "mean of each channel, white being 1"
    )
    std: tuple[float, ...] = _key(
        "data", (0.229, 0.224, 0.225), _numbers(above=0, most=1), "standard deviation of each channel, white being 1"
    )

    scale: tuple[float, float] = _key(
        "augmentation", (0.08, 1.0), _range(above=0, most=1), "share of the image's area a random crop covers"
    )
    ratio: tuple[float, float] = _key(
        "augmentation", (0.75, 1.333), _range(above=0), "width / height of a random crop before it is resized"
    )
    hflip: float = _key("augmentation", 0.5, _number(least=0, most=1), "probability of a horizontal flip")

    epoch_size: int = _key("optimisation", 120, _whole(least=1), "epochs of the run")
    opt: str = _key("optimisation", "momentum", _choice("momentum"), "optimizer")
    lr: float = _key("optimisation", 0.1, _number(above=0), "highest learning rate")
    min_lr: float = _key("optimisation", 0.0, _number(least=0), "learning rate cosine_decay ends with")
    scheduler: str = _key("optimisation", "cosine_decay", _choice(*_SCHEDULERS), "learning rate's curve after warm-up")
    warmup_epochs: int = _key("optimisation", 0, _whole(least=0), "epochs of linear warm-up")
    warmup_factor: float = _key("optimisation", 0.0, _number(least=0, most=1), "share of lr the warm-up starts from")
    decay_epochs: int | None = _key(
        "optimisation", None, _optional(_whole(least=1)), "epochs from lr to min_lr; null: all after the warm-up"
    )
    momentum: float = _key("optimisation", 0.9, _number(least=0, below=1), "momentum of the optimizer")
    use_nesterov: bool = _key("optimisation", False, _flag(), "use Nesterov's momentum")
    weight_decay: float = _key("optimisation", 1e-4, _number(least=0), "weight decay")
    weight_decay_filter: str = _key(
        "optimisation",
        "paper",
        _choice("paper", "norm_and_bias", "all"),
        "parameters that decay: paper: not biases nor the BN of the 3x3 and 1x1 branches, but the identity BN's gamma; "
        "norm_and_bias: neither biases nor any BN; all: all",
    )
    label_smoothing: float = _key(
        "optimisation", 0.0, _number(least=0, below=1), "share of the target spread evenly over all classes"
    )
    aux_weight: float = _key(
        "optimisation", 0.1, _number(least=0), "weight of each auxiliary head in the loss (RepVGGplus)"
    )

    seed: int = _key("run", 42, _whole(least=0, most=2**32 - 1), "seed of weights, shuffling and augmentation")
    mode: int = _key("run", 0, _choice(0, 1), "0: graph mode; 1: PyNative mode")
    device_target: str = _key("run", "auto", _choice("auto", "CPU", "Ascend"), "device; auto: Ascend if there is one")
    jit_level: str = _key(
        "run", "auto", _choice("auto", "O0", "O1", "O2"), "graph compilation level; auto: O2 on Ascend where supported"
    )
    ckpt_save_dir: str = _key("run", "./outputs", _text(), "folder for checkpoints, the log and the resolved recipe")
    keep_checkpoint_max: int = _key("run", 3, _whole(least=0), "epoch checkpoints kept besides the best and the last")
    log_interval: int = _key("run", 10, _whole(least=1), "steps between two progress updates")
    val_while_train: bool = _key("run", True, _flag(), "validate during training")
    val_interval: int = _key("run", 1, _whole(least=1), "epochs between two validations")

    sources: dict[str, str] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self):
        sources = {}
        for name, key in KEYS.items():
            value = getattr(self, name)
            sources[name] = self.sources.get(name, DEFAULT if value == key.default else CODE)
            try:
                plain = key.kind.read(value)
            except (ValueError, TypeError, OverflowError, yaml.YAMLError) as error:
                raise RecipeError(f"{_shown(name, value, sources[name])} must be {key.kind.expected}") from error
            object.__setattr__(self, name, plain)
        object.__setattr__(self, "sources", sources)
        object.__setattr__(self, "model", _find_variant(self).name)
        _check_together(self)

    @property
    def variant(self) -> variants.Variant:
        """The layout of the network the recipe names."""
        return variants.find(self.model, **self.model_args)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the images the network sees."""
        size = self.image_resize
        return size if isinstance(size, tuple) else (size, size)

    def to_dict(self) -> dict:
        """Every key's value in types json and yaml can write; `recipe_from_dict` reads it back."""
        return {name: _plain(getattr(self, name)) for name in KEYS}

    def replace(self, source: str = CODE, /, **changes) -> Recipe:
        """A copy with other values, checked again as a whole; `source` is noted for the keys changed."""
        _refuse_unknown(changes, source)
        return dataclasses.replace(self, **changes, sources={**self.sources, **dict.fromkeys(changes, source)})


KEYS = {field.name: field.metadata["key"] for field in dataclasses.fields(Recipe) if "key" in field.metadata}


def _at(source: str) -> str:
    """The place in words, to follow a value."""
    return {DEFAULT: ", the default", COMMAND_LINE: " on the command line", CODE: ""}.get(source, f" in {source}")


def _shown(name: str, value, source: str) -> str:
    """The key with its value and origin: `lr (=-1 in configs/x.yaml)`."""
    return f"{name} (={_plain(value)!r}{_at(source)})"


def _find_variant(recipe: Recipe) -> variants.Variant:
    """The variant `model` and `model_args` describe; RecipeError, naming where they were given, when there is none."""
    own_sizes = variants.normalise_name(recipe.model) == "repvgg"
    name = "model_args" if recipe.model_args or own_sizes else "model"
    place = f"{name}{_at(recipe.sources[name])}"
    try:
        return recipe.variant
    except UserError as error:
        raise RecipeError(f"{place}: {error}") from error
    except TypeError as error:
        raise RecipeError(
            f"{place}: num_blocks and widths must be lists, the others single values ({error})"
        ) from error


def _check_together(recipe: Recipe):
    """Refuse values that are possible one by one but do not fit each other."""
    shown = {name: _shown(name, getattr(recipe, name), recipe.sources[name]) for name in KEYS}
    warmup, decay, total = recipe.warmup_epochs, recipe.decay_epochs or 0, recipe.epoch_size
    channels = f"must have one number for each of {shown['in_channels']}"
    rules = [
        (len(recipe.mean) == recipe.in_channels, f"{shown['mean']} {channels}"),
        (len(recipe.std) == recipe.in_channels, f"{shown['std']} {channels}"),
        (recipe.min_lr <= recipe.lr, f"{shown['min_lr']} must be at most {shown['lr']}"),
        (warmup <= total, f"{shown['warmup_epochs']} must be at most {shown['epoch_size']}"),
        (
            warmup + decay <= total,
            f"{shown['warmup_epochs']} and {shown['decay_epochs']} together must be at most {shown['epoch_size']}; "
            "decay_epochs null takes what is left",
        ),
    ]
    for holds, message in rules:
        if not holds:
            raise RecipeError(message)


def check_data_dir(recipe: Recipe):
    """Refuse a recipe whose data set is a folder that was not named; apart, as only what reads data needs it."""
    if recipe.dataset == "imagenet" and not recipe.data_dir:
        raise RecipeError(
            f"data_dir is not given and {_shown('dataset', recipe.dataset, recipe.sources['dataset'])} reads a folder "
            "with train/ and val/; add --data_dir FOLDER, or --dataset mnist5k for the built-in data"
        )


# Other programs' names for a key, as hints: by spelling alone, `epochs` is nearest to `decay_epochs`.
_ELSEWHERE = {
    "epochs": "epoch_size",
    "num_epochs": "epoch_size",
    "learning_rate": "lr",
    "optimizer": "opt",
    "image_size": "image_resize",
    "workers": "num_parallel_workers",
    "num_workers": "num_parallel_workers",
    "nesterov": "use_nesterov",
    "output_dir": "ckpt_save_dir",
    "data_path": "data_dir",
}


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or the one called `name` in other programs; None when none is like it."""
    known = list(known)
    name = name.lower().replace("-", "_")
    if _ELSEWHERE.get(name) in known:
        return _ELSEWHERE[name]
    return next(iter(difflib.get_close_matches(name, known, n=1)), None)


def _refuse_unknown(values: Mapping, source: str):
    """Raise RecipeError for the first key the schema does not have."""
    for name in values:
        if name not in KEYS:
            near = nearest(str(name), KEYS)
            hint = f"did you mean {near!r}?" if near else "--help lists the keys"
            raise RecipeError(f"unknown key {name!r}{_at(source)}; {hint}")


def _resolve(layers: Iterable[tuple[Mapping, str]]) -> Recipe:
    """The recipe of (values, source) pairs laid over the defaults, the last on top."""
    values, sources = {}, {}
    for layer, source in layers:
        _refuse_unknown(layer, source)
        values.update(layer)
        sources.update(dict.fromkeys(layer, source))
    return Recipe(**values, sources=sources)


def load_recipe(path: str | os.PathLike | None = None, overrides: Mapping | None = None) -> Recipe:
    """The recipe of a yaml file (None: the defaults) with `overrides` on top, noted as 'command line'.

    A file's `base: other.yaml`, relative to the file, is laid below it. Raises RecipeError, one line, for anything
    unreadable, unknown or unfit.
    """
    files = [] if path is None else _read_chain(os.fspath(path))
    return _resolve([*files, (overrides or {}, COMMAND_LINE)])


def recipe_from_dict(values: Mapping, source: str = "the checkpoint", overrides: Mapping | None = None) -> Recipe:
    """The recipe `to_dict` gave, keys missing from it at their defaults, with the command line's `overrides` on top.

    `source` names the values' place in errors.
    """
    return _resolve([(_require_mapping(values, source), source), (overrides or {}, COMMAND_LINE)])


def format_recipe(recipe: Recipe) -> str:
    """Every key as a line `key: value  # source`: itself a yaml file that loads."""
    return "".join(f"{_yaml_line(name, value)}  # {recipe.sources[name]}\n" for name, value in recipe.to_dict().items())


def _yaml_line(name: str, value) -> str:
    """`name: value` on one line; flow style keeps lists and mappings on it too."""
    flow = yaml.safe_dump({name: value}, default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf)
    return flow.strip()[1:-1]


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, of which yaml would keep the last."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                problem = f"key {name!r} is given twice; keep one"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def _read_chain(path: str) -> list[tuple[dict, str]]:
    """(values, path) of the file and of those its `base` keys lead to, the lowest first."""
    chain = []
    while path is not None:
        if os.path.realpath(path) in [os.path.realpath(seen) for _, seen in chain]:
            names = " -> ".join([*(seen for _, seen in chain), path])
            raise RecipeError(f"the `base` keys go in a circle: {names}; remove one of them")
        values = _read_yaml(path, f"; it is the base of {chain[-1][1]}" if chain else "")
        base = values.pop("base", None)
        chain.append((values, path))
        if base is not None and not isinstance(base, str):
            raise RecipeError(f"{_shown('base', base, path)} must be another yaml file's path, relative to this one")
        path = base if base is None else os.path.normpath(os.path.join(os.path.dirname(path), base))
    return chain[::-1]


def _read_yaml(path: str, remark: str) -> dict:
    """The mapping a yaml file holds, an empty file being an empty one; `remark` ends the error of a missing file."""
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.load(file.read(), _UniqueKeyLoader)
    except OSError as error:
        raise RecipeError(f"recipe {path} cannot be read: {error.strerror}{remark}; check the path") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError(f"{path}{line}: {error.problem}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{path} is not yaml text: {' '.join(str(error).split())}") from error
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
    parser.add_argument("-c", "--config", metavar="YAML", help="recipe file; keys given here as well override it")
    groups = {}
    for name, key in KEYS.items():
        if key.section not in groups:
            groups[key.section] = parser.add_argument_group(key.section)
        text = f"{key.comment} (default: {_default_text(key)})".replace("%", "%%")
        group, options = groups[key.section], {"dest": name, "metavar": key.kind.metavar, "default": SUPPRESS}
        group.add_argument(f"--{name}", help=text, **options)
        if "_" in name:
            # A second, hidden argument: as a second spelling of the first, it would double every line of --help.
            group.add_argument(f"--{name.replace('_', '-')}", help=SUPPRESS, **options)


def _default_text(key: Key) -> str:
    """The default as --help shows it."""
    return json.dumps(_plain(key.default)) if not isinstance(key.default, str) else key.default or "none"


def overrides_from_arguments(arguments: Namespace) -> dict[str, str]:
    """The recipe keys given on the command line, as text."""
    return {name: getattr(arguments, name) for name in KEYS if hasattr(arguments, name)}


def recipe_from_arguments(arguments: Namespace) -> Recipe:
    """The recipe of a parsed command line, ready for a run: `data_dir` is there if the data set needs it."""
    recipe = load_recipe(arguments.config, overrides_from_arguments(arguments))
    check_data_dir(recipe)
    return recipe
