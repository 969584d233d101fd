"""The schema: defaults, what each key accepts from yaml and from text, and how an unfit value is refused."""

import json
import subprocess
import sys

import pytest
from support.recipes import refusal

from mindrepvgg.errors import RecipeError
from mindrepvgg.recipe import choices
from mindrepvgg.recipe.schema import KEYS, Recipe
from mindrepvgg.recipe.sources import load_recipe, recipe_from_dict
from mindrepvgg.text import quoted
from mindrepvgg.training import schedule


def test_defaults_are_the_schema_and_pass_their_own_checks():
    loaded = load_recipe()
    assert loaded == Recipe()
    assert (loaded.model, loaded.batch_size, loaded.lr, loaded.epoch_size) == ("repvgg_a0", 128, 0.1, 120)
    assert set(loaded.sources.values()) == {"default"}
    for name, key in KEYS.items():
        assert getattr(loaded, name) == key.default
        assert key.comment
        assert key.section in ("model", "data", "augmentation", "optimisation", "precision", "run")


def test_every_scheduler_has_a_curve():
    assert tuple(schedule.CURVES) == choices.SCHEDULERS


def test_importing_it_loads_no_framework():
    heavy = "numpy", "mindspore", "mindcv", "cv2"
    code = f"import sys, mindrepvgg.recipe; sys.exit(' '.join(m for m in {heavy} if m in sys.modules) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stderr.strip(), done.returncode) == ("", 0)


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "0.0001", "1.0e-4", "'1e-4'"])
def test_yaml_floats_without_a_point_are_floats(write, text):
    assert load_recipe(write(f"weight_decay: {text}\n")).weight_decay == 1e-4


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("batch_size", "32", 32),
        ("lr", "1", 1.0),
        ("val_while_train", "false", False),
        ("use_nesterov", "True", True),
        ("scale", "0.08,1.0", (0.08, 1.0)),
        ("scale", "[0.08, 1.0]", (0.08, 1.0)),
        ("mean", "[0, 0.5, 1]", (0.0, 0.5, 1.0)),
        ("image_resize", "192", 192),
        ("image_resize", "[192, 256]", (192, 256)),
        ("image_resize", "192,256", (192, 256)),
        ("decay_epochs", "null", None),
        ("decay_epochs", "60", 60),
        ("mode", "1", 1),
        ("device_target", "ascend", "Ascend"),
        ("model", "RepVGG-B1g4", "repvgg_b1g4"),
        ("pretrained", "weights/a b.ckpt", "weights/a b.ckpt"),
        ("freeze_bn", "true", True),
        ("color_jitter", "0.4", 0.4),
        ("auto_augment", "randaug-m9-mstd0.5-inc1", "randaug-m9-mstd0.5-inc1"),
        ("auto_augment", "3a", "3a"),
        ("auto_augment", "null", None),
        ("quantization", "null", None),
        ("quantization", "none", None),
        ("re_value", "-1", -1.0),
        ("re_ratio", "0.3,3.3", (0.3, 3.3)),
        ("mixup", "2", 2.0),
        ("aug_repeats", "3", 3),
        ("opt", "AdamW", "adamw"),
        ("lr_per_batch", "256", 256),
        ("lr_per_batch", "none", None),
        ("multi_step_decay_milestones", "10,20.5", (10.0, 20.5)),
        ("multi_step_decay_milestones", "[30]", (30.0,)),
        ("betas", "[0.9, 0.98]", (0.9, 0.98)),
        ("weight_decay_filter", "norm", "norm"),
        ("loss", "bce", "BCE"),
        ("precise_bn_steps", "200", 200),
        ("amp_level", "o2", "O2"),
        ("loss_scale_type", "dynamic", "dynamic"),
        ("loss_scale", "1024", 1024.0),
        ("distribute", "auto", "auto"),
        ("distribute", "true", True),
        ("distribute", "False", False),
        ("keep_checkpoint_max", "0", 0),
        ("ckpt_save_policy", "top_k", "top_k"),
        ("ckpt_save_dir", "a folder, [with] #signs", "a folder, [with] #signs"),
    ],
)
def test_text_and_yaml_give_the_same_value(write, key, text, value):
    from_text = getattr(load_recipe(None, {key: text}), key)
    in_yaml = text if key != "ckpt_save_dir" else json.dumps(text)
    from_yaml = getattr(load_recipe(write(f"{key}: {in_yaml}\n")), key)
    assert from_text == from_yaml == value
    assert type(from_text) is type(from_yaml) is type(value)


def test_own_sizes_are_read_from_yaml_and_text(write):
    sizes = "{num_blocks: [1, 1, 2, 1], widths: [8, 8, 8, 16, 16], group_size: 2}"
    loaded = load_recipe(write(f"model: repvgg\nmodel_args: {sizes}\n"))
    assert loaded == load_recipe(None, {"model": "repvgg", "model_args": sizes})
    assert loaded.variant.widths == (8, 8, 8, 16, 16)
    assert loaded.model_args["group_size"] == 2


def test_image_size_is_height_and_width():
    assert Recipe().image_size == (224, 224)
    assert Recipe(image_resize=[128, 160]).image_size == (128, 160)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("batch_size", "abc", "a whole number of at least 1 and at most 2147483647"),
        ("batch_size", 0, "a whole number of at least 1 and at most 2147483647"),
        ("batch_size", 1.5, "a whole number of at least 1 and at most 2147483647"),
        ("batch_size", True, "a whole number of at least 1 and at most 2147483647"),
        ("batch_size", None, "a whole number of at least 1 and at most 2147483647"),
        ("lr", 0, "a number above 0"),
        ("lr", float("nan"), "a number above 0"),
        ("lr", "inf", "a number above 0"),
        ("lr", [0.1], "a number above 0"),
        ("lr", 10**400, "a number above 0"),
        ("epoch_size", 10**15, "a whole number of at least 1 and at most 1000000"),
        ("epoch_size", "1" * 5000, "a whole number of at least 1 and at most 1000000"),
        ("num_classes", 10**9, "a whole number of at least 1 and at most 1000000, or null"),
        ("in_channels", 10**9, "a whole number of at least 1 and at most 65536"),
        ("image_resize", 10**8, "a whole number from 1 to 16384, or two [height, width]"),
        ("num_parallel_workers", 10**10, "a whole number of at least 1 and at most 2147483647"),
        ("ckpt_save_dir", "a\0b", "one line of text, not empty (in yaml, quote what looks like a number or a date)"),
        ("pretrained", "a\ud800b", "one line of text (in yaml, quote what looks like a number or a date)"),
        ("label_smoothing", 1, "a number of at least 0 and below 1"),
        ("crop_pct", 1e-300, "a number of at least 0.1 and at most 1"),
        ("seed", 2**32, "a whole number of at least 0 and at most 4294967295"),
        ("drop_remainder", "maybe", "true or false"),
        ("drop_remainder", 1, "true or false"),
        ("interpolation", "nearest", "bilinear or bicubic"),
        ("jit_level", "O3", "auto, O0, O1 or O2"),
        ("mode", True, "0 or 1"),
        ("scale", [1.0, 0.08], "two numbers [low, high] above 0 and at most 1, low <= high"),
        ("scale", 0.5, "two numbers [low, high] above 0 and at most 1, low <= high"),
        ("ratio", [1.0], "two numbers [low, high] above 0, low <= high"),
        ("mean", [123.675, 116.28, 103.53], "a list of numbers of at least 0 and at most 1"),
        ("image_resize", [1, 2, 3], "a whole number from 1 to 16384, or two [height, width]"),
        ("image_resize", True, "a whole number from 1 to 16384, or two [height, width]"),
        ("decay_epochs", 0, "a whole number of at least 1 and at most 2147483647, or null"),
        ("freeze_stages", 6, "a whole number of at least 0 and at most 5"),
        ("freeze_bn", "on", "true or false"),
        ("color_jitter", 1.5, "a number of at least 0 and at most 1"),
        ("color_jitter", [0.4, 0.4, 0.4], "a number of at least 0 and at most 1"),
        (
            "auto_augment",
            True,
            "one line of text, not empty (in yaml, quote what looks like a number or a date), or null",
        ),
        (
            "auto_augment",
            "",
            "one line of text, not empty (in yaml, quote what looks like a number or a date), or null",
        ),
        ("re_scale", [0.3, 0.1], "two numbers [low, high] above 0 and at most 1, low <= high"),
        ("re_value", "random", "a number"),
        ("re_value", "inf", "a number"),
        ("mixup", -0.1, "a number of at least 0"),
        ("cutmix_prob", 1.1, "a number of at least 0 and at most 1"),
        ("aug_repeats", -1, "a whole number of at least 0 and at most 1000"),
        ("opt", "adam", "momentum, sgd or adamw"),
        ("lr_per_batch", 0, "a whole number of at least 1 and at most 2147483647, or null"),
        ("decay_rate", 0, "a number above 0"),
        ("multi_step_decay_milestones", [30, -1], "a list of numbers of at least 0"),
        ("multi_step_decay_milestones", "", "a list of numbers of at least 0"),
        ("num_cycles", 1.5, "a whole number of at least 1 and at most 2147483647"),
        ("cycle_decay", 2, "a number above 0 and at most 1"),
        ("momentum", 1, "a number of at least 0 and below 1"),
        ("betas", [0.9, 1], "two numbers [low, high] above 0 and below 1, low <= high"),
        ("betas", 0.9, "two numbers [low, high] above 0 and below 1, low <= high"),
        ("eps", 0, "a number above 0"),
        ("weight_decay_filter", "disable", "paper, norm_and_bias, norm or all"),
        ("quantization", "int8", "bn or qat, or null"),
        ("loss", "MSE", "CE or BCE"),
        ("clip_value", 0, "a number above 0"),
        ("gradient_accumulation_steps", 0, "a whole number of at least 1 and at most 2147483647"),
        ("ema_decay", 1, "a number of at least 0 and below 1"),
        ("amp_level", "O1", "O0, O2 or O3"),
        ("amp_dtype", "half", "float16 or bfloat16"),
        ("loss_scale_type", "auto", "fixed or dynamic"),
        ("loss_scale", 0.5, "a number of at least 1"),
        ("distribute", "yes", "auto, true or false"),
        ("ckpt_save_policy", None, "latest_k or top_k"),
        ("keep_checkpoint_max", -1, "a whole number of at least 0 and at most 2147483647"),
        ("val_share", 1, "a number of at least 0 and below 1"),
        ("val_share", -0.1, "a number of at least 0 and below 1"),
        ("data_dir", 2012, "one line of text (in yaml, quote what looks like a number or a date)"),
        ("data_dir", "a\nb", "one line of text (in yaml, quote what looks like a number or a date)"),
        ("ckpt_save_dir", "", "one line of text, not empty (in yaml, quote what looks like a number or a date)"),
    ],
)
def test_unfit_values_are_refused_with_value_place_and_expectation(key, value, expected):
    assert refusal(None, {key: value}) == f"{key} (={quoted(value)} on the command line) must be {expected}"


def test_a_refusal_names_the_yaml_file(write):
    path = write("batch_size: abc\n")
    assert (
        refusal(path)
        == "batch_size (='abc' in configs/x.yaml) must be a whole number of at least 1 and at most 2147483647"
    )


@pytest.mark.parametrize("value", ["{a: 1", "[1, 2]", "{1: 2}", "{a: 1, a: 2}", [1]])
def test_model_args_must_be_a_mapping(value):
    start = f"model_args (={value!r} on the command line) must be a mapping such as {{num_blocks: "
    assert refusal(None, {"model_args": value}).startswith(start)


def test_model_args_that_are_no_yaml_say_why():
    assert refusal(None, {"model_args": "{a: 1, a: 2}"}).endswith("; line 1: key 'a' is given twice; keep one")


def test_replace_checks_again_and_notes_the_source():
    changed = load_recipe(None, {"seed": 1}).replace(lr="0.5")
    assert (changed.lr, changed.seed) == (0.5, 1)
    assert (changed.sources["lr"], changed.sources["seed"]) == ("code", "command line")
    assert changed.replace("command line", lr=0.2).sources["lr"] == "command line"
    with pytest.raises(RecipeError, match=r"^min_lr \(=9.0\) must be at most lr \(=0.5\)$"):
        changed.replace(min_lr=9)


def test_sources_take_no_part_in_equality():
    assert load_recipe(None, {"lr": 0.1}) == Recipe()


def test_a_recipe_cannot_be_changed_in_place():
    with pytest.raises(AttributeError):
        Recipe().lr = 1.0


def test_model_args_are_a_copy():
    sizes = {"num_blocks": [1, 1, 2, 1], "widths": [8, 8, 8, 16, 16]}
    kept = Recipe(model="repvgg", model_args=sizes)
    sizes["widths"].append(3)
    kept.to_dict()["model_args"]["widths"].append(3)
    assert kept.model_args["widths"] == [8, 8, 8, 16, 16]


@pytest.mark.parametrize(
    ("given", "patterns"),
    [
        ("stage1.*", ("stage1.*",)),
        ("stage1.*, stage2.0", ("stage1.*", "stage2.0")),
        ("[stage1.*,stage2.0]", ("stage1.*", "stage2.0")),
        ("stage1.[01]", ("stage1.[01]",)),
        (["*.0"], ("*.0",)),
        ("null", None),
    ],
)
def test_block_where_is_patterns(given, patterns):
    recipe = load_recipe(None, {"block": "acb", "block_where": given})
    assert recipe.block_where == patterns
    assert recipe_from_dict(recipe.to_dict()) == recipe
    assert recipe.variant.block_where == patterns
