"""The recipe: defaults, layers, checks, and the text of every refusal."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from mindrepvgg.cli import entry
from mindrepvgg.errors import RecipeError
from mindrepvgg.recipe import choices, rules, sources
from mindrepvgg.recipe.schema import KEYS, Recipe
from mindrepvgg.recipe.sources import load_recipe, recipe_from_dict
from mindrepvgg.training import schedule


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a yaml file in a fresh working directory and give its relative path."""
    monkeypatch.chdir(tmp_path)

    def write_file(text, name="configs/x.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return name

    return write_file


def refusal(path=None, overrides=None):
    """The one line a recipe is refused with."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def parse(*argv):
    parser = entry.ArgumentParser(prog="train.py")
    sources.add_recipe_arguments(parser)
    return sources.recipe_from_arguments(parser.parse_args(argv))


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


def test_later_layers_win_and_are_remembered(write):
    write("lr: 0.4\nseed: 7\nhflip: 0\n", "configs/base.yaml")
    path = write("base: base.yaml\nlr: 0.2\nseed: 8\n")
    loaded = load_recipe(path, {"lr": "0.3"})
    assert (loaded.lr, loaded.seed, loaded.hflip, loaded.momentum) == (0.3, 8, 0.0, 0.9)
    keys = ("lr", "seed", "hflip", "momentum")
    assert [loaded.sources[key] for key in keys] == ["command line", path, "configs/base.yaml", "default"]


def test_base_chain_is_relative_to_each_file(write):
    write("seed: 1\nmode: 1\n", "shared/root.yaml")
    write("base: ../shared/root.yaml\nseed: 2\n", "configs/middle.yaml")
    loaded = load_recipe(write("base: middle.yaml\n", "configs/top.yaml"))
    assert (loaded.seed, loaded.mode, loaded.sources["mode"]) == (2, 1, os.path.join("shared", "root.yaml"))


def test_base_cycle_is_refused(write):
    write("base: b.yaml\n", "configs/a.yaml")
    write("base: ../configs/a.yaml\n", "configs/b.yaml")
    assert refusal("configs/a.yaml") == (
        "the `base` keys go in a circle: configs/a.yaml -> configs/b.yaml -> configs/a.yaml; remove one of them"
    )


def test_unusable_base_is_refused(write):
    path = write("base: none.yaml\n")
    assert refusal(path) == (
        "recipe configs/none.yaml cannot be read: No such file or directory; it is the base of configs/x.yaml; "
        "check the path"
    )
    path = write("base: 3\n")
    assert refusal(path) == ("base (=3 in configs/x.yaml) must be another yaml file's path, relative to this one")


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
        ("batch_size", "abc", "a whole number of at least 1"),
        ("batch_size", 0, "a whole number of at least 1"),
        ("batch_size", 1.5, "a whole number of at least 1"),
        ("batch_size", True, "a whole number of at least 1"),
        ("batch_size", None, "a whole number of at least 1"),
        ("lr", 0, "a number above 0"),
        ("lr", float("nan"), "a number above 0"),
        ("lr", "inf", "a number above 0"),
        ("lr", [0.1], "a number above 0"),
        ("lr", 10**400, "a number above 0"),
        ("label_smoothing", 1, "a number of at least 0 and below 1"),
        ("crop_pct", 0, "a number above 0 and at most 1"),
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
        ("image_resize", [1, 2, 3], "a whole number of at least 1, or two of them [height, width]"),
        ("image_resize", True, "a whole number of at least 1, or two of them [height, width]"),
        ("decay_epochs", 0, "a whole number of at least 1, or null"),
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
        ("aug_repeats", -1, "a whole number of at least 0"),
        ("opt", "adam", "momentum, sgd or adamw"),
        ("lr_per_batch", 0, "a whole number of at least 1, or null"),
        ("decay_rate", 0, "a number above 0"),
        ("multi_step_decay_milestones", [30, -1], "a list of numbers of at least 0"),
        ("multi_step_decay_milestones", "", "a list of numbers of at least 0"),
        ("num_cycles", 1.5, "a whole number of at least 1"),
        ("cycle_decay", 2, "a number above 0 and at most 1"),
        ("momentum", 1, "a number of at least 0 and below 1"),
        ("betas", [0.9, 1], "two numbers [low, high] above 0 and below 1, low <= high"),
        ("betas", 0.9, "two numbers [low, high] above 0 and below 1, low <= high"),
        ("eps", 0, "a number above 0"),
        ("weight_decay_filter", "disable", "paper, norm_and_bias, norm or all"),
        ("quantization", "int8", "none, bn or qat"),
        ("loss", "MSE", "CE or BCE"),
        ("clip_value", 0, "a number above 0"),
        ("gradient_accumulation_steps", 0, "a whole number of at least 1"),
        ("ema_decay", 1, "a number of at least 0 and below 1"),
        ("amp_level", "O1", "O0, O2 or O3"),
        ("amp_dtype", "half", "float16 or bfloat16"),
        ("loss_scale_type", "auto", "fixed or dynamic"),
        ("loss_scale", 0.5, "a number of at least 1"),
        ("distribute", "yes", "auto, True or False"),
        ("ckpt_save_policy", None, "latest_k or top_k"),
        ("keep_checkpoint_max", -1, "a whole number of at least 0"),
        ("val_share", 1, "a number of at least 0 and below 1"),
        ("val_share", -0.1, "a number of at least 0 and below 1"),
        ("data_dir", 2012, "one line of text (in yaml, quote what looks like a number or a date)"),
        ("data_dir", "a\nb", "one line of text (in yaml, quote what looks like a number or a date)"),
        ("ckpt_save_dir", "", "one line of text, not empty (in yaml, quote what looks like a number or a date)"),
    ],
)
def test_unfit_values_are_refused_with_value_place_and_expectation(key, value, expected):
    assert refusal(None, {key: value}) == f"{key} (={value!r} on the command line) must be {expected}"


def test_a_refusal_names_the_yaml_file(write):
    path = write("batch_size: abc\n")
    assert refusal(path) == "batch_size (='abc' in configs/x.yaml) must be a whole number of at least 1"


@pytest.mark.parametrize("value", ["{a: 1", "[1, 2]", "{1: 2}", "{a: 1, a: 2}", [1]])
def test_model_args_must_be_a_mapping(value):
    start = f"model_args (={value!r} on the command line) must be a mapping such as {{num_blocks: "
    assert refusal(None, {"model_args": value}).startswith(start)


@pytest.mark.parametrize(
    ("key", "near"),
    [("bathc_size", "batch_size"), ("LR", "lr"), ("weight-decay", "weight_decay"), ("epochs", "epoch_size")],
)
def test_unknown_keys_are_refused_with_the_nearest(write, key, near):
    hint = f"did you mean {near!r}?"
    assert refusal(write(f"{key}: 1\n")) == f"unknown key {key!r} in configs/x.yaml; {hint}"
    assert refusal(None, {key: 1}) == f"unknown key {key!r} on the command line; {hint}"
    with pytest.raises(RecipeError, match=f"unknown key '{key}' in the checkpoint; did you mean '{near}'"):
        recipe_from_dict({key: 1})
    with pytest.raises(RecipeError, match=f"unknown key '{key}'; did you mean '{near}'"):
        Recipe().replace(**{key: 1})


def test_an_unknown_key_like_no_other_points_to_help():
    assert refusal(None, {"qqq": 1}) == "unknown key 'qqq' on the command line; --help lists the keys"


def test_hints_for_names_of_other_programs_are_keys():
    assert set(rules.ELSEWHERE.values()) <= set(KEYS)
    assert not set(rules.ELSEWHERE) & set(KEYS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- lr\n- 0.1\n", "configs/x.yaml must hold lines `key: value`, it holds a list"),
        ("lr 0.1\n", "configs/x.yaml must hold lines `key: value`, it holds a str"),
        ("seed: 1\nlr: 0.1\nlr: 0.2\n", "configs/x.yaml, line 3: key 'lr' is given twice; keep one"),
        ("seed: 1\nlr: 'a\n", "configs/x.yaml, line 3: found unexpected end of stream"),
        ("seed: 1\nscale: [0.1, 1.0\nlr: 1\n", "configs/x.yaml, line 3: expected ',' or ']', but got ':'"),
        ("lr: !!python/object:a.b {}\n", "configs/x.yaml, line 1: could not determine a constructor for the tag"),
        ("seed: 2026-99-99\n", "configs/x.yaml is not yaml text: month must be in 1..12"),
        ("seed: \0\n", "configs/x.yaml is not yaml text: unacceptable character #x0000"),
    ],
)
def test_unreadable_yaml_is_refused_with_the_line(write, text, message):
    assert refusal(write(text)).startswith(message)


def test_a_missing_file_a_folder_and_bytes_are_refused(write, tmp_path):
    write("", "configs/empty.yaml")
    assert refusal("no.yaml") == "recipe no.yaml cannot be read: No such file or directory; check the path"
    assert refusal("configs") == "recipe configs cannot be read: Is a directory; check the path"
    (tmp_path / "image.yaml").write_bytes(b"\xff\xd8\xff")
    assert refusal("image.yaml").startswith("image.yaml is not yaml text: 'utf-8' codec can't decode")


def test_an_empty_file_changes_nothing(write):
    assert load_recipe(write("# all defaults\n")) == Recipe()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"in_channels": 1},
            "mean (=[0.485, 0.456, 0.406], the default) must have one number for each of in_channels (=1",
        ),
        (
            {"std": "0.5"},
            "std (=[0.5] on the command line) must have one number for each of in_channels (=3, the default)",
        ),
        ({"lr": 0.1, "min_lr": 0.2}, "min_lr (=0.2 on the command line) must be at most lr (=0.1 on the command line)"),
        (
            {"warmup_epochs": 121},
            "warmup_epochs (=121 on the command line) must be at most epoch_size (=120, the default)",
        ),
        (
            {"warmup_epochs": 5, "decay_epochs": 116},
            "warmup_epochs (=5 on the command line) and decay_epochs (=116 on the command line) together must be "
            "at most epoch_size (=120, the default); decay_epochs null takes what is left",
        ),
        (
            {"num_cycles": 2},
            "num_cycles (=2 on the command line) of decay_epochs (=None, the default) must fit into epoch_size (=120",
        ),
        (
            {"num_cycles": 3, "decay_epochs": 39, "warmup_epochs": 4},
            "num_cycles (=3 on the command line) of decay_epochs (=39 on the command line) must fit into epoch_size",
        ),
        (
            {"scheduler": "one_cycle", "warmup_epochs": 5},
            "warmup_epochs (=5 on the command line) must be 0 with scheduler (='one_cycle' on the command line)",
        ),
        (
            {"scheduler": "step_decay"},
            "scheduler (='step_decay' on the command line) needs decay_epochs, the epochs between two steps",
        ),
        (
            {"scheduler": "exponential_decay", "decay_rate": 30},
            "decay_rate (=30.0 on the command line) must be at most 1 with scheduler (='exponential_decay' on the",
        ),
        (
            {"opt": "adamw", "use_nesterov": True},
            "use_nesterov (=True on the command line) needs SGD with momentum, not opt (='adamw' on the command line) "
            "with momentum (=0.9, the default)",
        ),
        (
            {"momentum": 0, "use_nesterov": True},
            "use_nesterov (=True on the command line) needs SGD with momentum, not opt (='momentum', the default) with "
            "momentum (=0.0 on the command line)",
        ),
        (
            {"loss_scale_type": "dynamic", "drop_overflow_update": False},
            "drop_overflow_update (=False on the command line) needs loss_scale_type fixed: a dynamic scale finds",
        ),
        (
            {"amp_dtype": "bfloat16"},
            "amp_dtype (='bfloat16' on the command line) needs amp_level O2, not amp_level (='O0', the default)",
        ),
        (
            {"amp_dtype": "bfloat16", "amp_level": "O3"},
            "amp_dtype (='bfloat16' on the command line) needs amp_level O2, not amp_level (='O3' on the command line)",
        ),
        (
            {"freeze_stages": 3},
            "freeze_stages (=3 on the command line) needs pretrained: stages that are not trained keep the weights",
        ),
        (
            {"custom_l2": True, "weight_decay_filter": "all"},
            "custom_l2 (=True on the command line) needs weight_decay_filter paper, not weight_decay_filter (='all' on",
        ),
        (
            {"custom_l2": True, "freeze_stages": 1, "pretrained": "x.ckpt"},
            "custom_l2 (=True on the command line) needs every block's branches to be trained, with",
        ),
        (
            {"quantization": "bn"},
            "quantization (='bn' on the command line) needs pretrained: the network that is fused and fine-tuned",
        ),
        (
            {"quantization": "bn", "pretrained": "x.ckpt", "sync_bn": True},
            "sync_bn (=True on the command line) must be false with quantization (='bn' on the command line), which",
        ),
        (
            {"quantization": "qat", "pretrained": "x.ckpt", "amp_level": "O2"},
            "amp_level (='O2' on the command line) must be O0 with quantization (='qat' on the command line), whose",
        ),
        (
            {"quantization": "qat", "pretrained": "x.ckpt", "recompute": True},
            "recompute (=True on the command line) must be False with quantization (='qat' on the command line), whose",
        ),
        (
            {"quantization": "qat", "pretrained": "x.ckpt", "precise_bn_steps": 10},
            "precise_bn_steps (=10 on the command line) must be 0 with quantization (='qat' on the command line)",
        ),
        (
            {"freeze_bn": True, "precise_bn_steps": 10},
            "precise_bn_steps (=10 on the command line) must be 0 with freeze_bn (=True on the command line), which",
        ),
        (
            {"ckpt_save_policy": "top_k", "val_while_train": False},
            "ckpt_save_policy (='top_k' on the command line) needs val_while_train (=False on the command line) to be",
        ),
    ],
)
def test_values_that_do_not_fit_each_other_are_refused(overrides, message):
    assert refusal(None, overrides).startswith(message)


@pytest.mark.parametrize(
    "overrides",
    [
        {"color_jitter": 0.4, "auto_augment": "autoaug"},
        {"mixup": 0.8, "cutmix": 1.0, "loss": "BCE"},
        {"scheduler": "step_decay", "decay_epochs": 200, "decay_rate": 1},
        {"num_cycles": 3, "decay_epochs": 39, "warmup_epochs": 3},
        {"scheduler": "polynomial_decay", "decay_rate": 2},
        {"amp_dtype": "bfloat16", "amp_level": "O2"},
        {"amp_level": "O3", "loss_scale_type": "dynamic", "loss_scale": 1024},
        {"freeze_stages": 5, "pretrained": "weights.ckpt", "freeze_bn": True},
        {"sync_bn": True, "distribute": False, "device_target": "Ascend"},
        {"precise_bn_steps": 10, "ema": True},
        {"quantization": "bn", "pretrained": "x.ckpt", "amp_level": "O2", "precise_bn_steps": 10, "recompute": True},
        {"quantization": "qat", "pretrained": "x.ckpt", "ema": True, "gradient_accumulation_steps": 2},
        {"opt": "sgd", "use_nesterov": True},
        {"lr_per_batch": 1024, "min_lr": 0.1},
    ],
    ids=str,
)
def test_values_that_do_fit_each_other_are_taken(overrides):
    load_recipe(None, overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model": "repvgg_a9"}, "model on the command line: model (='repvgg_a9') is not a network of the family"),
        ({"model": "repvgg"}, "model_args, the default: repvgg needs num_blocks"),
        ({"model_args": {"widths": [1]}}, "model_args on the command line: repvgg_a0 has a fixed shape"),
        ({"model": "repvgg", "model_args": {"depth": 3}}, "model_args on the command line: repvgg does not know depth"),
        (
            {"model": "repvgg", "model_args": {"num_blocks": 3, "widths": 4}},
            "model_args on the command line: ",
        ),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(overrides, message):
    assert refusal(None, overrides).startswith(message)


def test_dict_round_trip_through_json_and_yaml():
    sizes = {"num_blocks": (1, 1, 2, 1), "widths": (8, 8, 8, 16, 16)}
    original = Recipe(model="repvgg", model_args=sizes, image_resize=(64, 96), lr=1e-5, decay_epochs=10)
    values = original.to_dict()
    assert list(values) == list(KEYS)
    assert values["image_resize"] == [64, 96]
    assert values["model_args"]["widths"] == [8, 8, 8, 16, 16]
    for copy in (json.loads(json.dumps(values)), yaml.safe_load(yaml.safe_dump(values))):
        rebuilt = recipe_from_dict(copy)
        assert rebuilt == original
        assert rebuilt.sources["lr"] == "the checkpoint"


def test_recipe_from_dict_refuses_what_is_not_a_mapping():
    with pytest.raises(RecipeError, match=r"^runs/last\.ckpt must hold lines `key: value`, it holds a NoneType"):
        recipe_from_dict(None, "runs/last.ckpt")


def test_format_recipe_is_one_line_a_key_and_loads_again(write):
    sizes = {"num_blocks": [1, 1, 2, 1], "widths": [8, 8, 8, 16, 16]}
    overrides = {"model": "repvgg", "model_args": sizes, "data_dir": "a: b # {c}, 'd'", "weight_decay": 1e-5}
    original = load_recipe(write("lr: 0.2\n"), overrides)
    text = sources.format_recipe(original)
    lines = text.splitlines()
    assert [line.split(":")[0] for line in lines] == list(KEYS)
    assert "lr: 0.2  # configs/x.yaml" in lines
    assert "seed: 42  # default" in lines
    assert "model_args: {num_blocks: [1, 1, 2, 1], widths: [8, 8, 8, 16, 16]}  # command line" in lines
    assert load_recipe(write(text, "outputs/recipe.yaml")) == original


@pytest.mark.parametrize(
    ("overrides", "environment", "lines"),
    [
        ({}, {}, ["# lr 0.1 at global batch 128 (1 device x 128)"]),
        (
            {"lr_per_batch": 256, "batch_size": 32, "gradient_accumulation_steps": 2},
            {"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "8"},
            ["# lr 0.1 per 256 -> 0.2 at global batch 512 (8 devices x 32 x 2)"],
        ),
        (
            {"lr_per_batch": 256, "min_lr": 1e-3},
            {"OMPI_COMM_WORLD_SIZE": "4"},
            [
                "# lr 0.1 per 256 -> 0.2 at global batch 512 (4 devices x 128)",
                "# min_lr 0.001 per 256 -> 0.002 at global batch 512 (4 devices x 128)",
            ],
        ),
        (
            {"lr_per_batch": 256, "distribute": False},
            {"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "8"},
            ["# lr 0.1 per 256 -> 0.05 at global batch 128 (1 device x 128)"],
        ),
    ],
)
def test_explain_recipe_adds_the_learning_rate_of_this_run(write, monkeypatch, overrides, environment, lines):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    chosen = load_recipe(None, overrides)
    text = sources.explain_recipe(chosen)
    if chosen.lr_per_batch:
        batch = int(lines[0].split("global batch ")[1].split()[0])
        assert f"-> {schedule.scaled_lr(chosen.lr, chosen.lr_per_batch, batch):g} " in lines[0]
    assert text.removeprefix(sources.format_recipe(chosen)).splitlines() == lines
    assert load_recipe(write(text)) == chosen


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


def test_command_line_overrides_the_file_in_both_spellings(write):
    path = write("batch_size: 16\nlr: 0.2\ndataset: mnist5k\n")
    parsed = parse("-c", path, "--batch-size", "8", "--scale=0.2,1", "--val_while_train", "false", "--lr", "5e-2")
    assert parsed == load_recipe(path, {"batch_size": 8, "scale": [0.2, 1.0], "val_while_train": False, "lr": 0.05})
    assert parsed.sources["batch_size"] == "command line"
    assert parsed.sources["dataset"] == path


def test_of_two_spellings_the_later_wins():
    assert parse("--data_dir", "x", "--batch-size", "8", "--batch_size", "4").batch_size == 4


def test_only_given_arguments_are_overrides():
    parser = entry.ArgumentParser()
    sources.add_recipe_arguments(parser)
    assert sources.overrides_from_arguments(parser.parse_args(["--epoch-size", "3"])) == {"epoch_size": "3"}


def test_a_run_on_a_folder_needs_its_path():
    with pytest.raises(RecipeError) as caught:
        parse()
    assert str(caught.value) == (
        "data_dir is not given and dataset (='imagenet', the default) reads a folder with train/ and val/; "
        "add --data_dir FOLDER, or --dataset mnist5k for the built-in data"
    )
    assert parse("--data_dir", "photos").data_dir == "photos"
    assert parse("--dataset", "mnist5k").data_dir == ""
    assert parse("--dataset", "fashion_mnist").data_dir == ""


@pytest.mark.parametrize(
    ("dataset", "files"),
    [
        ("mnist", "train-images-idx3-ubyte and the other three files"),
        ("cifar10", "the archive's data_batch_1 to 5 and test_batch"),
        ("cifar100", "the archive's train and test"),
    ],
)
def test_a_run_on_published_files_needs_their_folder(dataset, files):
    with pytest.raises(RecipeError) as caught:
        parse("--dataset", dataset)
    assert str(caught.value) == (
        f"data_dir is not given and dataset (={dataset!r} on the command line) reads a folder with {files}; "
        "add --data_dir FOLDER, or --dataset mnist5k for the built-in data"
    )


def test_help_shows_every_key_once_with_comment_and_default(monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")  # wrapping would break words at their hyphens
    parser = entry.ArgumentParser(prog="train.py", usage="%(prog)s")
    sources.add_recipe_arguments(parser)
    words = " ".join(parser.format_help().split())
    for name, key in KEYS.items():
        assert words.count(f" --{name} {key.kind.metavar}") == 1
        assert f"{key.comment} (default: " in words
    assert "-dir" not in words
    assert "(default: [0.08, 1.0])" in words
    assert "(default: repvgg_a0)" in words
