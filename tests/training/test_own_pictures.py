"""The recipes for one's own pictures train on a folder of them: from nothing, and from weights of other classes."""

import re

import pytest
from support.pictures import noise_picture

import mindrepvgg
from mindrepvgg.recipe.sources import load_recipe

QUICK = {
    **{"image_resize": 32, "batch_size": 4, "epoch_size": 1, "warmup_epochs": 0},
    **{"num_parallel_workers": 1, "keep_checkpoint_max": 0},
}
SMALL = {"num_blocks": [1, 1, 1, 1], "widths": [4, 4, 8, 8, 16]}
TINY = {**QUICK, "model": "repvgg", "model_args": SMALL}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Ten pictures of each of two classes, in no split."""
    root = tmp_path_factory.mktemp("own") / "photos"
    for number in range(20):
        noise_picture(root / ("cats", "dogs")[number % 2] / f"{number:02}.png", 40, 48, number)
    return root


def train(recipe, photos, folder, **changes):
    return mindrepvgg.train(recipe, data_dir=str(photos), ckpt_save_dir=str(folder), **changes)


def test_a_quick_run_of_both(photos, tmp_path, pynative_mode, caplog, capsys):
    """The network that `folder` leaves is what `finetune` starts from, for other classes."""
    first = train("folder", photos, tmp_path / "folder", mode=1, **TINY)
    assert "photos: 16 pictures to train on, 4 to validate on (val_share 0.2), 2 classes" in _said(capsys)
    more = tmp_path / "three"
    for number in range(12):
        noise_picture(more / "train" / "abc"[number % 3] / f"{number}.png", 40, 48, number)
    for number in range(3):
        noise_picture(more / "val" / "abc"[number] / f"{number}.png", 40, 48, number)
    second = train("finetune", more, tmp_path / "finetune", mode=1, pretrained=str(first.best), **TINY)
    assert "three: 12 pictures to train on, 3 to validate on, 3 classes" in _said(capsys), "val_share divided nothing"
    assert "is for 2 classes, the network for 3: fresh weights for linear.*" in caplog.text
    net = mindrepvgg.load_checkpoint(second.best)
    assert net.metadata["class_names"] == ["a", "b", "c"]
    assert load_recipe("finetune").mean == tuple(net.metadata["recipe"]["mean"])


def _said(capsys):
    """What was printed, on one line without the places of the data."""
    out, err = capsys.readouterr()
    return re.sub(r" in \S+:", ":", (out + err).replace("\n", " "))


@pytest.mark.slow
def test_finetune_as_it_is_but_for_one_epoch(photos, tmp_path):
    """Its own network at its own picture size, compiled, from weights of a thousand classes."""
    net = mindrepvgg.create_model("repvgg_a0", num_classes=1000)
    mindrepvgg.save_checkpoint(net, tmp_path / "weights.ckpt")
    changes = {"epoch_size": 1, "warmup_epochs": 0, "batch_size": 8}
    run = train("finetune", photos, tmp_path / "run", pretrained=str(tmp_path / "weights.ckpt"), **changes)
    assert run.finished
    assert run.evaluation.num_images == 4


@pytest.mark.slow
def test_folder_as_it_is_but_for_one_epoch(photos, tmp_path):
    run = train("folder", photos, tmp_path / "run", epoch_size=1, warmup_epochs=0, batch_size=8)
    assert run.finished
    assert run.evaluation.num_images == 4
