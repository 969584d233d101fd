"""What MindCV's networks cost: published figures of ResNet-18, and a small one counted by hand."""

import pytest
from mindspore import nn
from support import mindcv_networks
from support.mindcv_networks import register

from mindrepvgg.errors import UserError
from mindrepvgg.models.costs import write_csv
from mindrepvgg.models.networks import find_network
from mindrepvgg.models.summary import summarise

pytest.importorskip("mindcv")


def test_a_small_network_counted_by_hand(tmp_path):
    """Convolutions 1 -> 8 of stride 2, 8 -> 8 of 3x3 and of 1x1, on 16x16 pixels; five classes."""
    found = summarise(find_network(register()), 5, 1, 16)
    layers = {layer.name: layer for layer in found.layers}
    macs = {"conv1": 72 * 64, "conv2": 576 * 64, "conv3": 64 * 64, "classifier": 40}
    assert {name: layers[name].train.macs for name in macs} == macs
    assert {name: layers[name].deploy.macs for name in macs} == macs
    assert {name: layers[name].train.params for name in macs} == {
        "conv1": 72,
        "conv2": 576,
        "conv3": 64,
        "classifier": 45,
    }
    assert {name: layers[name].deploy.params for name in ("conv1", "conv2", "conv3")} == {
        "conv1": 80,
        "conv2": 584,
        "conv3": 72,
    }
    assert [layers[name].deploy for name in ("bn1", "bn2", "bn3")] == [None] * 3
    assert layers["conv1"].output_shape == (8, 8, 8)
    assert found.total("train").params == 72 + 576 + 64 + 45 + 3 * 16
    assert found.total("train").wino_muls == macs["conv1"] + macs["conv2"] * 4 // 9 + macs["conv3"] + 40
    assert found.weights == {"train": 757 + 3 * 32, "deploy": 757 + 3 * 8}
    text = found.format()
    assert text.startswith(f"{register()}: 5 classes, images of 1 x 16 x 16")
    assert "activations, 1 image" not in text
    write_csv(found, tmp_path / "x.csv")
    assert "conv1,8x8x8,72,4608,4608,,80,4608,4608," in (tmp_path / "x.csv").read_text()
    assert found.to_dict()["total"]["deploy"]["bytes"].keys() == {"weights"}


def test_a_block_is_a_layer_of_its_own():
    found = summarise(find_network(register(), block="acb"), 5, 1, 16)
    layers = {layer.name: layer for layer in found.layers}
    # 3x3, 3x1 and 1x3 with BN each; the BN behind the convolution is gone.
    assert layers["conv2"].train.params == 8 * 8 * 15 + 3 * 16
    assert layers["conv2"].deploy.params == 584
    assert layers["conv2"].train.macs == 8 * 8 * 15 * 64
    assert "bn2" not in layers
    assert found.format().startswith(f"{register()} with acb blocks: ")


def test_a_dilated_convolution_has_no_winograd_form(monkeypatch):
    monkeypatch.setattr(mindcv_networks, "_conv_bn", dilated)
    found = summarise(find_network(register()), 5, 1, 16).total("train")
    assert found.wino_muls == found.macs == 72 * 64 + 576 * 64 + 64 * 64 + 40


def dilated(channels_in, channels_out, size, stride=1):
    """A convolution of the small network, with BN: dilated where it has stride 1."""
    dilation = 1 if stride > 1 else 2
    padding = size // 2 * dilation
    conv = nn.Conv2d(channels_in, channels_out, size, stride, "pad", padding, dilation)
    return conv, nn.BatchNorm2d(channels_out)


@pytest.mark.slow
def test_resnet18_as_published():
    """11.69 M parameters and 1.81 G MACs: torchvision's table of ResNet18 weights."""
    found = summarise(find_network("mindcv/resnet18"))
    assert found.total("train")[:2] == (11_689_512, 1_814_073_344)


def test_a_size_that_the_network_does_not_take_is_refused_in_a_line():
    with pytest.raises(UserError) as caught:
        summarise(find_network("mindcv/squeezenet1_0"), 5, 3, 3)
    assert str(caught.value).startswith("mindcv/squeezenet1_0 cannot be run on 3x3 pixels: ")
    assert "\n" not in str(caught.value)
