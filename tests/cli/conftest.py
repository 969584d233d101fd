"""Checkpoints, recipes and folders of data, good and bad, for the commands."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from mindspore import Tensor
from support import TINY_DIGITS, randomise_bn

from mindrepvgg import create_model, save_checkpoint, to_deploy
from mindrepvgg.recipe.sources import load_recipe

RECIPE = {**TINY_DIGITS, "batch_size": 250, "num_parallel_workers": 2}


def trained_net(num_classes=10):
    """A network that tells images apart, as a trained one would; it need not be right."""
    net = randomise_bn(create_model("repvgg", num_classes, 1, **RECIPE["model_args"]))
    rng = np.random.default_rng(0)
    for parameter in (net.linear.weight, net.stage0.rbr_dense.conv.weight, net.stage0.rbr_1x1.conv.weight):
        parameter.set_data(Tensor(rng.normal(size=parameter.shape), parameter.dtype))
    return net


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Checkpoints: train.ckpt, deploy.ckpt, five.ckpt of five classes, and run_last.ckpt of an unfinished run."""
    folder = tmp_path_factory.mktemp("originals")
    recipe = load_recipe(None, RECIPE)
    facts = {
        "image_size": [16, 16],
        "dataset": "mnist5k",
        "class_names": list("0123456789"),
        "recipe": recipe.to_dict(),
        "preprocessing": {"mean": [0.1307], "std": [0.3081], "crop_pct": 1.0, "interpolation": "bilinear"},
    }
    net = trained_net()
    save_checkpoint(net, folder / "train.ckpt", **facts)
    position = {"epoch": 1, "step_in_epoch": 0, "best_top1": None, "best_epoch": 0, "interval_losses": []}
    state = {"moments.linear.bias": np.zeros(10, np.float32)}
    save_checkpoint(net, folder / "run_last.ckpt", training_state=state, position=position, step=10, **facts)
    save_checkpoint(to_deploy(net), folder / "deploy.ckpt", **facts)
    save_checkpoint(trained_net(5), folder / "five.ckpt", **{**facts, "class_names": list("01234")})
    return folder


@pytest.fixture
def files(originals, tmp_path):
    """A folder with the checkpoints, damaged ones, recipes and data folders; one for each test."""
    folder = Path(shutil.copytree(originals, tmp_path / "files"))
    content = (folder / "train.ckpt").read_bytes()
    (folder / "cut.ckpt").write_bytes(content[: len(content) // 2])
    (folder / "altered.ckpt").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (folder / "empty.ckpt").touch()
    (folder / "text.ckpt").write_text("not a checkpoint\n")
    for name, text in {
        "tiny": yaml.safe_dump(RECIPE),
        "list": "- 1\n- 2\n",
        "broken": "lr: [0.1\nmodel: x\n",
        "unknown": yaml.safe_dump({**RECIPE, "bach_size": 3}),
        "type": yaml.safe_dump({**RECIPE, "epoch_size": "many"}),
        "folder_data": yaml.safe_dump({**RECIPE, "dataset": "imagenet"}),
        "mindcv_auto": yaml.safe_dump({**RECIPE, "loss_scale_type": "auto", "resume_opt": False}),
    }.items():
        (folder / f"{name}.yaml").write_text(text)
    (folder / "no_data").mkdir()
    (folder / "no_pictures/train/cat").mkdir(parents=True)
    for name in "abcdefghij":
        (folder / "letters/val" / name).mkdir(parents=True)
        cv2.imwrite(str(folder / "letters/val" / name / "1.png"), np.zeros((8, 8), np.uint8))
    return folder
