"""Checkpoints of MindCV's networks: saved and built again, started from, converted, and refused."""

import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from support import ROOT, images, randomise_bn, relative_difference, weights
from support.mindcv_networks import register

import mindrepvgg
from mindrepvgg.errors import CheckpointError, UserError
from mindrepvgg.weights.convert import convert_checkpoint, describe
from mindrepvgg.weights.load import import_weights

mindcv = pytest.importorskip("mindcv")

CLASSES = ["a", "b", "c", "d", "e"]


@pytest.fixture(scope="module")
def tiny():
    return register()


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """A network with blocks and a history, and its checkpoint."""
    net = randomise_bn(mindrepvgg.create_model(tiny, 5, 1, block="acb")).set_train(False)
    path = tmp_path_factory.mktemp("trained") / "tiny.ckpt"
    mindrepvgg.save_checkpoint(net, path, class_names=CLASSES, image_size=[32, 32])
    return net, path


def equal(one, other):
    one, other = weights(one), weights(other)
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("load", [mindrepvgg.load_checkpoint, mindrepvgg.load_weights])
def test_a_checkpoint_knows_its_network(trained, tiny, load):
    net, path = trained
    found = load(path)
    assert equal(found, net)
    assert found.variant == net.variant
    assert {key: found.metadata[key] for key in ("model", "model_args", "form", "class_names")} == {
        "model": tiny,
        "model_args": {"block": "acb"},
        "form": "train",
        "class_names": CLASSES,
    }


def test_it_is_converted_to_the_deploy_form(trained, tmp_path):
    net, path = trained
    done = convert_checkpoint(path, tmp_path / "deploy.safetensors")
    assert done.report.passed
    assert (done.source["model"], done.source["form"], done.form) == (net.variant.name, "train", "deploy")
    deployed = mindrepvgg.load_weights(tmp_path / "deploy.safetensors")
    assert deployed.deploy
    assert deployed.metadata["form"] == "deploy"
    assert deployed.metadata["class_names"] == CLASSES
    x = Tensor(images(2, 1, 32, 32))
    assert relative_difference(deployed(x), net(x)) < 1e-5
    assert not [name for name in weights(deployed) if "moving_" in name or "hor_conv" in name]
    with pytest.raises(CheckpointError, match="is in deploy form: its branches are fused"):
        mindrepvgg.load_weights(tmp_path / "deploy.safetensors", form="train")


@pytest.mark.slow
def test_both_forms_load_in_a_fresh_process(trained, tmp_path):
    net, path = trained
    convert_checkpoint(path, tmp_path / "deploy.ckpt")
    x = images(2, 1, 32, 32)
    np.save(tmp_path / "x.npy", x)
    code = f"""
import sys; sys.path.insert(0, {str(ROOT / "tests")!r})
import mindrepvgg, mindspore as ms, numpy as np
from support.mindcv_networks import register
register(); ms.set_context(mode=ms.PYNATIVE_MODE)
for form, path in (("train", {str(path)!r}), ("deploy", {str(tmp_path / "deploy.ckpt")!r})):
    net = mindrepvgg.load_checkpoint(path, form=form)
    np.save({str(tmp_path)!r} + f"/{{form}}.npy", net(ms.Tensor(np.load({str(tmp_path / "x.npy")!r}))).asnumpy())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    expected = net(Tensor(x))
    for form in ("train", "deploy"):
        assert relative_difference(np.load(tmp_path / f"{form}.npy"), expected) < 1e-5


def test_training_starts_from_a_file_of_either_project(trained, tiny, tmp_path, caplog):
    net, path = trained
    assert equal(mindrepvgg.create_model(tiny, 5, 1, weights=path, block="acb"), net)
    assert mindrepvgg.create_model(tiny, 5, 1, weights=path, block="acb", deploy=True).deploy
    caplog.clear()
    other = weights(mindrepvgg.create_model(tiny, 7, 1, weights=path, block="acb"))
    assert "is not for 7 classes: fresh weights for classifier.weight, classifier.bias" in caplog.text
    same = [name for name, array in weights(net).items() if np.array_equal(array, other[name])]
    assert set(other) - set(same) == {"classifier.weight", "classifier.bias"}
    plain = mindcv.create_model("tiny_residual", num_classes=5, in_channels=1)
    ms.save_checkpoint(plain, str(tmp_path / "mindcv.ckpt"))
    assert equal(mindrepvgg.create_model(tiny, 5, 1, weights=tmp_path / "mindcv.ckpt"), plain)


def test_what_does_not_fit_is_refused_in_a_line(trained, tiny, tmp_path):
    _, path = trained
    for arguments, told in (
        ({"weights": path}, f"it holds a {tiny} with {{'block': 'acb'}}, not a {tiny}"),
        ({"pretrained": True}, f"pretrained (='True') must be a file for {tiny}: weights of MindCV's networks are not"),
        ({"grouped": "split"}, f"norm and grouped are for this package's own networks, and {tiny} is MindCV's"),
        ({"foo": 1}, f"{tiny} takes no foo; a network of MindCV takes"),
    ):
        with pytest.raises(UserError) as caught:
            mindrepvgg.create_model(tiny, 5, 1, **arguments)
        assert told in str(caught.value)
    with pytest.raises(UserError, match=r"; MindCV has its own at https://.*resnet18.*\.ckpt$"):
        mindrepvgg.create_model("mindcv/resnet18", pretrained=True)
    with pytest.raises(UserError, match="writing the names of timm is for this package's own networks"):
        convert_checkpoint(path, tmp_path / "x.safetensors", dialect="timm")
    with pytest.raises(CheckpointError, match=f"it holds a {tiny}, not a repvgg_nano"):
        mindrepvgg.create_model("repvgg_nano", 5, 1, weights=path)
    with pytest.raises(CheckpointError, match="holds no averaged"):
        import_weights(path, "ema")
    assert list(tmp_path.iterdir()) == []


def test_what_a_file_is_can_be_told(trained, tiny):
    facts = describe(import_weights(trained[1]))
    assert (facts["model"], facts["dialect"], facts["model_args"]) == (tiny, "mindrepvgg", {"block": "acb"})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": "mindcv/no_such"}, "is no network of the installed MindCV"),
        ({"model_args": {"checkpoint_path": "/etc/passwd"}}, "takes no checkpoint_path"),
        ({"model_args": {"block": "abc"}}, "block (='abc') must be one of"),
    ],
)
def test_a_description_that_lies_is_refused(trained, tmp_path, changes, told):
    from mindrepvgg.weights.containers import read_weights, write_weights

    found = read_weights(trained[1])
    write_weights(tmp_path / "x.ckpt", found.arrays, {**found.description, **changes})
    with pytest.raises(CheckpointError) as caught:
        mindrepvgg.load_weights(tmp_path / "x.ckpt")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
