"""Exported files compute what the checkpoint does, judged by PyTorch on the original; what does not is not written."""

import functools
import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from mindspore import Tensor
from support import ROOT, images, relative_difference
from support.exports import CLASSES, FACTS, KINDS, SIZE, make, normalised, pixels
from support.onnx_files import session

from mindrepvgg import to_deploy
from mindrepvgg.data.samples import labelled_photos
from mindrepvgg.deployment import export
from mindrepvgg.deployment.export import export_checkpoint
from mindrepvgg.deployment.graph import DEFAULT_OPSET, GraphOptions, build_onnx
from mindrepvgg.deployment.pictures import Pictures
from mindrepvgg.errors import EquivalenceError
from mindrepvgg.models.parameters import network_arrays
from mindrepvgg.models.variants import find

pytestmark = pytest.mark.usefixtures("few_photos")


@pytest.mark.parametrize("kind", [*KINDS, "deploy"])
def test_every_kind(kind, checkpoints, truth, tmp_path):
    """Any batch; the weights in the file are the fused ones bit for bit, the operators those of the deploy form."""
    done = export_checkpoint(checkpoints[kind], tmp_path / "out.onnx")
    assert done.check.passed
    assert (done.fusion is None) == (kind == "deploy")
    channels = 1 if kind == "nano" else 3
    for count in (1, 3):
        x = images(count, channels, *SIZE)
        assert relative_difference(session(tmp_path / "out.onnx")(x), truth[kind](x)) < 1e-5

    model = onnx.load(tmp_path / "out.onnx")
    network = make(kind if kind != "deploy" else "plain")
    arrays = network_arrays(to_deploy(network))
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert held.keys() == arrays.keys()
    assert all(np.array_equal(held[name], arrays[name]) for name in arrays)
    blocks = len(network.variant.block_specs())
    counts = Counter(node.op_type for node in model.graph.node)
    excited = blocks if network.variant.se else 0
    assert counts == Counter(
        Conv=blocks + 2 * excited, Relu=blocks + excited, Sigmoid=excited, Mul=excited, GlobalAveragePool=excited + 1,
        Flatten=1, Gemm=1,
    )  # fmt: skip
    assert done.operators == {name: count for name, count in counts.items() if count}
    assert model.opset_import[0].version == DEFAULT_OPSET
    # SE stands before the ReLU in D2se, after it in RepVGGplus.
    nodes = {node.output[0]: node for node in model.graph.node}
    assert nodes[nodes["stage1.0.relu"].input[0]].op_type == ("Mul" if kind == "d2se" else "Conv")


def test_static_sizes(checkpoints, tmp_path):
    """The file takes its own shape alone; the size is the checkpoint's unless another is given."""
    export_checkpoint(checkpoints["deploy"], tmp_path / "out.onnx", GraphOptions(batch_size=2))
    run = session(tmp_path / "out.onnx")
    assert run(images(2, 3, *SIZE)).shape == (2, 10)
    for wrong in ((1, 3, *SIZE), (2, 3, 32, 32)):
        with pytest.raises(Exception, match="invalid dimensions"):
            run(images(*wrong))
    done = export_checkpoint(checkpoints["deploy"], tmp_path / "out.onnx", overrides={"image_resize": [48, 32]})
    assert session(tmp_path / "out.onnx")(images(1, 3, 48, 32)).shape == (1, 10)
    assert done.metadata["image_size"] == [48, 32]


@pytest.mark.parametrize(("kind", "precision"), [("deploy", "float32"), ("nano", "float32"), ("deploy", "float16")])
def test_preprocessing_inside(kind, precision, checkpoints, truth, tmp_path):
    """Bytes go in; at the border, where normalising after padding would show, too."""
    done = export_checkpoint(
        checkpoints[kind], tmp_path / "out.onnx", GraphOptions(precision=precision, softmax=True), preprocess=True
    )
    told = {"mean": done.metadata["mean"], "std": done.metadata["std"]}
    pictures = pixels(3, *SIZE, 1 if kind == "nano" else 3)
    logits = truth[kind](normalised(pictures, told)).astype(np.float64)
    expected = np.exp(logits - logits.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    assert done.check.rtol == export.TOLERANCES[precision]
    tolerance = 2e-5 if precision == "float32" else 2e-2
    assert np.abs(session(tmp_path / "out.onnx")(pictures) - expected).max() < tolerance
    assert onnx.load(tmp_path / "out.onnx").graph.output[0].name == "probabilities"


def test_the_border_would_show(checkpoints, truth, tmp_path, monkeypatch):
    """Negative control: with the bias of the normalisation folded into the first convolution the file is refused."""

    def folded(variant, arrays, options, metadata):
        gain, bias = options.preprocess.gain_and_bias()
        kernel = arrays["stage0.rbr_reparam.weight"]
        arrays = {
            **arrays,
            "stage0.rbr_reparam.weight": kernel * gain.reshape(1, -1, 1, 1),
            "stage0.rbr_reparam.bias": arrays["stage0.rbr_reparam.bias"] + kernel.sum((2, 3)) @ bias.ravel(),
        }
        model = build_onnx(variant, arrays, options, metadata)
        for tensor in model.graph.initializer:
            if tensor.name.startswith("preprocess."):
                value = np.full(tensor.dims, float(tensor.name.endswith("weight")), np.float32)
                tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
        return model

    monkeypatch.setattr(export, "build_onnx", folded)
    with pytest.raises(EquivalenceError, match="was not written: its logits differ"):
        export_checkpoint(checkpoints["deploy"], tmp_path / "out.onnx", preprocess=True)


def test_metadata(checkpoints, tmp_path):
    """What a service needs to know stands in the file."""
    export_checkpoint(checkpoints["deploy"], tmp_path / "out.onnx")
    found = {entry.key: json.loads(entry.value) for entry in onnx.load(tmp_path / "out.onnx").metadata_props}
    assert found["class_names"] == CLASSES
    assert found["image_size"] == list(SIZE)
    assert {key: found[key] for key in FACTS["preprocessing"]} == FACTS["preprocessing"]
    assert (found["model"], found["form"], found["precision"]) == ("repvgg", "deploy", "float32")
    assert find("repvgg", **found["model_args"]) == make("plain").variant
    assert found["checkpoint_sha256"] == hashlib.sha256(checkpoints["deploy"].read_bytes()).hexdigest()
    assert found["mindrepvgg"]


@pytest.mark.parametrize("suffix", [".onnx", pytest.param(".mindir", marks=pytest.mark.slow)])
def test_a_file_that_computes_something_else_is_not_written(suffix, checkpoints, tmp_path, monkeypatch):
    """One bias off by a little: status 1, and what was there before stays."""
    target = tmp_path / f"out{suffix}"
    target.write_bytes(b"before")

    def spoilt(net, *arguments):
        bias = net.linear.bias.asnumpy()
        bias[3] += 0.01 * np.abs(bias).max() + 0.01
        net.linear.bias.set_data(Tensor(bias))
        return write(net, *arguments)

    name = "_write_onnx" if suffix == ".onnx" else "write_mindir"
    write = getattr(export, name)
    monkeypatch.setattr(export, name, spoilt)
    with pytest.raises(EquivalenceError, match="was not written: its logits differ from the network's by") as caught:
        export_checkpoint(checkpoints["plain"], target)
    assert not caught.value.report.passed
    assert target.read_bytes() == b"before"
    assert os.listdir(tmp_path) == [target.name]


@pytest.fixture
def call(call):
    """A function of the command's arguments: (status, stdout, stderr without MindSpore's own lines)."""
    return functools.partial(call, "export")


def test_the_command(call, checkpoints, tmp_path):
    status, out, err = call(checkpoints["nano"], tmp_path / "out.onnx", "--batch_size", 2, "--image_size", "24,40")
    assert (status, err) == (0, "")
    assert "input images: float32 (2, 1, 24, 40); output logits: float32 (2, 10)" in out
    assert "opset 15: 9 Conv, 9 Relu, 1 GlobalAveragePool, 1 Flatten, 1 Gemm" in out
    assert "the two agree" in out
    assert "for Ascend, not run here:" in out
    assert f"atc --model={tmp_path}/out.onnx --framework=5 --output={tmp_path}/out --soc_version=Ascend310P3" in out


def test_the_command_for_programs(call, checkpoints, tmp_path):
    status, out, _ = call(
        checkpoints["deploy"], tmp_path / "out.onnx", "--json", "--mean", "0.1,0.2,0.3", "--soc_version", "Ascend910B3"
    )
    assert status == 0
    found = json.loads(out)
    assert found["check"]["passed"]
    assert found["metadata"]["mean"] == [0.1, 0.2, 0.3]
    assert found["bytes"] == (tmp_path / "out.onnx").stat().st_size
    assert any("--soc_version=Ascend910B3" in command for command in found["commands"].values())
    assert ("photos of the package foolbox" in found["images"]) == (labelled_photos() is not None)


@pytest.mark.parametrize(
    ("target", "arguments", "error"),
    [
        ("out.onnx", ["--form", "train"], "only the deploy form is exported"),
        ("out.pb", [], "must end in one of .onnx, .mindir, .air"),
        ("out.onnx", ["--opset", "12"], "opset (=12) must be at least 13"),
        ("out.onnx", ["--opset", "99"], "opset (=99) must be at most"),
        (
            "out.onnx",
            ["--batch_size", "many"],
            "batch_size (='many') must be a whole number of at least 1 and at most 4096, or dynamic",
        ),
        ("out.onnx", ["--image_size", "big"], "image_resize"),
        ("out.onnx", ["--precision", "int4"], "invalid choice: 'int4'"),
        ("out.air", ["--batch_size", "1"], "MindSpore writes AIR on Ascend only"),
        ("out.onnx", ["--grouped", "split"], "grouped (='split') is for .mindir and .air: ONNX has its own"),
        ("file/out.onnx", [], "file"),
        ("{checkpoint}", [], "is the checkpoint itself"),
    ],
)
def test_wrong_use_is_answered_in_one_line(target, arguments, error, call, checkpoints, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "plain.onnx").write_bytes(checkpoints["deploy"].read_bytes())
    source = tmp_path / "plain.onnx"
    target = source if target == "{checkpoint}" else tmp_path / target
    status, out, err = call(source, target, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert error in err
    assert sorted(os.listdir(tmp_path)) == ["file", "plain.onnx"]


def test_an_engine_that_is_too_old_for_the_opset(call, checkpoints, tmp_path, monkeypatch):
    """The engine refuses the file as it refuses an opset newer than its own. The file is not left behind."""

    def refuse(*_, **__):
        raise RuntimeError("ONNX Runtime only guarantees support for models stamped with released opset versions")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    status, out, err = call(checkpoints["deploy"], tmp_path / "out.onnx", "--opset", "18")
    assert (status, out) == (2, "")
    assert err == f"error: onnxruntime {onnxruntime.__version__} does not run opset 18; take an older one\n"
    assert os.listdir(tmp_path) == []


def test_a_checkpoint_that_cannot_be_read(call, tmp_path):
    status, _, err = call(tmp_path / "none.ckpt", tmp_path / "out.onnx")
    assert status == 2
    assert err == f"error: {tmp_path}/none.ckpt does not exist, expected a checkpoint; check the path\n"


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named(package, call, checkpoints, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    status, _, err = call(checkpoints["deploy"], tmp_path / "out.onnx")
    assert status == 2
    assert re.fullmatch(
        rf"error: .* needs the package {package}: pip install {package} 'numpy<2' \(extra: onnx\)\n", err
    )
    assert os.listdir(tmp_path) == []


def test_preprocessing_that_is_not_known_is_asked_for(call, checkpoints, tmp_path):
    """A gray network of another project tells no mean; a colour one's is ImageNet's."""
    status, _, err = call(checkpoints["silent"], tmp_path / "out.onnx", "--preprocess")
    assert status == 2
    assert "does not tell mean and std: give --mean and --std" in err
    small = (checkpoints["silent"], tmp_path / "out.onnx", "--image_size", "32", "--json")
    assert "mean" not in json.loads(call(*small)[1])["metadata"]
    assert json.loads(call(*small, "--preprocess", "--mean", ".1", "--std", ".3")[1])["metadata"]["mean"] == [0.1]


def test_the_service_in_the_docs(checkpoints, tmp_path):
    """The script of docs/deploy.md prepares pictures as validation does, and finds the same class."""
    text = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(# classify\.py.*?)```", text, re.DOTALL)
    (tmp_path / "classify.py").write_text(code, encoding="utf-8")
    export_checkpoint(checkpoints["deploy"], tmp_path / "out.onnx")
    photos = labelled_photos()
    if photos is None:
        pytest.skip("no photos: the package foolbox is not installed")
    files = photos.files.paths[:3]
    done = subprocess.run(
        [sys.executable, "classify.py", "out.onnx", *files], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    net = make("plain").set_train(False)
    net.metadata = FACTS
    pictures = Pictures(net, {})
    logits = net(Tensor(pictures.normalised(pictures.pixels[:3]))).asnumpy().astype(np.float64)
    share = np.exp(logits - logits.max(1, keepdims=True))
    share = 100 * (share / share.sum(1, keepdims=True)).max(1)
    expected = [f"{f}: {CLASSES[c]} ({p:.1f}%)" for f, c, p in zip(files, logits.argmax(1), share, strict=True)]
    assert done.stdout.splitlines() == expected
