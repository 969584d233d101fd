"""MindCV's recipes: every key of theirs honoured or refused, and their defaults where the file is silent."""

from pathlib import Path

import pytest
import yaml

from mindrepvgg.errors import RecipeError
from mindrepvgg.recipe import mindcv_keys, provenance
from mindrepvgg.recipe.mindcv_keys import mindcv_notice
from mindrepvgg.recipe.schema import KEYS
from mindrepvgg.recipe.sources import explain_recipe, load_recipe
from mindrepvgg.text import plain

CONFIGS = Path(__file__).parents[2] / "configs"

# The keys of MindCV's parser with their defaults: of the newest, and what older ones had besides.
PARSER = {
    "mode": 0,
    "distribute": False,
    "val_while_train": False,
    "val_interval": 1,
    "log_interval": 100,
    "seed": 42,
    "device_target": "Ascend",
    "dataset": "imagenet",
    "data_dir": "./",
    "train_split": "train",
    "val_split": "val",
    "dataset_download": False,
    "num_parallel_workers": 8,
    "shuffle": True,
    "num_samples": None,
    "batch_size": 128,
    "drop_remainder": True,
    "image_resize": 224,
    "scale": [0.08, 1.0],
    "ratio": [0.75, 1.333],
    "hflip": 0.5,
    "vflip": 0.0,
    "color_jitter": 0.4,
    "interpolation": "bilinear",
    "auto_augment": None,
    "aug_splits": 0,
    "re_prob": 0.0,
    "re_scale": [0.02, 0.33],
    "re_ratio": [0.3, 3.3],
    "re_value": 0,
    "re_max_attempts": 10,
    "mean": [0.485 * 255, 0.456 * 255, 0.406 * 255],
    "std": [0.229 * 255, 0.224 * 255, 0.225 * 255],
    "crop_pct": 0.875,
    "mixup": 0.0,
    "cutmix": 0.0,
    "cutmix_prob": 1.0,
    "aug_repeats": 0,
    "model": "mobilenet_v2_035_224",
    "num_classes": None,
    "in_channels": 3,
    "drop_rate": None,
    "drop_path_rate": None,
    "pretrained": False,
    "ckpt_path": "",
    "resume_opt": False,
    "keep_checkpoint_max": 10,
    "ckpt_save_dir": "./ckpt",
    "ckpt_save_interval": 1,
    "ckpt_save_policy": "latest_k",
    "epoch_size": 90,
    "dataset_sink_mode": True,
    "ema": False,
    "ema_decay": 0.9999,
    "clip_grad": False,
    "clip_value": 15.0,
    "layer_decay": None,
    "gradient_accumulation_steps": 1,
    "opt": "adam",
    "momentum": 0.9,
    "weight_decay": 1e-6,
    "use_nesterov": False,
    "weight_decay_filter": "disable",
    "eps": 1e-10,
    "scheduler": "cosine_decay",
    "lr": 0.001,
    "min_lr": 1e-6,
    "warmup_epochs": 3,
    "warmup_factor": 0.0,
    "decay_epochs": 100,
    "decay_rate": 0.9,
    "multi_step_decay_milestones": [30, 60, 90],
    "lr_epoch_stair": False,
    "num_cycles": 1,
    "cycle_decay": 1.0,
    "loss": "CE",
    "label_smoothing": 0.0,
    "aux_factor": 0.0,
    "reduction": "mean",
    "amp_level": "O0",
    "val_amp_level": "O0",
    "amp_cast_list": None,
    "loss_scale_type": "fixed",
    "loss_scale": 1.0,
    "drop_overflow_update": False,
    "eval_shuffle": False,
}
OLD = {
    "dynamic_loss_scale": False,
    "filter_bias_and_bn": True,
    "enable_modelarts": False,
    "multi_data_url": "/cache/data/",
    "data_url": "/cache/data/",
    "ckpt_url": "/cache/output/",
    "train_url": "/cache/output/",
    "config": "configs/repvgg/repvgg_a0_ascend.yaml",
}

# What makes the defaults a recipe that can run: MindCV's own are for another network and optimizer, and longer.
RUNS = {"model": "repvgg_a0", "opt": "momentum", "decay_epochs": 87}
# A file that is MindCV's, and nothing else.
BARE = {"dataset_download": False, **RUNS}

# What MindCV's yaml files for RepVGG have in common, and what each has of its own.
COMMON = {
    **{"mode": 0, "distribute": True, "num_parallel_workers": 8, "val_while_train": True},
    **{"dataset": "imagenet", "data_dir": "imagenet", "shuffle": True, "dataset_download": False, "batch_size": 32},
    **{"drop_remainder": True, "image_resize": 224, "scale": [0.08, 1.0], "ratio": [0.75, 1.333], "hflip": 0.5},
    **{"interpolation": "bilinear", "crop_pct": 0.875, "num_classes": 1000, "pretrained": False, "ckpt_path": ""},
    **{"keep_checkpoint_max": 10, "ckpt_save_dir": "./ckpt", "epoch_size": 240, "dataset_sink_mode": True},
    **{"amp_level": "O0", "loss": "CE", "label_smoothing": 0.1, "scheduler": "cosine_decay", "lr": 0.05},
    **{"warmup_epochs": 5, "decay_epochs": 235, "opt": "momentum", "momentum": 0.9, "weight_decay": 0.0001},
    **{"loss_scale_type": "dynamic", "drop_overflow_update": True, "use_nesterov": False, "eps": 1e-8},
}
OWN = {
    "repvgg_a0": {"epoch_size": 400, "warmup_epochs": 10, "decay_epochs": 390, "interpolation": "bicubic"},
    "repvgg_a1": {},
    "repvgg_a2": {},
    "repvgg_b0": {},
    "repvgg_b1": {},
    "repvgg_b1g2": {"interpolation": "bicubic", "amp_level": "O2", "scheduler": "warmup_cosine_decay"},
    "repvgg_b1g4": {"interpolation": "bicubic", "amp_level": "O2"},
    "repvgg_b2": {"lr": 0.4},
    "repvgg_b2g4": {"amp_level": "O2"},
    "repvgg_b3": {"lr": 0.4, "auto_augment": "autoaug", "mixup": 0.8, "cutmix": 1.0},
}


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load a mapping as the yaml file x.yaml."""
    monkeypatch.chdir(tmp_path)

    def load_values(values, overrides=None):
        Path("x.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        return load_recipe("x.yaml", overrides)

    return load_values


@pytest.fixture
def refusal(load):
    """The one line a mapping is refused with."""

    def refuse(values):
        with pytest.raises(RecipeError) as caught:
            load(values)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return refuse


def test_every_key_of_mindcv_is_known():
    """And the table of rules has no key that MindCV has not."""
    assert {*PARSER, *OLD} <= {*KEYS, *mindcv_keys.RULES}
    assert set(mindcv_keys.RULES) <= {*PARSER, *OLD}


def test_defaults_are_mindcvs_where_they_differ():
    place = {"distribute", "device_target", "data_dir"}
    changed, _ = mindcv_keys.translate({key: PARSER[key] for key in PARSER if key not in place}, "x.yaml")
    differing = {name: value for name, value in changed.items() if value != plain(KEYS[name].default)}
    differing.pop("eps")  # MindCV makes no use of it with an optimizer that is here
    differing.pop("dataset")  # the same by our word
    assert differing == mindcv_keys.DEFAULTS


@pytest.mark.parametrize("old", [{}, OLD], ids=["new", "old"])
def test_a_default_stated_or_left_out_is_the_same(load, old):
    here = {"distribute": True, "device_target": "auto", "data_dir": "", "eps": 1e-8}
    stated = load({**PARSER, **{key: old[key] for key in old if key != "filter_bias_and_bn"}, **RUNS, **here})
    assert stated == load(BARE)


def test_values_of_the_file_lie_over_mindcvs_defaults_and_below_the_command_line(load):
    loaded = load({**BARE, "lr": 0.05, "log_interval": 7}, {"log_interval": "9", "color_jitter": "0.1"})
    assert (loaded.lr, loaded.log_interval, loaded.color_jitter, loaded.min_lr) == (0.05, 9, 0.1, 1e-6)
    keys = ("lr", "log_interval", "color_jitter", "min_lr", "seed")
    origins = ["x.yaml", "command line", "command line", "MindCV's default for x.yaml", "default"]
    assert [loaded.sources[key] for key in keys] == origins


def test_a_base_lies_over_mindcvs_defaults(load, tmp_path):
    (tmp_path / "base.yaml").write_text("lr: 0.3\ncolor_jitter: 0.2\n")
    loaded = load({**BARE, "base": "base.yaml", "color_jitter": 0.1, "lr_per_batch": 256})
    assert (loaded.lr, loaded.color_jitter, loaded.weight_decay, loaded.lr_per_batch) == (0.3, 0.1, 1e-6, 256)


def test_a_file_of_mindcvs_can_be_the_base(load, tmp_path):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({**BARE, "aux_factor": 0.2}))
    loaded = load({"base": "base.yaml", "pretrained": "weights.ckpt", "min_lr": 0})
    assert (loaded.pretrained, loaded.aux_weight, loaded.min_lr, loaded.epoch_size) == ("weights.ckpt", 0.2, 0.0, 90)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"lr": 0.1, "ckpt_path": ""}, "ckpt_path"),
        ({"resume_opt": False}, "resume_opt"),
        ({"pretrained": False}, "pretrained"),
        ({"weight_decay_filter": "disable"}, "weight_decay_filter"),
        ({"weight_decay_filter": "auto"}, "weight_decay_filter"),
        ({"pretrained": "a.ckpt", "weight_decay_filter": "norm_and_bias", "distribute": True}, None),
        (load_recipe().to_dict(), None),
        ({}, None),
    ],
    ids=str,
)
def test_what_tells_a_file_of_mindcvs(values, found):
    assert mindcv_keys.recognise(values) == found


def test_a_file_of_ours_keeps_our_defaults(load):
    loaded = load({"opt": "momentum", "lr": 0.05, "mean": [0.5, 0.5, 0.5], "distribute": False})
    assert (loaded.weight_decay, loaded.color_jitter, loaded.distribute) == (1e-4, 0.0, False)
    assert mindcv_notice(loaded) is None


def test_the_user_is_told(load):
    assert mindcv_notice(load(BARE)) == (
        "x.yaml is read as a recipe of MindCV's: what it leaves out has MindCV's defaults (--show_config lists them)"
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"aux_factor": 0.3}, {"aux_weight": 0.3}),
        ({"mean": [123.675, 116.28, 103.53]}, {"mean": (0.485, 0.456, 0.406)}),
        ({"mean": [0.485 * 255, 0.456 * 255, 0.406 * 255]}, {"mean": (0.485, 0.456, 0.406)}),
        ({"std": [58.395, 57.12, 57.375]}, {"std": (0.229, 0.224, 0.225)}),
        ({"mean": [0.5, 0.5, 0.5], "std": [1.0, 1, 1]}, {"mean": (0.5, 0.5, 0.5), "std": (1.0, 1.0, 1.0)}),
        ({"mean": [0, 0, 0], "std": [255, 255, 255]}, {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}),
        ({"color_jitter": None}, {"color_jitter": 0.0}),
        ({"color_jitter": 0.2}, {"color_jitter": 0.2}),
        ({"num_classes": None}, {"num_classes": None}),
        ({"num_classes": 20}, {"num_classes": 20}),
        ({"distribute": True}, {"distribute": "auto"}),
        ({"distribute": False}, {"distribute": False}),
        ({"scheduler": "warmup_cosine_decay", "decay_epochs": 80}, {"scheduler": "cosine_decay", "decay_epochs": 80}),
        ({"weight_decay_filter": "disable"}, {"weight_decay_filter": "all"}),
        ({"weight_decay_filter": "auto"}, {"weight_decay_filter": "norm"}),
        ({"weight_decay_filter": "norm_and_bias"}, {"weight_decay_filter": "norm_and_bias"}),
        ({"filter_bias_and_bn": True}, {"weight_decay_filter": "norm_and_bias"}),
        ({"filter_bias_and_bn": False}, {"weight_decay_filter": "norm"}),
        ({"filter_bias_and_bn": "False"}, {"weight_decay_filter": "norm"}),
        (
            {"dynamic_loss_scale": True},
            {"loss_scale_type": "dynamic", "drop_overflow_update": True, "loss_scale_window": 1000},
        ),
        ({"dynamic_loss_scale": False}, {"loss_scale_type": "fixed", "drop_overflow_update": False}),
        (
            {"loss_scale_type": "dynamic", "drop_overflow_update": True, "loss_scale": 1024},
            {"loss_scale_type": "dynamic", "drop_overflow_update": True, "loss_scale": 1024.0},
        ),
        ({"loss_scale_type": "fixed"}, {"loss_scale_type": "fixed", "drop_overflow_update": False}),
        ({"ckpt_path": "a.ckpt", "pretrained": False}, {"pretrained": "a.ckpt"}),
        ({"ckpt_path": "a.ckpt", "pretrained": True}, {"pretrained": "a.ckpt"}),
        ({"ckpt_path": "a.ckpt", "resume_opt": False}, {"pretrained": "a.ckpt"}),
        ({"ckpt_path": "", "pretrained": False}, {"pretrained": ""}),
        ({"ckpt_path": None}, {"pretrained": ""}),
        ({"pretrained": False}, {"pretrained": ""}),
        ({"pretrained": True, "model": "repvgg_a1"}, {"pretrained": "mindcv/repvgg_a1"}),
        ({"pretrained": True, "ckpt_path": "", "model": "repvgg_a1"}, {"pretrained": "mindcv/repvgg_a1"}),
        ({"pretrained": "a.ckpt"}, {"pretrained": "a.ckpt"}),
        ({"ckpt_save_policy": "top_k", "val_while_train": True}, {"ckpt_save_policy": "top_k"}),
        (
            {"ckpt_save_policy": None, "keep_checkpoint_max": 5},
            {"ckpt_save_policy": "latest_k", "keep_checkpoint_max": 1_000_000},
        ),
        ({"keep_checkpoint_max": 0}, {"keep_checkpoint_max": 1_000_000}),
        ({"keep_checkpoint_max": 5}, {"keep_checkpoint_max": 5}),
        ({"opt": "adamw", "eps": 1e-10}, {"opt": "adamw", "eps": 1e-8}),
        ({"opt": "momentum", "eps": 1e-10}, {"opt": "momentum", "eps": 1e-10}),
        ({"dataset_sink_mode": False}, {"dataset_sink_mode": False}),
        ({"auto_augment": "None"}, {"auto_augment": None}),
        ({"amp_level": "O3", "amp_cast_list": None, "val_amp_level": "O0"}, {"amp_level": "O3"}),
        ({"scheduler": "constant", "epoch_size": 5}, {"decay_epochs": None, "min_lr": 0.0, "warmup_epochs": 3}),
        ({"scheduler": "step_decay", "epoch_size": 5}, {"decay_epochs": 100, "decay_rate": 0.9, "min_lr": 0.0}),
        ({"scheduler": "step_decay", "decay_epochs": 30, "min_lr": 1e-5}, {"decay_epochs": 30, "min_lr": 0.0}),
        ({"scheduler": "polynomial_decay", "decay_epochs": 30, "min_lr": 1e-5}, {"decay_epochs": None, "min_lr": 0.0}),
        ({"scheduler": "one_cycle", "warmup_epochs": 0, "min_lr": 1e-5}, {"decay_epochs": None, "min_lr": 1e-5}),
        ({"lr_per_batch": 256, "sync_bn": True, "ema": True}, {"lr_per_batch": 256, "sync_bn": True, "ema": True}),
        ({"data_url": "s3://x", "enable_modelarts": False}, {"data_dir": ""}),
        ({"drop_rate": 0.0, "drop_path_rate": None}, {}),
    ],
    ids=str,
)
def test_values_are_put_into_our_keys(load, given, expected):
    base = {key: value for key, value in BARE.items() if key != "decay_epochs" or "scheduler" not in given}
    loaded = load({**base, **given})
    assert {key: getattr(loaded, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            {"dataset_download": True},
            "dataset_download (=True in x.yaml) would download the data set; not here: give its folder as data_dir",
        ),
        ({"train_split": "training"}, "train_split (='training' in x.yaml) would train on another folder than train/"),
        ({"val_split": "test"}, "val_split (='test' in x.yaml) would validate on another folder than val/"),
        ({"num_samples": 1000}, "num_samples (=1000 in x.yaml) would train on that many images"),
        ({"aug_splits": 3}, "aug_splits (=3 in x.yaml) would train on several views of an image at once; not here"),
        ({"re_max_attempts": 3}, "re_max_attempts (=3 in x.yaml) would try another number of places to erase"),
        ({"drop_rate": 0.2}, "drop_rate (=0.2 in x.yaml) would drop features at random; RepVGG has no dropout"),
        ({"drop_path_rate": 0.2}, "drop_path_rate (=0.2 in x.yaml) would drop blocks at random; RepVGG cannot"),
        ({"layer_decay": 0.75}, "layer_decay (=0.75 in x.yaml) counts layers as MindCV does; here it counts blocks"),
        ({"reduction": "sum"}, "reduction (='sum' in x.yaml) would not average the loss over a batch"),
        ({"val_amp_level": "O2"}, "val_amp_level (='O2' in x.yaml) would have validation compute in half precision"),
        ({"amp_cast_list": "[nn.Conv2d]"}, "amp_cast_list (='[nn.Conv2d]' in x.yaml) would choose the cells"),
        ({"eval_shuffle": True}, "eval_shuffle (=True in x.yaml) would shuffle the validation images"),
        (
            {"ckpt_path": "a.ckpt", "resume_opt": True},
            "resume_opt (=True in x.yaml) would go on with a run; here mindrepvgg train --resume does, exactly: "
            "remove it",
        ),
        ({"enable_modelarts": True}, "enable_modelarts (=True in x.yaml) would fetch and store files on ModelArts"),
        (
            {"loss_scale_type": "auto"},
            "loss_scale_type (='auto' in x.yaml) would leave the loss scale to mindspore.Model, which has no part "
            "here: set fixed or dynamic",
        ),
        (
            {"loss_scale_type": "dynamic"},
            "drop_overflow_update (=False, MindCV's default for x.yaml) needs loss_scale_type fixed: ",
        ),
        (
            {"loss_scale_type": "dynamic", "drop_overflow_update": False},
            "drop_overflow_update (=False in x.yaml) needs loss_scale_type fixed: ",
        ),
        ({"filter_bias_and_bn": "maybe"}, "filter_bias_and_bn (='maybe' in x.yaml) must be true or false"),
        ({"dynamic_loss_scale": 2}, "dynamic_loss_scale (=2 in x.yaml) must be true or false"),
        ({"opt": "lamb"}, "opt (='lamb' in x.yaml) must be momentum, sgd or adamw"),
        ({"opt": "adam"}, "opt (='adam' in x.yaml) must be momentum, sgd or adamw"),
        ({"scheduler": "cyclic"}, "scheduler (='cyclic' in x.yaml) must be cosine_decay, step_decay, "),
        ({"device_target": "GPU"}, "device_target (='GPU' in x.yaml) must be auto, CPU or Ascend"),
        ({"dataset": "coco"}, "dataset (='coco' in x.yaml) must be folder, imagenet, mnist5k, mnist, "),
        ({"amp_level": "O1"}, "amp_level (='O1' in x.yaml) must be O0, O2 or O3"),
        ({"aux_factor": -1}, "aux_weight (=-1 in x.yaml, from aux_factor: -1) must be a number of at least 0"),
        ({"mean": [123.675, "x", 1]}, "mean (=[0.485, 'x', 0.003921569] in x.yaml, from mean: [123.675, 'x', 1]) must"),
        ({"mean": []}, "mean (=[] in x.yaml) must have one number for each of in_channels"),
        ({"color_jitter": [0.4, 0.4, 0.4]}, "color_jitter (=[0.4, 0.4, 0.4] in x.yaml) must be a number"),
        ({"pretrained": 3}, "pretrained (=3 in x.yaml) must be one line of text"),
        ({"opt": ["adamw"]}, "opt (=['adamw'] in x.yaml) must be momentum, sgd or adamw"),
        (
            {"filter_bias_and_bn": True, "weight_decay_filter": "disable"},
            "filter_bias_and_bn (=True in x.yaml) and weight_decay_filter (='disable' in x.yaml) set "
            "weight_decay_filter differently; keep one",
        ),
        (
            {"ckpt_path": "a.ckpt", "pretrained": "b.ckpt"},
            "ckpt_path (='a.ckpt' in x.yaml) and pretrained (='b.ckpt' in x.yaml) set pretrained differently; keep one",
        ),
        ({"bach_size": 3}, "unknown key 'bach_size' in x.yaml; did you mean 'batch_size'?"),
    ],
    ids=str,
)
def test_what_is_not_done_here_is_refused_with_the_reason(refusal, given, line):
    assert refusal({**BARE, **given}).startswith(line)


def test_mindcvs_own_defaults_for_another_network_are_refused(refusal):
    assert refusal({"dataset_download": False, "model": "repvgg_a0"}).startswith(
        "opt (='adam', MindCV's default for x.yaml) must be momentum, sgd or adamw"
    )
    assert refusal({key: value for key, value in BARE.items() if key != "decay_epochs"}) == (
        "warmup_epochs (=3, MindCV's default for x.yaml) and decay_epochs (=100, MindCV's default for x.yaml) together "
        "must be at most epoch_size (=90, MindCV's default for x.yaml); decay_epochs null takes what is left"
    )


def test_a_network_that_is_not_ours_is_mindcvs(load, refusal):
    bare = {key: value for key, value in BARE.items() if key != "model"}
    assert load(bare).model == "mindcv/mobilenet_v2_035_224"
    loaded = load({**bare, "model": "convit_tiny", "drop_rate": 0.1, "drop_path_rate": 0.2})
    assert (loaded.model, loaded.model_args) == ("mindcv/convit_tiny", {"drop_rate": 0.1, "drop_path_rate": 0.2})
    assert refusal({**bare, "model": "resnet19"}).startswith(
        "model in x.yaml, from model: 'resnet19': model (='mindcv/resnet19') is no network of the installed MindCV; "
        "did you mean mindcv/res"
    )


def test_show_config_tells_where_values_come_from(load):
    lines = explain_recipe(
        load({**BARE, "distribute": True, "aux_factor": 0.2, "filter_bias_and_bn": False})
    ).splitlines()
    for line in (
        "distribute: auto  # x.yaml, from distribute: True",
        "aux_weight: 0.2  # x.yaml, from aux_factor: 0.2",
        "weight_decay_filter: norm  # x.yaml, from filter_bias_and_bn: False",
        "model: repvgg_a0  # x.yaml",
        "color_jitter: 0.4  # MindCV's default for x.yaml",
        "seed: 42  # default",
    ):
        assert line in lines


def test_what_is_shown_is_a_recipe_of_ours(load, tmp_path):
    """Loaded again, MindCV's defaults are no longer needed."""
    loaded = load({**COMMON, "model": "repvgg_a1"})
    (tmp_path / "shown.yaml").write_text(explain_recipe(loaded))
    again = load_recipe("shown.yaml")
    assert again == loaded
    assert mindcv_notice(again) is None


@pytest.mark.parametrize("model", OWN)
def test_our_configs_equal_mindcvs_files(load, model):
    theirs = load({**COMMON, "model": model, **OWN[model]})
    ours = load_recipe(CONFIGS / "mindcv" / f"{model}.yaml", {"data_dir": "imagenet", "num_classes": 1000})
    assert ours.to_dict() == theirs.to_dict()


@pytest.mark.parametrize("model", ["repvgg_a0", "repvgg_b2"])
def test_an_older_file_of_mindcvs_spares_bn_and_biases(load, model):
    older = load({**COMMON, "model": model, **OWN[model], "filter_bias_and_bn": True})
    newer = load({**COMMON, "model": model, **OWN[model]})
    assert older == newer.replace(weight_decay_filter="norm_and_bias")


def test_no_source_of_ours_is_taken_for_mindcvs():
    assert not any(
        name.startswith(provenance.MINDCV) for name in (provenance.DEFAULT, provenance.COMMAND_LINE, provenance.CODE)
    )
