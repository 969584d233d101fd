"""What keys ask of each other: the text of every refusal, and what goes together."""

import pytest
from support.recipes import parse, refusal

from mindrepvgg.errors import RecipeError
from mindrepvgg.recipe import rules
from mindrepvgg.recipe.schema import KEYS, Recipe
from mindrepvgg.recipe.sources import load_recipe, recipe_from_dict


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
    ("overrides", "message"),
    [
        (
            {"image_resize": "32,16", "crop_padding": 16},
            "crop_padding (=16 on the command line) must be less than image_resize (=[32, 16] on the command line), so",
        ),
        (
            {"image_resize": 16384},
            "batch_size (=128, the default) images of image_resize (=16384 on the command line) need more than 8 GiB a "
            "step; lower one of them",
        ),
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
            {"custom_l2": True, "block": "acb", "block_where": "stage1.*"},
            "custom_l2 (=True on the command line) needs blocks of RepVGG or QARepVGG, and repvgg_a0 with acb blocks "
            "at stage1.* has acb blocks, for which none is known; leave it out",
        ),
        (
            {"scales": "x.pth"},
            "scales (='x.pth' on the command line) is for networks with RepOpt-VGG's blocks (repopt_vgg_b1 ...), and "
            "repvgg_a0 has none; leave it out",
        ),
        (
            {"model": "repopt_vgg_b1", "block": "linear_addition", "scales": "initial"},
            "scales (='initial' on the command line) is for networks with RepOpt-VGG's blocks",
        ),
        (
            {"model": "repopt_vgg_b1", "scales": "x.pth", "clip_grad": True},
            "clip_grad (=True on the command line): RepOptimizer takes no clipped gradients: their norm would be",
        ),
        (
            {"model": "repopt_vgg_b1", "scales": "x.pth", "pretrained": "y.ckpt"},
            "pretrained (='y.ckpt' on the command line) does not go with scales (='x.pth' on the command line), as it",
        ),
        (
            {"model": "repopt_vgg_b1", "scales": "x.pth", "custom_l2": True},
            "custom_l2 (=True on the command line) needs blocks of RepVGG or QARepVGG, and repopt_vgg_b1 has repopt",
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
            {"quantization_per_channel": False},
            "quantization_per_channel (=False on the command line) needs quantization qat: nothing else has scales",
        ),
        (
            {"distillation": 0.5},
            "distillation (=0.5 on the command line) needs quantization: the float network of pretrained is",
        ),
        (
            {"quantization": "qat", "pretrained": "x.ckpt", "recompute": True},
            "recompute (=True on the command line) must be false with quantization (='qat' on the command line), whose",
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
        {"quantization": "qat", "pretrained": "x.ckpt", "quantization_per_channel": False, "distillation": 0.5},
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
        (
            {"block": "abc"},
            "block (='abc') must be one of repvgg, qarepvgg, mobileone, acb, dbb, plain, repopt_vgg, linear_addition; ",
        ),
        ({"block": "acb", "block_where": "x"}, "block_where (='x') matches no block of repvgg_a0; they are stage0, "),
        ({"block_where": "stage1.*"}, "block_where (=('stage1.*',)) needs block, the kind of these blocks"),
        ({"model": "mobileone_s1", "block": "dbb"}, "mobileone_s1 takes no block (='dbb')"),
        (
            {"model_args": {"block": "acb"}},
            "model_args on the command line holds block, which is a key of its own",
        ),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(overrides, message):
    assert refusal(None, overrides).startswith(message)


def test_a_run_on_a_folder_needs_its_path():
    with pytest.raises(RecipeError) as caught:
        parse()
    assert str(caught.value) == (
        "data_dir is not given and dataset (='folder', the default) reads a folder with one folder of pictures a "
        "class, or train/ and val/ with these; add --data_dir FOLDER, or --dataset mnist5k for the built-in data"
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


def test_a_folder_that_the_built_in_data_would_not_read_is_refused():
    message = r"^data_dir \(='photos'\) would not be read: dataset \(='mnist5k' on the command line\) is built in; "
    with pytest.raises(RecipeError, match=message):
        parse("--dataset", "mnist5k", "--data_dir", "photos")
    rules.check_data_dir(recipe_from_dict({"dataset": "mnist5k", "data_dir": "photos"}))  # as an old run may have it
