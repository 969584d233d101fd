"""MindCV's networks as files to deploy: MindIR of any, ONNX and INT8 where the fused network is laid out as ours."""

import json

import numpy as np
import pytest
from mindspore import Tensor
from support import context_mode, randomise_bn
from support.mindcv_networks import register

import mindrepvgg
from mindrepvgg.errors import UserError

mindcv = pytest.importorskip("mindcv")


@pytest.fixture
def checkpoint(tmp_path):
    """A network with a block, in train form."""
    with context_mode("pynative"):
        net = randomise_bn(mindrepvgg.create_model(register(), 5, 1, block="acb"))
    mindrepvgg.save_checkpoint(net, tmp_path / "tiny.ckpt", image_size=[16, 16])
    return tmp_path / "tiny.ckpt"


def test_the_deploy_form_is_written_as_mindir_and_compared(checkpoint, tmp_path):
    done = mindrepvgg.export(checkpoint, tmp_path / "tiny.mindir", batch_size=2)
    assert done.check.passed
    assert done.fusion.passed
    facts = json.loads((tmp_path / "tiny.mindir.json").read_text())
    assert (facts["model"], facts["model_args"], facts["form"]) == (register(), {"block": "acb"}, "deploy")


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda source, folder: mindrepvgg.export(source, folder / "x.onnx"), "; a .mindir takes any network"),
        (lambda source, folder: mindrepvgg.quantize(source, folder / "x.onnx"), ""),
    ],
    ids=["export", "quantize"],
)
def test_onnx_is_refused_in_a_line(checkpoint, tmp_path, call, told):
    with pytest.raises(UserError) as caught:
        call(checkpoint, tmp_path)
    start = f"is for this package's own networks, and {register()} is MindCV's{told}"
    assert start in str(caught.value)
    assert not (tmp_path / "x.onnx").exists()


def test_onnxruntime_is_refused_in_a_line(checkpoint):
    from mindrepvgg.deployment.engine import engine_of

    with pytest.raises(UserError, match="onnxruntime is for this package's own networks"):
        engine_of(mindrepvgg.load_checkpoint(checkpoint))


@pytest.mark.slow
def test_a_repvgg_that_was_trained_as_mindcvs_is_written_as_onnx(tmp_path):
    with context_mode("pynative"):
        net = randomise_bn(mindrepvgg.create_model("mindcv/repvgg_a0", 5)).set_train(False)
        mindrepvgg.save_checkpoint(net, tmp_path / "a0.ckpt", image_size=[64, 64])
        done = mindrepvgg.export(tmp_path / "a0.ckpt", tmp_path / "a0.onnx")
        assert done.check.passed
        from mindrepvgg.deployment.engine import OnnxEngine

        engine = OnnxEngine(tmp_path / "a0.onnx")
        assert engine.metadata["model"] == "repvgg_a0"
        x = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
        expected = net(Tensor(x)).asnumpy()
        assert np.abs(engine(x) - expected).max() < 1e-4 * np.abs(expected).max()
