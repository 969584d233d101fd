"""MindCV's training recipes: flat yaml files of its own keys and defaults, put into ours or refused with a reason."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from mindrepvgg.errors import RecipeError
from mindrepvgg.models.mindcv_spec import RATES
from mindrepvgg.models.network_spec import MINDCV as PREFIX
from mindrepvgg.models.network_spec import is_mindcvs
from mindrepvgg.models.variants import list_models, normalise_name
from mindrepvgg.recipe.kinds import kind_of
from mindrepvgg.recipe.provenance import MINDCV, describe
from mindrepvgg.recipe.schema import KEYS, Recipe
from mindrepvgg.text import quoted

# MindCV's defaults that differ from the schema's. Not among them are distribute, device_target and data_dir: they say
# where a run takes place, and its values (one device, Ascend, ./) would only keep a file from running elsewhere.
DEFAULTS = {
    "model": f"{PREFIX}mobilenet_v2_035_224",
    "color_jitter": 0.4,
    "epoch_size": 90,
    "opt": "adam",
    "lr": 0.001,
    "min_lr": 1e-6,
    "warmup_epochs": 3,
    "decay_epochs": 100,
    "decay_rate": 0.9,
    "weight_decay": 1e-6,
    "weight_decay_filter": "all",
    "aux_weight": 0.0,
    "drop_overflow_update": False,
    "dataset_sink_mode": True,
    "ckpt_save_dir": "./ckpt",
    "keep_checkpoint_max": 10,
    "log_interval": 100,
    "val_while_train": False,
}

# Epoch checkpoints to keep when all are: more than any run has epochs.
_EVERY = 1_000_000

# What MindCV's adamw has as epsilon, whatever its key `eps` says: that goes to rmsprop alone.
_ADAMW_EPS = 1e-8

# The schedulers that read these keys; the others take all epochs after the warm-up, and know no lower bound.
_COSINE = ("cosine_decay", "warmup_cosine_decay")
_READ_DECAY_EPOCHS = (*_COSINE, "step_decay")
_READ_MIN_LR = (*_COSINE, "one_cycle")

# A rule takes a key's value and the whole file, and gives our keys with their values; ValueError is a refusal.
_Rule = Callable[[Any, Mapping], Mapping]


def _only(*accepted, why: str) -> _Rule:
    """Takes the values that change nothing; the others would, as `why` says."""

    def rule(value, _file):
        if value not in accepted:
            raise ValueError(why)
        return {}

    return rule


def _respelt(key: str, values: Mapping) -> _Rule:
    """A key of ours, of which some values are written otherwise."""

    def rule(value, _file):
        return {key: values[value] if isinstance(value, Hashable) and value in values else value}

    return rule


def _pixels(key: str) -> _Rule:
    """Statistics of pixels: of 0 to 255 there, of 0 to 1 here."""

    def rule(value, _file):
        if isinstance(value, list) and any(isinstance(item, int | float) and item > 1 for item in value):
            # Rounded: 123.675 is 0.485 * 255, which is not exact in binary.
            value = [round(item / 255, 9) if isinstance(item, int | float) else item for item in value]
        return {key: value}

    return rule


def _takes_no_part(_value, _file):
    return {}


def _flag(value) -> bool:
    try:
        return kind_of("bool").read(value)
    except ValueError:
        raise ValueError("must be true or false") from None


def _model(value, _file):
    own = isinstance(value, str) and normalise_name(value) in list_models()
    return {"model": value if own or is_mindcvs(value) else f"{PREFIX}{value}"}


def _rate(why: str) -> _Rule:
    """`drop_rate` and `drop_path_rate`: arguments of MindCV's networks; refused for ours, as `why` says."""

    def rule(value, file):
        rates = {key: file[key] for key in RATES if file.get(key)}
        if value and not is_mindcvs(_model(file.get("model", DEFAULTS["model"]), file)["model"]):
            raise ValueError(why)
        return {"model_args": rates} if rates else {}

    return rule


def _ckpt_path(value, file):
    return {} if not value and file.get("pretrained") is True else {"pretrained": value or ""}


def _pretrained(value, file):
    if not isinstance(value, bool):
        return {"pretrained": value}
    if value and not file.get("ckpt_path"):
        return {"pretrained": f"mindcv/{file.get('model', DEFAULTS['model'])}"}
    return {} if "ckpt_path" in file else {"pretrained": ""}


def _dynamic_loss_scale(value, _file):
    if not _flag(value):
        return {"loss_scale_type": "fixed"}
    return {"loss_scale_type": "dynamic", "loss_scale_window": 1000, "drop_overflow_update": True}


def _loss_scale_type(value, _file):
    if value == "auto":
        raise ValueError("would leave the loss scale to mindspore.Model, which has no part here: set fixed or dynamic")
    return {"loss_scale_type": value}


def _filter_bias_and_bn(value, _file):
    # False hands MindSpore one group of parameters, in which it leaves out every gamma and beta by itself. True is
    # taken at its word; MindCV 0.2.2 gave the second group no decay of its own, so that it decayed like the first.
    return {"weight_decay_filter": "norm_and_bias" if _flag(value) else "norm"}


def _opt(value, _file):
    return {"opt": value, "eps": _ADAMW_EPS} if str(value).lower() == "adamw" else {"opt": value}


def _eps(value, file):
    return {"eps": _ADAMW_EPS if str(file.get("opt")).lower() == "adamw" else value}


def _decay_epochs(value, file):
    return {"decay_epochs": value if file.get("scheduler", "cosine_decay") in _READ_DECAY_EPOCHS else None}


def _min_lr(value, file):
    return {"min_lr": value if file.get("scheduler", "cosine_decay") in _READ_MIN_LR else 0.0}


def _ckpt_save_policy(value, _file):
    if value is None:
        return {"ckpt_save_policy": "latest_k", "keep_checkpoint_max": _EVERY}
    return {"ckpt_save_policy": value}


def _keep_checkpoint_max(value, file):
    if file.get("ckpt_save_policy", "latest_k") is None:
        return {}
    return {"keep_checkpoint_max": _EVERY if value == 0 else value}


_ON_MODELARTS = "would fetch and store files on ModelArts; not here: give data_dir and ckpt_save_dir on this machine"

# MindCV's keys that are not ours, or mean something else here; its other keys are ours as they are.
RULES: dict[str, _Rule] = {
    # Of another name or spelling.
    "model": _model,
    "drop_rate": _rate("would drop features at random; RepVGG has no dropout: remove it"),
    "drop_path_rate": _rate("would drop blocks at random; RepVGG cannot: remove it"),
    "aux_factor": lambda value, _file: {"aux_weight": value},
    "ckpt_path": _ckpt_path,
    "pretrained": _pretrained,
    "mean": _pixels("mean"),
    "std": _pixels("std"),
    "color_jitter": _respelt("color_jitter", {None: 0.0}),
    "num_classes": lambda value, _file: {} if value is None else {"num_classes": value},
    "distribute": _respelt("distribute", {True: "auto"}),
    "scheduler": _respelt("scheduler", {"warmup_cosine_decay": "cosine_decay"}),
    "opt": _opt,
    "eps": _eps,
    "decay_epochs": _decay_epochs,
    "min_lr": _min_lr,
    "weight_decay_filter": _respelt("weight_decay_filter", {"disable": "all", "auto": "norm"}),
    "filter_bias_and_bn": _filter_bias_and_bn,
    "loss_scale_type": _loss_scale_type,
    "dynamic_loss_scale": _dynamic_loss_scale,
    "ckpt_save_policy": _ckpt_save_policy,
    "keep_checkpoint_max": _keep_checkpoint_max,
    # Accepted where they change nothing.
    "dataset_download": _only(False, why="would download the data set; not here: give its folder as data_dir"),
    "train_split": _only("train", why="would train on another folder than train/; that is its name here: rename it"),
    "val_split": _only("val", why="would validate on another folder than val/; that is its name here: rename it"),
    "num_samples": _only(None, why="would train on that many images; here all are used: put them into a folder apart"),
    "aug_splits": _only(0, why="would train on several views of an image at once; not here: set it to 0"),
    "re_max_attempts": _only(10, why="would try another number of places to erase; here there are 10: remove it"),
    "layer_decay": _only(None, why="counts layers as MindCV does; here it counts blocks: give it in a recipe of ours"),
    "reduction": _only("mean", why="would not average the loss over a batch; here it is: adapt lr and remove it"),
    "val_amp_level": _only("O0", why="would have validation compute in half precision; not here: set it to O0"),
    "amp_cast_list": _only(None, why="would choose the cells in half precision; here amp_level does: remove it"),
    "eval_shuffle": _only(False, why="would shuffle the validation images, which no figure shows: remove it"),
    "resume_opt": _only(False, why="would go on with a run; here mindrepvgg train --resume does, exactly: remove it"),
    "enable_modelarts": _only(False, why=_ON_MODELARTS),
    # Read only where enable_modelarts is true.
    **dict.fromkeys(("data_url", "multi_data_url", "ckpt_url", "train_url"), _takes_no_part),
    # The file that a saved set of arguments was made from.
    "config": _takes_no_part,
}


def recognise(values: Mapping) -> str | None:
    """What shows that a yaml file's mapping is a recipe of MindCV's: a key that only MindCV has, or a value of one of
    ours that only MindCV accepts; None when nothing does.
    """
    for name in values:
        if name in RULES and name not in KEYS:
            return name
    if isinstance(values.get("pretrained"), bool):
        return "pretrained"
    return "weight_decay_filter" if values.get("weight_decay_filter") in ("disable", "auto") else None


def translate(values: Mapping, path: str) -> tuple[dict, dict]:
    """The file's values under our keys, and where each came from; keys that are not MindCV's are left as they are.

    Raises RecipeError, one line, for a key whose value would do something that is not done here, and for two keys
    that say the same thing differently.
    """
    ours, sources, origins = {}, {}, {}
    # Yaml reads None as text.
    file = {key: None if value in ("None", "none") else value for key, value in values.items()}
    for key, value in file.items():
        try:
            given = RULES[key](value, file) if key in RULES else {key: value}
        except ValueError as error:
            raise RecipeError(f"{describe(key, value, path)} {error}") from error
        for name, new in given.items():
            if name in ours and ours[name] != new:
                others = " and ".join(describe(setter, file[setter], path) for setter in (origins[name], key))
                raise RecipeError(f"{others} set {name} differently; keep one")
            ours[name], origins[name] = new, key
            sources[name] = path if (name, new) == (key, values[key]) else f"{path}, from {key}: {quoted(value)}"
    return ours, sources


def defaults(values: Mapping, path: str) -> tuple[dict, dict]:
    """MindCV's defaults for what a file may leave out, where they differ from ours, and their source."""
    chosen = {**DEFAULTS, **_decay_epochs(DEFAULTS["decay_epochs"], values), **_min_lr(DEFAULTS["min_lr"], values)}
    return chosen, dict.fromkeys(chosen, f"{MINDCV} for {path}")


def mindcv_notice(recipe: Recipe) -> str | None:
    """A line for the user of a recipe of MindCV's; None for one of ours."""
    taken = [source for source in recipe.sources.values() if source.startswith(MINDCV)]
    if not taken:
        return None
    path = taken[0].removeprefix(f"{MINDCV} for ")
    return (
        f"{path} is read as a recipe of MindCV's: what it leaves out has MindCV's defaults (--show_config lists them)"
    )
