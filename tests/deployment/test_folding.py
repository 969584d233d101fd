"""Mean and std in the first convolution compute what normalising before it does, at the border too."""

import json

import numpy as np
import onnx
import pytest
import torch
from support import relative_difference
from support.exports import FACTS, SIZE, make, normalised, pixels
from support.onnx_files import session

from mindrepvgg import to_deploy
from mindrepvgg.deployment import graph
from mindrepvgg.deployment.engine import open_engine
from mindrepvgg.deployment.export import export_checkpoint
from mindrepvgg.deployment.folding import fold_normalisation
from mindrepvgg.deployment.graph import GraphOptions, build_onnx
from mindrepvgg.errors import EquivalenceError, UserError
from mindrepvgg.models.parameters import network_arrays
from mindrepvgg.models.preprocessing import Preprocessing

pytestmark = pytest.mark.usefixtures("few_photos")

TOLD = Preprocessing(image_size=SIZE, in_channels=3, **FACTS["preprocessing"])
STATIC = GraphOptions(batch_size=2)


def conv(x, kernel, bias):
    """A stem's convolution in float64: stride 2, padded with zeros."""
    return torch.nn.functional.conv2d(*map(torch.from_numpy, (x, kernel, bias)), stride=2, padding=1).numpy()


def test_equal_in_float64():
    """And with the mean in the bias the inside is right, the border wrong: the fold needs the channel of ones."""
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(8, 3, 3, 3)), rng.normal(size=8)
    bytes_in = pixels(2, 16, 20, 3)
    mean, std = (np.array(FACTS["preprocessing"][key]) for key in ("mean", "std"))
    expected = conv(((bytes_in / 255 - mean) / std).transpose(0, 3, 1, 2), kernel, bias)
    x = bytes_in.transpose(0, 3, 1, 2).astype(np.float64)
    ones = np.ones((2, 1, 16, 20))

    folded = fold_normalisation({"stem.weight": kernel, "stem.bias": bias}, "stem", TOLD)
    found = conv(np.concatenate([x, ones], 1), folded["stem.weight"], folded["stem.bias"])
    assert np.abs(found - expected).max() < 1e-12 * np.abs(expected).max()

    shift = (kernel.sum((2, 3)) * (-mean / std)).sum(1)
    wrong = np.abs(conv(x, folded["stem.weight"][:, :3], bias + shift) - expected)
    assert wrong[:, :, 1:, 1:].max() < 1e-12 * np.abs(expected).max()
    assert wrong[:, :, 0].max() > 0.1 * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["deploy", "nano"])
def test_the_file_computes_what_the_checkpoint_does(kind, checkpoints, truth, tmp_path):
    done = export_checkpoint(checkpoints[kind], tmp_path / "out.onnx", STATIC, fold=True)
    assert done.check.passed
    assert done.operators["Concat"] == 1
    assert done.metadata["input"] == "float32 NCHW of 0 to 255"
    bytes_in = pixels(2, *SIZE, 1 if kind == "nano" else 3)
    told = {key: done.metadata[key] for key in ("mean", "std")}
    expected = truth[kind](normalised(bytes_in, told))
    x = np.ascontiguousarray(bytes_in.transpose(0, 3, 1, 2), np.float32)
    assert relative_difference(session(tmp_path / "out.onnx")(x), expected) < 2e-5
    # The engine takes the pictures themselves, also fewer than the batch.
    engine = open_engine(tmp_path / "out.onnx")
    assert (engine.preprocesses, engine.image_size, engine.in_channels) == (True, SIZE, x.shape[1])
    assert relative_difference(engine(bytes_in[:1]), expected[:1]) < 2e-5


def test_a_wrong_fold_is_not_written(checkpoints, tmp_path, monkeypatch):
    """Negative control: the export's comparison sees a mean that went into the bias."""

    def into_the_bias(arrays, name, preprocessing):
        folded = fold_normalisation(arrays, name, preprocessing)
        kernel = folded[f"{name}.weight"]
        shift = kernel[:, -1].sum((1, 2))
        kernel[:, -1] = 0
        return {f"{name}.weight": kernel, f"{name}.bias": folded[f"{name}.bias"] + shift}

    monkeypatch.setattr(graph, "fold_normalisation", into_the_bias)
    with pytest.raises(EquivalenceError, match="was not written: its logits differ"):
        export_checkpoint(checkpoints["deploy"], tmp_path / "out.onnx", STATIC, fold=True)


def test_the_command(call, checkpoints, tmp_path):
    line = ("export", checkpoints["deploy"], tmp_path / "out.onnx", "--fold_normalisation")
    status, out, err = call(*line, "--batch_size", 2, "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["metadata"]["input"] == "float32 NCHW of 0 to 255"
    for more, error in (
        ((), "folding mean and std takes a fixed batch and image size: give --batch_size N"),
        (("--preprocess",), "--fold_normalisation is for .onnx, without --preprocess"),
    ):
        status, _, err = call(*line, *more)
        assert status == 2
        assert error in err


@pytest.mark.parametrize("kind", ["plain", "d2se", "g4"])
def test_every_convolution_has_every_attribute(kind):
    """MindSpore Lite refuses a Conv that lacks one, although ONNX has defaults."""
    net = to_deploy(make(kind))
    arrays = network_arrays(net)
    fixed = {"batch_size": 2, "image_size": SIZE}
    for options in ({}, {"preprocess": TOLD}, {"folded": TOLD, **fixed}, {"precision": "float16", "preprocess": TOLD}):
        model = build_onnx(net.variant, arrays, GraphOptions(**options))
        found = [{one.name for one in node.attribute} for node in model.graph.node if node.op_type == "Conv"]
        assert found
        assert all(names == {"kernel_shape", "pads", "strides", "dilations", "group"} for names in found)
        onnx.checker.check_model(model, full_check=True)


def test_a_size_that_is_not_known_is_refused():
    net = to_deploy(make("plain"))
    with pytest.raises(UserError, match="a fixed batch and image size"):
        build_onnx(net.variant, network_arrays(net), GraphOptions(batch_size=2, folded=TOLD))
