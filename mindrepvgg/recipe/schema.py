"""The schema: every key with its default, its comment and its check, and the checks of keys together."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import yaml

from .. import variants
from ..errors import RecipeError, UserError
from . import kinds
from .kinds import Kind, plain

DEFAULT, COMMAND_LINE, CODE = "default", "command line", "code"

# `schedule.SCHEDULERS` again (a test compares them): importing it would add NumPy's import to every --help and error.
_SCHEDULERS = ("cosine_decay", "constant")


class Key(NamedTuple):
    """One entry of the schema."""

    section: str
    default: Any
    kind: Kind
    comment: str


def _key(section: str, default, kind: Kind, comment: str):
    """A dataclass field carrying its schema entry."""
    return dataclasses.field(default_factory=lambda: default, metadata={"key": Key(section, default, kind, comment)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A complete, checked recipe; constructing one with an unfit value raises RecipeError.

    Lists are kept as tuples and `model` in the house's spelling. `sources[key]` says where the value came from:
    'default', the yaml file's path, 'command line', or what else set it; it takes no part in comparisons.
    """

    model: str = _key(
        "model", "repvgg_a0", kinds.text(), "network: repvgg_a0 ... repvggplus_l2pse, or repvgg (own sizes)"
    )
    model_args: Mapping[str, Any] = _key(
        "model", {}, kinds.mapping(), "sizes of the network 'repvgg': num_blocks, widths, group_size, se..."
    )
    num_classes: int = _key("model", 1000, kinds.whole(least=1), "classes the network tells apart")
    in_channels: int = _key("model", 3, kinds.whole(least=1), "channels of an image")
    pretrained: str = _key(
        "model",
        "",
        kinds.text(allow_empty=True),
        "checkpoint of any project to start from; another class count: a fresh head",
    )

    dataset: str = _key(
        "data",
        "imagenet",
        kinds.choice("imagenet", "mnist5k"),
        "imagenet: a folder with train/ and val/, one folder a class in each; mnist5k: built in",
    )
    data_dir: str = _key("data", "", kinds.text(allow_empty=True), "folder of the data set; required for imagenet")
    batch_size: int = _key("data", 128, kinds.whole(least=1), "images a step, per device")
    drop_remainder: bool = _key("data", True, kinds.flag(), "leave out the epoch's last, smaller batch (training only)")
    num_parallel_workers: int = _key(
        "data", 8, kinds.whole(least=1), "threads reading images; at most the machine's cores"
    )
    image_resize: int | tuple[int, int] = _key("data", 224, kinds.image_size(), "pixels the network sees: side, or H,W")
    crop_pct: float = _key("data", 0.875, kinds.number(above=0, most=1), "share of each side the validation crop keeps")
    interpolation: str = _key("data", "bilinear", kinds.choice("bilinear", "bicubic"), "how images are resized")
    mean: tuple[float, ...] = _key(
        "data", (0.485, 0.456, 0.406), kinds.numbers(least=0, most=1), "mean of each channel, white being 1"
    )
    std: tuple[float, ...] = _key(
        "data",
        (0.229, 0.224, 0.225),
        kinds.numbers(above=0, most=1),
        "standard deviation of each channel, white being 1",
    )

    scale: tuple[float, float] = _key(
        "augmentation", (0.08, 1.0), kinds.interval(above=0, most=1), "share of the image's area a random crop covers"
    )
    ratio: tuple[float, float] = _key(
        "augmentation", (0.75, 1.333), kinds.interval(above=0), "width / height of a random crop before it is resized"
    )
    hflip: float = _key("augmentation", 0.5, kinds.number(least=0, most=1), "probability of a horizontal flip")

    epoch_size: int = _key("optimisation", 120, kinds.whole(least=1), "epochs of the run")
    opt: str = _key("optimisation", "momentum", kinds.choice("momentum"), "optimizer")
    lr: float = _key("optimisation", 0.1, kinds.number(above=0), "highest learning rate")
    min_lr: float = _key("optimisation", 0.0, kinds.number(least=0), "learning rate cosine_decay ends with")
    scheduler: str = _key(
        "optimisation", "cosine_decay", kinds.choice(*_SCHEDULERS), "learning rate's curve after warm-up"
    )
    warmup_epochs: int = _key("optimisation", 0, kinds.whole(least=0), "epochs of linear warm-up")
    warmup_factor: float = _key(
        "optimisation", 0.0, kinds.number(least=0, most=1), "share of lr the warm-up starts from"
    )
    decay_epochs: int | None = _key(
        "optimisation",
        None,
        kinds.optional(kinds.whole(least=1)),
        "epochs from lr to min_lr; null: all after the warm-up",
    )
    momentum: float = _key("optimisation", 0.9, kinds.number(least=0, below=1), "momentum of the optimizer")
    use_nesterov: bool = _key("optimisation", False, kinds.flag(), "use Nesterov's momentum")
    weight_decay: float = _key("optimisation", 1e-4, kinds.number(least=0), "weight decay")
    weight_decay_filter: str = _key(
        "optimisation",
        "paper",
        kinds.choice("paper", "norm_and_bias", "all"),
        "parameters that decay: paper: not biases nor the BN of the 3x3 and 1x1 branches, but the identity BN's gamma; "
        "norm_and_bias: neither biases nor any BN; all: all",
    )
    label_smoothing: float = _key(
        "optimisation", 0.0, kinds.number(least=0, below=1), "share of the target spread evenly over all classes"
    )
    aux_weight: float = _key(
        "optimisation", 0.1, kinds.number(least=0), "weight of each auxiliary head in the loss (RepVGGplus)"
    )

    seed: int = _key("run", 42, kinds.whole(least=0, most=2**32 - 1), "seed of weights, shuffling and augmentation")
    mode: int = _key("run", 0, kinds.choice(0, 1), "0: graph mode; 1: PyNative mode")
    device_target: str = _key(
        "run", "auto", kinds.choice("auto", "CPU", "Ascend"), "device; auto: Ascend if there is one"
    )
    jit_level: str = _key(
        "run",
        "auto",
        kinds.choice("auto", "O0", "O1", "O2"),
        "graph compilation level; auto: O2 on Ascend where supported",
    )
    ckpt_save_dir: str = _key(
        "run", "./outputs", kinds.text(), "folder for checkpoints, the log and the resolved recipe"
    )
    keep_checkpoint_max: int = _key(
        "run", 3, kinds.whole(least=0), "epoch checkpoints kept besides the best and the last"
    )
    log_interval: int = _key("run", 10, kinds.whole(least=1), "steps between two progress updates")
    val_while_train: bool = _key("run", True, kinds.flag(), "validate during training")
    val_interval: int = _key("run", 1, kinds.whole(least=1), "epochs between two validations")

    sources: dict[str, str] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self):
        sources = {}
        for name, key in KEYS.items():
            value = getattr(self, name)
            sources[name] = self.sources.get(name, DEFAULT if value == key.default else CODE)
            try:
                value = key.kind.read(value)
            except (ValueError, TypeError, OverflowError, yaml.YAMLError) as error:
                raise RecipeError(f"{describe(name, value, sources[name])} must be {key.kind.expected}") from error
            object.__setattr__(self, name, value)
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
        return {name: plain(getattr(self, name)) for name in KEYS}

    def replace(self, source: str = CODE, /, **changes) -> Recipe:
        """A copy with other values, checked again as a whole; `source` is noted for the keys changed."""
        refuse_unknown(changes, source)
        return dataclasses.replace(self, **changes, sources={**self.sources, **dict.fromkeys(changes, source)})


KEYS = {field.name: field.metadata["key"] for field in dataclasses.fields(Recipe) if "key" in field.metadata}


def _at(source: str) -> str:
    """The place in words, to follow a value."""
    return {DEFAULT: ", the default", COMMAND_LINE: " on the command line", CODE: ""}.get(source, f" in {source}")


def describe(name: str, value, source: str) -> str:
    """The key with its value and origin: `lr (=-1 in configs/x.yaml)`."""
    return f"{name} (={plain(value)!r}{_at(source)})"


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
    shown = {name: describe(name, getattr(recipe, name), recipe.sources[name]) for name in KEYS}
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
        dataset = describe("dataset", recipe.dataset, recipe.sources["dataset"])
        raise RecipeError(
            f"data_dir is not given and {dataset} reads a folder with train/ and val/; add --data_dir FOLDER, or "
            "--dataset mnist5k for the built-in data"
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


def refuse_unknown(values: Mapping, source: str):
    """Raise RecipeError for the first key the schema does not have."""
    for name in values:
        if name not in KEYS:
            near = nearest(str(name), KEYS)
            hint = f"did you mean {near!r}?" if near else "--help lists the keys"
            raise RecipeError(f"unknown key {name!r}{_at(source)}; {hint}")
