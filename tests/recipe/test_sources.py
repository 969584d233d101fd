"""Where a recipe's values come from: files and their bases, the command line, a checkpoint; and back to yaml."""

import json
import os

import numpy as np
import pytest
import yaml
from support.recipes import parse, refusal

from mindrepvgg.cli import entry
from mindrepvgg.errors import RecipeError
from mindrepvgg.recipe import sources
from mindrepvgg.recipe.schema import KEYS, Recipe
from mindrepvgg.recipe.sources import load_recipe, recipe_from_dict
from mindrepvgg.training import schedule


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


def test_values_from_python_that_are_no_values_are_refused_in_one_line():
    loop = []
    loop.append(loop)
    for value in (loop, np.arange(3), {"a": loop}, 10**5000, {"x" * 10**5: 1}, object(), "a\0b", "\ud800"):
        for key in ("model", "model_args", "num_classes", "lr", "mean", "image_resize", "mode", "decay_epochs"):
            message = refusal(None, {key: value})
            assert len(message) < 700
            assert message.isprintable()


def test_a_long_chain_of_bases_is_refused(write):
    for number in range(1, 30):
        write(f"base: {number}.yaml\n", f"configs/{number - 1}.yaml")
    message = refusal("configs/0.yaml")
    assert message.startswith("the `base` keys lead through more than 20 files: configs/0.yaml -> configs/1.yaml")
    assert len(message) < 300


def test_unusable_base_is_refused(write):
    path = write("base: none.yaml\n")
    assert refusal(path) == (
        "configs/none.yaml does not exist, expected a recipe (the base of configs/x.yaml); check the path"
    )
    path = write("base: 3\n")
    assert refusal(path) == ("base (=3 in configs/x.yaml) must be another yaml file's path, relative to this one")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- lr\n- 0.1\n", "configs/x.yaml must hold lines `key: value`, it holds a list"),
        ("lr 0.1\n", "configs/x.yaml must hold lines `key: value`, it holds a str"),
        ("seed: 1\nlr: 0.1\nlr: 0.2\n", "configs/x.yaml, line 3: key 'lr' is given twice; keep one"),
        ("seed: 1\nlr: 'a\n", "configs/x.yaml, line 3: found unexpected end of stream"),
        ("seed: 1\nscale: [0.1, 1.0\nlr: 1\n", "configs/x.yaml, line 3: expected ',' or ']', but got ':'"),
        ("lr: !!python/object:a.b {}\n", "configs/x.yaml, line 1: 'tag:yaml.org,2002:python/object:a.b' is not read"),
        ("seed: 2026-99-99\n", "configs/x.yaml, line 1: '2026-99-99' is not of yaml's type 'timestamp'"),
        ("seed: \0\n", r"configs/x.yaml, line 1: '\x00' is not allowed in yaml"),
        ("mode: 0\nseed: &a [*a]\n", "configs/x.yaml, line 2: the alias '*a' is not read; write its value out"),
        (r'data_dir: "a\0b"', r"configs/x.yaml, line 1: 'a\x00b' holds a character that no text and no path can have"),
        (r'data_dir: "a\ud800b"', r"configs/x.yaml, line 1: 'a\ud800b' holds a character that no text"),
        (r'base: "a\0b"', r"configs/x.yaml, line 1: 'a\x00b' holds a character that no text"),
        ("a" * 1000 + ": 1", "unknown key 'aaa"),
        ("model: " + "a" * 10_000, "model in configs/x.yaml: "),
        ("lr: " + "a" * 10_000, "lr (='aaa"),
    ],
)
def test_unreadable_yaml_is_refused_with_the_line(write, text, message):
    assert refusal(write(text)).startswith(message)


def test_a_missing_file_a_folder_and_bytes_are_refused(write, tmp_path):
    write("", "configs/empty.yaml")
    os.mkfifo("pipe.yaml")
    assert refusal("no.yaml") == "no.yaml does not exist, expected a recipe; check the path"
    assert refusal("configs") == "configs is a folder, expected a recipe"
    assert refusal("pipe.yaml") == "pipe.yaml is a pipe, expected a recipe"
    assert refusal("/dev/zero") == "/dev/zero is a device, expected a recipe"
    write("#" * 2**17, "configs/large.yaml")
    assert refusal("configs/large.yaml").startswith("configs/large.yaml has 131,072 bytes, more than the 65,536 bytes")
    (tmp_path / "image.yaml").write_bytes(b"\xff\xd8\xff")
    assert refusal("image.yaml") == "image.yaml, line 1: this is not UTF-8 text, expected yaml"


def test_an_empty_file_changes_nothing(write):
    assert load_recipe(write("# all defaults\n")) == Recipe()


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
    assert "the extra tensorboard, which is tensorboardX" in words
    assert "pip install tensorboard; tensorboard --logdir CKPT_SAVE_DIR" in words
    for python in ("True", "False", "None"):
        assert python not in words, "a word that yaml does not have"
