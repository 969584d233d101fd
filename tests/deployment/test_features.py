"""Exported features networks: an output for each map, by name, equal to the network's."""

import json

import numpy as np
import onnx
import pytest
from support import SMALL, randomise_bn, relative_difference

import mindrepvgg
from mindrepvgg.deployment.engine import OnnxEngine
from mindrepvgg.deployment.maps_check import check_maps
from mindrepvgg.errors import CheckpointError, UserError

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dilated features network of RepVGGplus, and its checkpoint."""
    shape = {**SMALL["plus"], "num_blocks": (1, 1, 3, 2)}
    net = mindrepvgg.create_model("repvgg", features_only=True, out_indices=(1, 3, 4), output_stride=8, **shape)
    path = tmp_path_factory.mktemp("features") / "features.ckpt"
    mindrepvgg.save_checkpoint(randomise_bn(net), path, image_size=[48, 64])
    return net.set_train(False), path


def maps_of(net, images):
    from mindspore import Tensor

    return [one.asnumpy() for one in net(Tensor(images))]


def test_onnx(made, tmp_path, pynative_mode):
    net, path = made
    done = mindrepvgg.export(path, tmp_path / "maps.onnx")
    outputs = {
        output.name: [axis.dim_param or axis.dim_value for axis in output.type.tensor_type.shape.dim]
        for output in onnx.load(tmp_path / "maps.onnx").graph.output
    }
    assert outputs == {
        "stage1": ["batch", 8, 12, 16],
        "stage3_second": ["batch", 24, 6, 8],
        "stage4": ["batch", 32, 6, 8],
    }
    assert done.check.passed
    assert "3 maps, deploy form: fused from features.ckpt, maps differ by" in done.format()
    images = np.random.default_rng(0).normal(size=(2, 3, 48, 64)).astype(np.float32)
    for one, truth in zip(OnnxEngine(tmp_path / "maps.onnx")(images), maps_of(net, images), strict=True):
        assert relative_difference(one, truth) < 1e-5
    json.dumps(done.to_dict())
    assert done.metadata["features"] == net.variant.features.to_dict()


def test_onnx_in_half_precision_with_a_fixed_batch_and_pixels(made, tmp_path, pynative_mode):
    _, path = made
    options = {"precision": "float16", "batch_size": 3, "preprocess": True, "image_size": "dynamic"}
    assert mindrepvgg.export(path, tmp_path / "half.onnx", **options).check.passed
    maps = OnnxEngine(tmp_path / "half.onnx")(np.zeros((4, 32, 40, 3), np.uint8))
    assert [one.shape for one in maps] == [(4, 8, 8, 10), (4, 24, 4, 5), (4, 32, 4, 5)]


def test_mindir(made, tmp_path, graph_mode):
    _, path = made
    assert mindrepvgg.export(path, tmp_path / "maps.mindir").check.passed
    told = json.loads((tmp_path / "maps.mindir.json").read_text(encoding="utf-8"))
    assert list(told["outputs"]) == ["stage1", "stage3_second", "stage4"]


def test_the_check_sees_one_wrong_map():
    """Negative control, and NaN."""
    right = tuple(np.ones((1, 2, 3, 3), np.float32) for _ in range(2))
    for wrong in (1.001, np.nan):
        found = check_maps(lambda _: (right[0], right[1] * wrong), lambda _: right, [np.ones(1)], ["a", "b"], 1e-4)  # noqa: B023
        assert not found.passed
        assert found.by_output["a"] == 0
        assert found.format().endswith("the two DIFFER")


def test_what_needs_classes(made, tmp_path, pynative_mode):
    _, path = made
    with pytest.raises(UserError, match=r"gives maps; leave it out$"):
        mindrepvgg.export(path, tmp_path / "maps.onnx", softmax=True)
    for verb in (
        lambda: mindrepvgg.validate(path),
        lambda: mindrepvgg.quantize(path, tmp_path / "int8.onnx"),
    ):
        with pytest.raises(UserError, match="gives maps and has no classes"):
            verb()
    assert mindrepvgg.convert(path, tmp_path / "fused.ckpt").report.passed
    assert mindrepvgg.load_checkpoint(tmp_path / "fused.ckpt").deploy
    with pytest.raises(CheckpointError, match="holds a features network"):
        mindrepvgg.convert(path, tmp_path / "theirs.safetensors", dialect="official")
