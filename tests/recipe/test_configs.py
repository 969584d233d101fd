"""The recipes in configs/: each loads, is the published one, says where it comes from, and states differences only."""

import math
import re
from pathlib import Path

import pytest
import yaml
from support.golden import ACCURACY

from mindrepvgg.errors import RecipeError
from mindrepvgg.models import variants
from mindrepvgg.models.shapes import parameter_shapes
from mindrepvgg.models.variants import DEPLOY
from mindrepvgg.recipe import configs
from mindrepvgg.recipe.schema import KEYS
from mindrepvgg.recipe.sources import load_recipe
from mindrepvgg.text import plain

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"

FAMILY = [name for name in variants.published_models() if name.startswith("repvgg")]
FILES = sorted(path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml"))
PAPER = [Path(f"{model}.yaml") for model in FAMILY]
OPT = [Path(f"{model}.yaml") for model in variants.published_models() if model.startswith("repopt")]
QA = [Path(f"{model}.yaml") for model in variants.published_models() if model.startswith("qarepvgg")]
OWN = [Path("finetune.yaml"), Path("folder.yaml")]
CIFAR = [Path(f"cifar{classes}_repvgg_a0.yaml") for classes in (100, 10)]
SMALL = [
    *CIFAR,
    *(Path(f"cifar10_{name}.yaml") for name in ("repopt", "repopt_search", "small")),
    Path("repopt_search.yaml"),
    Path("fashion_mnist.yaml"),
    *(Path(f"int8_{family}_{size}.yaml") for family in ("repvgg", "qarepvgg") for size in ("s14", "m8")),
    *OWN,
    Path("quickstart.yaml"),
    Path("quickstart_qat.yaml"),
]
MINDCV = [path for path in FILES if path.parts[0] == "mindcv"]

# What the published recipes say, in the schema's terms.
S = {
    **{"epoch_size": 120, "scheduler": "cosine_decay", "lr": 0.1, "min_lr": 0.0, "warmup_epochs": 0},
    **{"lr_per_batch": None, "opt": "momentum", "momentum": 0.9, "use_nesterov": False, "weight_decay": 1e-4},
    **{"weight_decay_filter": "paper", "loss": "CE", "label_smoothing": 0.0, "mixup": 0.0, "cutmix": 0.0},
    **{"auto_augment": None, "color_jitter": 0.0, "re_prob": 0.0, "hflip": 0.5, "image_resize": 224},
    **{"interpolation": "bilinear", "crop_pct": 0.875, "ema": False, "amp_level": "O0", "batch_size": 32},
}
H = {**S, "epoch_size": 200, "auto_augment": "autoaug-mstd0", "label_smoothing": 0.1, "mixup": 0.2}
P = {
    **{**S, "epoch_size": 300, "lr_per_batch": 256, "weight_decay": 4e-5, "warmup_epochs": 5, "label_smoothing": 0.1},
    **{"auto_augment": "randaug-m14-n4-mstd101-mmax14", "mixup": 0.2, "image_resize": 256, "use_nesterov": True},
    "aux_weight": 0.1,
}
Q = {**S, "lr": 0.2, "lr_per_batch": 512, "weight_decay": 4e-5, "batch_size": 128}
R = {**S, "warmup_epochs": 5, "use_nesterov": True, "weight_decay": 4e-5, "label_smoothing": 0.1}
M = {
    **{**S, "epoch_size": 240, "lr": 0.05, "min_lr": 1e-6, "warmup_epochs": 5, "decay_epochs": 235},
    **{"weight_decay_filter": "all", "label_smoothing": 0.1, "color_jitter": 0.4, "loss_scale_type": "dynamic"},
}
PUBLISHED = {
    **dict.fromkeys(("repvgg_a0", "repvgg_a1", "repvgg_a2", "repvgg_b0"), S),
    **dict.fromkeys(("repvgg_b1", "repvgg_b1g2", "repvgg_b1g4", "repvgg_b2"), S),
    **dict.fromkeys(("repvgg_b2g2", "repvgg_b2g4", "repvgg_b3", "repvgg_b3g2", "repvgg_b3g4", "repvgg_d2se"), H),
    "repvggplus_l2pse": P,
    **{f"qarepvgg_{size}": Q for size in ("a0", "a1", "a2", "b0", "b1", "b1g4", "b2", "b2g4")},
    **{f"repopt_vgg_{size}": R for size in ("b1", "b2", "l1", "l2")},
    "mindcv/repvgg_a0": {**M, "epoch_size": 400, "warmup_epochs": 10, "decay_epochs": 390, "interpolation": "bicubic"},
    **{f"mindcv/{name}": M for name in ("repvgg_a1", "repvgg_a2", "repvgg_b0", "repvgg_b1")},
    **{f"mindcv/repvgg_b1{g}": {**M, "amp_level": "O2", "interpolation": "bicubic"} for g in ("g2", "g4")},
    "mindcv/repvgg_b2": {**M, "lr": 0.4},
    "mindcv/repvgg_b2g4": {**M, "amp_level": "O2"},
    "mindcv/repvgg_b3": {**M, "lr": 0.4, "auto_augment": "autoaug", "mixup": 0.8, "cutmix": 1.0},
}


def named(path):
    """The key of the tables above for a file."""
    return path.with_suffix("").as_posix()


def own_values(path):
    """What a file itself states, and the path of its base."""
    values = yaml.safe_load((CONFIGS / path).read_text(encoding="utf-8"))
    base = values.pop("base", None)
    return values, None if base is None else (CONFIGS / path).parent / base


def header(path):
    """The comment a file begins with, line by line."""
    lines = (CONFIGS / path).read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("#").strip() for line in lines if line.startswith("#")]


def entries(path):
    """The labelled entries of a header, each with the lines that continue it."""
    found = {}
    for line in header(path)[1:]:
        label = re.match(r"(\w[\w ]*): +(.*)", line)
        if label:
            found[label[1]] = label[2]
        else:
            found[next(reversed(found))] += f" {line}"
    return found


def test_there_is_one_for_every_network():
    assert {*PAPER, *QA, *OPT, *MINDCV} == {Path(f"{name}.yaml") for name in PUBLISHED}
    assert [path for path in FILES if path.parent == Path()] == sorted([*SMALL, *PAPER, *QA, *OPT])
    assert set(ACCURACY) == set(PUBLISHED)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_it_loads(path):
    load_recipe(CONFIGS / path)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_it_states_differences_only(path):
    """The network is named all the same: it is what a file is for."""
    values, base = own_values(path)
    below = load_recipe(base)
    repeated = [
        name
        for name, value in values.items()
        if name != "model" and KEYS[name].kind.read(value) == getattr(below, name)
    ]
    assert repeated == []


@pytest.mark.parametrize("path", [*PAPER, *QA, *OPT, *MINDCV], ids=str)
def test_it_is_the_published_recipe_of_its_network(path):
    loaded = load_recipe(CONFIGS / path)
    expected = PUBLISHED[named(path)]
    assert {name: plain(getattr(loaded, name)) for name in expected} == expected
    assert loaded.model == own_values(path)[0]["model"] == path.stem
    assert loaded.variant == variants.find(path.stem)
    assert (loaded.num_classes, loaded.in_channels, loaded.dataset) == (None, 3, "folder")
    assert (loaded.scale, loaded.ratio) == ((0.08, 1.0), (0.75, 1.333))
    assert (loaded.mean, loaded.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("path", [*PAPER, *QA, *OPT, *MINDCV], ids=str)
def test_its_header_says_what_to_run_and_what_to_expect(path):
    found = entries(path)
    recipe = load_recipe(CONFIGS / path)
    title = header(path)[0]
    assert variants.normalise_name(title.split()[0]) == recipe.model
    assert ("MindCV's recipe" if path in MINDCV else "RepOptimizer" if path in OPT else "RepVGG") in title
    assert [label for label in found if label not in ("at 320", "scales")] == [
        "command",
        "batch",
        "hardware",
        "accuracy",
    ]

    devices = int(re.search(r"--worker_num (\d+) --local_worker_num 8 ", found["command"])[1])
    assert f"python train.py -c configs/{path} --data_dir IMAGENET" in found["command"]
    assert found["batch"].startswith(f"{devices} devices x {recipe.batch_size} = {recipe.global_batch(devices)}")
    assert found["hardware"] == f"meant for {devices} Ascend NPUs; it has not been run on an NPU"
    per_batch = 512 if path in QA else recipe.global_batch(devices)
    assert recipe.lr_per_batch in (None, per_batch), "the learning rate is the published one"

    published = ACCURACY[named(path)]
    if published is None:
        assert found["accuracy"].startswith("not repeated here" if path in QA else "not published")
    else:
        words = [f"top-{k} {value:.2f}" for k, value in zip((1, 5), published, strict=False)]
        assert all(word in found["accuracy"] for word in words)
        by = "MindCV" if path in MINDCV else "the authors"
        assert f"published by {by}" in found["accuracy"]


@pytest.mark.parametrize("path", [Path("repvgg_d2se.yaml"), Path("repvggplus_l2pse.yaml")], ids=str)
def test_what_is_judged_at_320_says_how(path):
    command = entries(path)["at 320"]
    assert f"python validate.py --ckpt_path outputs/{path.stem}/{path.stem}_best.ckpt" in command
    assert command.endswith("--image_resize 320 --crop_pct 1.0")


@pytest.mark.parametrize("path", OWN, ids=str)
class TestOnesOwnPictures:
    """The recipes for a few hundred pictures: what they need, and the table of what was tried."""

    def test_they_take_any_folder_of_classes(self, path):
        recipe = load_recipe(path.stem)
        assert (recipe.dataset, recipe.num_classes, recipe.in_channels) == ("folder", None, 3)
        assert 0.1 <= recipe.val_share <= 0.3, "a folder without train/ and val/ is divided"
        assert recipe.batch_size <= 32, "a hundred pictures are several steps"

    def test_the_released_weights_are_of_its_network(self, path):
        recipe = load_recipe(path.stem)
        assert recipe.pretrained == (recipe.model if path.stem == "finetune" else "")

    def test_the_header_says_how_long_it_takes_and_what_was_tried(self, path):
        found = entries(path)
        assert {"command", "data", "hardware", "time", "tried"} <= set(found)
        assert found["command"].startswith(f"mindrepvgg train -c {path.stem} --data_dir photos")
        rows = [re.fullmatch(r"(.*\S) {2,}(\d\d\.\d) +(\d+) s", line) for line in header(path)]
        rows = [(row[1], float(row[2]), int(row[3])) for row in rows if row]
        assert len(rows) >= 8
        assert len({changed for changed, _, _ in rows}) == len(rows)
        assert all(20 < top1 < 100 and seconds > 0 for _, top1, seconds in rows)


def test_recipes_of_one_family_write_to_different_folders():
    folders = [load_recipe(CONFIGS / path).ckpt_save_dir for path in [*PAPER, *QA, *OPT, *SMALL]]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_it_is_written_like_the_others(path):
    text = (CONFIGS / path).read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert text.endswith("\n")
    assert all(len(line) <= 120 for line in text.splitlines())


@pytest.mark.parametrize("path", CIFAR, ids=str)
def test_those_of_cifar_say_what_their_source_does(path):
    recipe = load_recipe(CONFIGS / path)
    published = {"epoch_size": 200, "batch_size": 256, "lr": 0.1, "use_nesterov": True, "momentum": 0.9, "min_lr": 0}
    published |= {"scheduler": "cosine_decay", "weight_decay": 5e-4, "weight_decay_filter": "all", "warmup_epochs": 0}
    published |= {"crop_padding": 4, "hflip": 0.5, "image_resize": 32, "crop_pct": 1, "loss": "CE"}
    assert {key: getattr(recipe, key) for key in published} == published
    shapes = parameter_shapes(recipe.variant, DEPLOY, 10)
    assert sum(map(math.prod, shapes.values())) == 7_041_194, "as the source's network, of ten classes, fused"


@pytest.mark.parametrize("path", OPT, ids=str)
def test_repoptimizers_name_the_authors_scales(path):
    recipe = load_recipe(CONFIGS / path)
    assert recipe.scales == f"RepOpt-VGG-{path.stem[-2:].upper()}-scales.pth"
    assert f"{recipe.scales} of github.com/DingXiaoH/RepOptimizers" in entries(path)["scales"]


def test_the_search_is_the_authors():
    """Their command for CIFAR-100, and the small one of the same kind."""
    recipe, small = load_recipe("repopt_search"), load_recipe("cifar10_repopt_search")
    published = {"model": "repopt_vgg_b1", "block": "linear_addition", "dataset": "cifar100", "epoch_size": 240}
    published |= {"batch_size": 256, "lr": 0.1, "warmup_epochs": 5, "weight_decay": 4e-5, "use_nesterov": True}
    published |= {"weight_decay_filter": "paper", "crop_padding": 4, "hflip": 0.5, "scales": "", "num_classes": 100}
    assert {key: getattr(recipe, key) for key in published} == published
    assert "it has not been run, here or on an NPU" in " ".join(header(Path("repopt_search.yaml")))
    target = load_recipe("cifar10_repopt")
    assert small.searches_scales
    assert target.uses_repoptimizer
    assert not small.uses_repoptimizer
    assert small.model_args == target.model_args == load_recipe("cifar10_small").model_args
    assert target.scales == f"{small.ckpt_save_dir.removeprefix('./')}/repopt_vgg_scales.safetensors"


class TestFind:
    """A recipe by its name, from any folder."""

    @pytest.mark.parametrize(
        ("name", "file"),
        [
            ("quickstart", "quickstart.yaml"),
            ("repvgg_a1.yaml", "repvgg_a1.yaml"),
            ("mindcv/repvgg_a0", "mindcv/repvgg_a0.yaml"),
            ("configs/repvgg_b1.yaml", "repvgg_b1.yaml"),
            ("configs/mindcv/repvgg_b1", "mindcv/repvgg_b1.yaml"),
            (CONFIGS / "repvgg_a2.yaml", "repvgg_a2.yaml"),
        ],
    )
    def test_by_name_and_by_path(self, name, file, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "quickstart").mkdir()  # a run's folder of that name is no recipe
        assert Path(configs.find(name)).samefile(CONFIGS / file)
        assert load_recipe(name) == load_recipe(CONFIGS / file), "with the bases that it names"

    def test_a_file_of_that_path_comes_first(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "quickstart").write_text("lr: 0.7\n")
        assert load_recipe("quickstart").lr == 0.7

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("repvgg_a9", "there is no recipe 'repvgg_a9': did you mean repvgg_a"),
            ("mindcv/repvgg_b9", "there is no recipe 'mindcv/repvgg_b9': did you mean mindcv/repvgg_b"),
            (
                "x",
                "there is no recipe 'x': there are cifar100_repvgg_a0, cifar10_repopt, cifar10_repopt_search, and 49 "
                "more; ",
            ),
            ("base/paper_s", "there is no recipe 'base/paper_s'"),
            ("../configs/quickstart", "there is no recipe '../configs/quickstart'"),
            ("none.yaml", "none.yaml does not exist, expected a recipe; check the path"),
            ("/none", "/none does not exist, expected a recipe; check the path"),
        ],
    )
    def test_what_is_not_there(self, name, message, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(RecipeError) as caught:
            load_recipe(name)
        assert message in str(caught.value)

    @pytest.mark.parametrize("place", ["site/mindrepvgg/configs", "site/configs"], ids=["installed", "checkout"])
    def test_the_folder(self, place, tmp_path, monkeypatch):
        """A wheel has the recipes inside of the package; a checkout and an editable install have them beside it."""
        (tmp_path / place).mkdir(parents=True)
        monkeypatch.setattr(configs, "_PACKAGE", tmp_path / "site" / "mindrepvgg")
        assert configs.folder() == tmp_path / place

    def test_a_line_for_each(self, call):
        status, out, _ = call("train", "--list")
        assert status == 0
        lines = dict(line.split(maxsplit=1) for line in out.splitlines())
        assert set(lines) == {str(path.with_suffix("")) for path in FILES if path.parts[0] != "base"}
        assert lines["quickstart"].startswith("Quick start: repvgg_nano")
        assert lines["mindcv/repvgg_a0"].startswith("RepVGG-A0 on ImageNet-1k: MindCV's recipe")
