"""What a checkpoint tells: checked where it is read, in one line, and kept as it was, newer versions' entries too."""

import json

import pytest
from support import SMALL

from mindrepvgg import create_model
from mindrepvgg.errors import CheckpointError
from mindrepvgg.version import __version__
from mindrepvgg.weights.description import Description

pytestmark = pytest.mark.compat

SHAPE = {key: list(value) for key, value in SMALL["plain"].items()}
OLD = {
    "model": "repvgg",
    "model_args": {**SHAPE, "group_size": 1, "se": None, "se_ratio": 16, "aux_heads": False},
    "num_classes": 3,
    "in_channels": 1,
    "form": "train",
    "versions": {"mindrepvgg": "0.1.0", "mindspore": "2.10.0", "numpy": "1.26.4"},
    "image_size": [32, 48],
    "preprocessing": {"mean": [0.1307], "std": [0.3081], "crop_pct": 1.0, "interpolation": "bilinear"},
    "class_names": ["a", "b", "c"],
    "dataset": "mnist5k",
    "recipe": {"lr": 0.1},
    "epoch": 7,
    "step": 70,
    "metrics": None,
    "converted_from": "x.ckpt",
}


def test_a_file_s_mapping_comes_back_as_it_was():
    for values in (
        OLD,
        {**OLD, "quantization": "qat"},
        {**OLD, "form": "deploy", "quantization_parameters": {"stage0": {}}},
        {**OLD, "of_a_newer_version": [1, {"a": None}], "preprocessing": {"mean": [0.5], "gamma": 2.2}},
        {key: OLD[key] for key in ("model", "model_args", "num_classes", "in_channels", "form")},
    ):
        assert Description.read(values, "x").to_dict() == values
        assert Description.read(json.loads(json.dumps(values)), "x") == Description.read(values, "x")


def test_entries_by_name():
    found = Description.read({**OLD, "quantization": "bn", "new": 1}, "x")
    assert (found.form, found.variant.num_blocks, found.epoch, found.position) == ("bn", (2, 1, 2, 1), 7, None)
    assert found.others == {"new": 1, "metrics": None, "converted_from": "x.ckpt"}


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"model": 3}, "model (=3) must be the name of a network"),
        ({"num_classes": True}, "num_classes (=True) must be a whole number from 1 to 1000000"),
        ({"in_channels": 0}, "in_channels (=0) must be a whole number from 1 to 65536"),
        ({"form": ["train"]}, "form (=['train']) must be one of train, deploy, bn, qat"),
        ({"quantization": "int4"}, "form (='int4') must be one of train, deploy, bn, qat"),
        ({"class_names": "abc"}, "class_names (='abc') must be a list of names"),
        ({"class_names": [1, 2, 3]}, "class_names (=[1, 2, 3]) must be a list of names"),
        ({"dataset": 5}, "dataset (=5) must be the name of a data set"),
        ({"class_names": ["a", "b"]}, "class_names holds 2 names, the network has 3 classes"),
        ({"num_classes": 4}, "class_names holds 3 names, the network has 4 classes"),
        ({"image_size": []}, "image_size (=[]) must be a height and a width from 1 to 16384 pixels"),
        ({"image_size": [32]}, "image_size (=[32]) must be a height and a width from 1 to 16384 pixels"),
        ({"image_size": [32, 0]}, "image_size (=[32, 0]) must be a height and a width from 1 to 16384 pixels"),
        ({"image_size": 10**9}, "image_size (=1000000000) must be a height and a width from 1 to 16384 pixels"),
        ({"preprocessing": [0.5]}, "preprocessing (=[0.5]) must be a mapping of mean, std, crop_pct and interpolation"),
        ({"preprocessing": {"mean": "0.5"}}, "preprocessing's mean (='0.5') must be a list of numbers"),
        ({"preprocessing": {"mean": [float("nan")]}}, "preprocessing's mean (=[nan]) must be a list of numbers"),
        ({"preprocessing": {"mean": [10**400]}}, "preprocessing's mean (=[1000000"),
        (
            {"preprocessing": {"mean": [0.1] * 3}},
            "preprocessing's mean holds 3 numbers, the network has 1 input channels",
        ),
        ({"preprocessing": {"std": [0.0]}}, "preprocessing's std (=[0.0]) must be a list of numbers above 0"),
        (
            {"preprocessing": {"crop_pct": None}},
            "preprocessing's crop_pct (=None) must be a number from 0.1 to 1",
        ),
        ({"preprocessing": {"crop_pct": 1e-9}}, "preprocessing's crop_pct (=1e-09) must be a number from 0.1 to 1"),
        ({"preprocessing": {"interpolation": 2}}, "preprocessing's interpolation (=2) must be the name of an interp"),
        ({"recipe": 3}, "recipe (=3) must be a mapping of a recipe's keys"),
        ({"recipe": []}, "recipe (=[]) must be a mapping of a recipe's keys"),
        ({"epoch": -1}, "epoch (=-1) must be a whole number of at least 0"),
        ({"step": 1.5}, "step (=1.5) must be a whole number of at least 0"),
        ({"position": 4}, "position (=4) must be a mapping"),
        ({"versions": "0.1"}, "versions (='0.1') must be a mapping"),
        ({"model_args": {"depth": 3}}, "describes a network that cannot be built: repvgg does not know depth"),
    ],
    ids=str,
)
def test_an_entry_that_cannot_be_used(entry, words):
    with pytest.raises(CheckpointError) as caught:
        Description.read({**OLD, **entry}, "net.ckpt")
    message = str(caught.value)
    assert message.startswith("net.ckpt ")
    assert words in message
    assert "\n" not in message
    assert "update mindrepvgg" not in message


@pytest.mark.parametrize("entry", [{"dataset": "x" * 10**6}, {"model": "x" * 10**6}, {"model": ["\n\ud800"] * 10**5}])
def test_a_megabyte_is_not_quoted(entry):
    with pytest.raises(CheckpointError) as caught:
        Description.read({**OLD, "epoch": "x" * 10**6, **entry}, "net.ckpt")
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"image_size": {"height": 32}}, "image_size (={'height': 32}) must be a height and a width"),
        ({"model": "repvgg_c9", "model_args": {}}, "(='repvgg_c9') is not a network of the family"),
        ({"form": "int4"}, "form (='int4') must be one of train, deploy"),
    ],
)
def test_what_a_newer_version_wrote(entry, words):
    """Keys that are not known are kept; a value of another type is refused, with what to do."""
    wrote = {"versions": {"mindrepvgg": "1.10.0rc1"}}
    assert Description.read({**OLD, **wrote, "tags": ["new"]}, "net.ckpt").others["tags"] == ["new"]
    with pytest.raises(CheckpointError) as caught:
        Description.read({**OLD, **wrote, **entry}, "net.ckpt")
    assert words in str(caught.value)
    assert str(caught.value).endswith(f"; mindrepvgg 1.10.0rc1 wrote it, this is {__version__}: update mindrepvgg")


def test_a_network_s_own_facts_stand_above_what_it_carries():
    net = create_model("repvgg", 3, 1, deploy=True, **SMALL["plain"])
    net.metadata = {"num_classes": 9, "form": "train", "quantization": "qat", "epoch": 3, "note": "kept"}
    found = Description.of(net, epoch=4)
    assert (found.num_classes, found.form, found.epoch) == (3, "deploy", 4)
    assert found.others == {"note": "kept"}
    with pytest.raises(CheckpointError, match=r"^the checkpoint to be written .* epoch \(='4'\)"):
        Description.of(net, epoch="4")
