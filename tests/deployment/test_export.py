"""Exported files compute what the checkpoint does, judged by PyTorch on the original; what does not is not written."""

import dataclasses
import functools
import hashlib
import json
import os
import re
import stat
import subprocess
import sys
from collections import Counter
from pathlib import Path

import mindspore as ms
import numpy as np
import onnx
import onnxruntime
import pytest
from mindspore import Tensor, nn
from support import SMALL, context_mode, images, randomise_bn, relative_difference
from support.loaders import RGB, preprocessing

from mindrepvgg import create_model, save_checkpoint, to_deploy
from mindrepvgg.data.samples import labelled_photos
from mindrepvgg.data.source import ImageFiles
from mindrepvgg.deployment import export
from mindrepvgg.deployment.ascend import ascend_commands
from mindrepvgg.deployment.export import export_checkpoint
from mindrepvgg.deployment.graph import DEFAULT_OPSET, GraphOptions, build_onnx, check_operators
from mindrepvgg.deployment.pictures import Pictures
from mindrepvgg.errors import EquivalenceError, UserError
from mindrepvgg.evaluation.torch_reference import TorchReference, read_tensors
from mindrepvgg.models.parameters import network_arrays
from mindrepvgg.models.preprocessing import Preprocessing
from mindrepvgg.models.variants import find

ROOT = Path(__file__).parents[2]
SIZE = (32, 40)
CLASSES = [f"class {i}, or «ä»" for i in range(10)]
FACTS = {
    "image_size": list(SIZE),
    "class_names": CLASSES,
    "preprocessing": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "crop_pct": 0.9, "interpolation": "bicubic"},
}
KINDS = [*SMALL, "nano"]


@pytest.fixture(autouse=True, scope="module")
def _quick():
    """PyNative mode, and three photos instead of twenty."""
    photos = labelled_photos()
    few = photos and dataclasses.replace(photos, labels=photos.labels[:3], files=ImageFiles(photos.files.paths[:3]))
    with context_mode("pynative"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("mindrepvgg.deployment.pictures.labelled_photos", lambda: few)
        yield


def make(kind, **options):
    """A network of ten classes with a history, the same at every call."""
    ms.set_seed(0)
    if kind == "nano":
        return randomise_bn(create_model("repvgg_nano", 10, 1, **options))
    return randomise_bn(create_model("repvgg", 10, 3, **SMALL[kind], **options))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A train-form checkpoint of each kind, by name; 'deploy' is the plain one, fused."""
    folder = tmp_path_factory.mktemp("checkpoints")
    gray = {"mean": [0.2], "std": [0.4], "crop_pct": 1.0, "interpolation": "bilinear"}
    for kind in KINDS:
        facts = {**FACTS, "preprocessing": gray} if kind == "nano" else FACTS
        save_checkpoint(make(kind), folder / f"{kind}.ckpt", **facts)
    save_checkpoint(to_deploy(make("plain")), folder / "deploy.ckpt", **FACTS)
    save_checkpoint(to_deploy(make("nano")), folder / "silent.ckpt")
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def truth(checkpoints):
    """Images -> logits of a checkpoint, evaluated by PyTorch from the file's own tensors, branches and all."""
    return {kind: TorchReference(read_tensors(path)) for kind, path in checkpoints.items()}


@pytest.fixture(scope="module")
def fused(checkpoints):
    """A function (kind, **options): the ONNX model of a kind's deploy form."""
    nets = {kind: to_deploy(make(kind)) for kind in ("plain", "d2se", "plus", "nano")}
    return lambda kind, **options: build_onnx(nets[kind].variant, network_arrays(nets[kind]), GraphOptions(**options))


def session(model):
    """A file or model under onnxruntime, without a line of ours: a function of its one input."""
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    found = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    return lambda x: found.run(None, {"images": x})[0]


def pixels(*shape):
    """Random uint8 pictures (N, H, W, C)."""
    return np.random.default_rng(3).integers(0, 256, shape, np.uint8)


def normalised(pictures, preprocessing=FACTS["preprocessing"]):
    """As the network takes them, (N, C, H, W)."""
    x = (pictures / 255 - np.array(preprocessing["mean"])) / np.array(preprocessing["std"])
    return x.transpose(0, 3, 1, 2).astype(np.float32)


# -------------------------------------------------------------------------------------------------------------- ONNX


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


def test_dynamic_sizes(fused, truth):
    run = session(fused("d2se"))
    for shape in ((1, 3, 32, 32), (2, 3, 50, 37), (5, 3, 33, 64)):
        assert relative_difference(run(images(*shape)), truth["d2se"](images(*shape))) < 1e-5
    shape = fused("d2se").graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in shape] == ["batch", 3, "height", "width"]


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


@pytest.mark.parametrize("kind", ["plain", "plus"])
def test_float16(kind, fused, truth):
    """Inside everything is float16, outside nothing; it is nearly the same, and not quite."""
    model = fused(kind, precision="float16")
    x = images(4, 3, *SIZE)
    assert 1e-5 < relative_difference(session(model)(x), truth[kind](x)) < 5e-3
    assert {tensor.data_type for tensor in model.graph.initializer} == {onnx.TensorProto.FLOAT16}
    outside = [*model.graph.input, *model.graph.output]
    assert {value.type.tensor_type.elem_type for value in outside} == {onnx.TensorProto.FLOAT}


def test_what_float16_cannot_hold_is_refused():
    net = to_deploy(make("plain"))
    arrays = {**network_arrays(net), "linear.bias": np.full(10, 1e5, np.float32)}
    with pytest.raises(UserError, match=r"linear.bias holds values that float16 cannot"):
        build_onnx(net.variant, arrays, GraphOptions(precision="float16"))


def test_more_than_a_file_holds_is_refused():
    net = make("plain", deploy=True)
    huge = np.broadcast_to(np.float32(0), (2**29,))  # 2 GiB that take no memory
    with pytest.raises(UserError, match=r"the weights take 2.0 GiB, an ONNX file holds 2 at most; export to .mindir"):
        build_onnx(net.variant, {**network_arrays(net), "huge": huge})


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
                value = np.full(tensor.dims, float(tensor.name.endswith("gain")), np.float32)
                tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
        return model

    monkeypatch.setattr(export, "build_onnx", folded)
    with pytest.raises(EquivalenceError, match="was not written: its logits differ"):
        export_checkpoint(checkpoints["deploy"], tmp_path / "out.onnx", preprocess=True)


@pytest.mark.parametrize("opset", [13, 18, 22])
def test_opsets(opset, fused, truth):
    """Every operator in its form of that opset, as onnx's checker and onnxruntime see it."""
    told = Preprocessing(image_size=SIZE, in_channels=3, **FACTS["preprocessing"])
    model = fused("d2se", opset=opset, softmax=True, precision="float16", preprocess=told)
    assert model.opset_import[0].version == opset
    onnx.checker.check_model(model, full_check=True)
    logits = truth["d2se"](normalised(pixels(2, *SIZE, 3)))
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert np.abs(session(model)(pixels(2, *SIZE, 3)) - expected).max() < 5e-3


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


# ------------------------------------------------------------------------------------------------------- the checker


def with_node(model, operator, after, extra):
    """The model with one more node behind `after`'s output."""
    index = next(i for i, node in enumerate(model.graph.node) if node.output[0] == after)
    model.graph.node[index].output[0] = "before"
    model.graph.node.insert(index + 1, onnx.helper.make_node(operator, ["before", *extra], [after]))
    return model


@pytest.mark.parametrize(
    ("operator", "extra", "problem"),
    [
        ("BatchNormalization", ["g", "b", "m", "v"], "1 BatchNormalization instead of 0"),
        ("Add", ["images"], "1 Add instead of 0"),
        ("Relu", [], "8 Relu instead of 7"),
    ],
)
def test_the_checker_refuses_what_is_not_the_deploy_form(operator, extra, problem):
    net = make("plain", deploy=True)
    model = build_onnx(net.variant, network_arrays(net))
    assert check_operators(model, net.variant, GraphOptions())["Conv"] == 7
    with pytest.raises(EquivalenceError, match=problem) as caught:
        check_operators(with_node(model, operator, "stage1.0.conv", extra), net.variant, GraphOptions())
    assert caught.value.report[operator] >= 1


def test_the_checker_refuses_the_train_form(tmp_path):
    """PyTorch's export of the branches themselves."""
    torch = pytest.importorskip("torch")

    class Branches(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.dense, self.point = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return torch.relu(self.dense(x) + self.point(x))

    path = tmp_path / "branches.onnx"
    torch.onnx.export(Branches(), torch.zeros(1, 3, 8, 8), str(path), dynamo=False)
    with pytest.raises(EquivalenceError, match="1 Add instead of 0"):
        check_operators(onnx.load(path), make("plain").variant, GraphOptions())


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

    name = "_write_onnx" if suffix == ".onnx" else "_write_mindir"
    write = getattr(export, name)
    monkeypatch.setattr(export, name, spoilt)
    with pytest.raises(EquivalenceError, match="was not written: its logits differ from the network's by") as caught:
        export_checkpoint(checkpoints["plain"], target)
    assert not caught.value.report.passed
    assert target.read_bytes() == b"before"
    assert os.listdir(tmp_path) == [target.name]


# ------------------------------------------------------------------------------------------------------------ MindIR


def test_mindir(checkpoints, truth, tmp_path):
    """Any size, bytes in, probabilities out; the facts lie beside it, and no mode is left changed."""
    mode = stat.S_IMODE(tmp_path.stat().st_mode)
    target = tmp_path / "out.mindir"
    done = export_checkpoint(checkpoints["plus"], target, GraphOptions(softmax=True), preprocess=True, fixed_size=False)
    graph = nn.GraphCell(ms.load(str(target)))
    pictures = pixels(2, 37, 50, 3)
    logits = truth["plus"](normalised(pictures))
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert np.abs(graph(Tensor(pictures)).asnumpy() - expected).max() < 2e-5
    facts = json.loads((tmp_path / "out.mindir.json").read_text(encoding="utf-8"))
    assert facts.pop("file_sha256")
    assert facts == done.metadata
    assert facts["class_names"] == CLASSES
    assert stat.S_IMODE(tmp_path.stat().st_mode) == mode
    assert os.access(target, os.W_OK)
    assert sorted(os.listdir(tmp_path)) == ["out.mindir", "out.mindir.json"]


def test_mindir_in_float16(checkpoints, truth, tmp_path):
    """Half the size inside, float32 outside."""
    export_checkpoint(checkpoints["deploy"], tmp_path / "half.mindir", GraphOptions(2, precision="float16"))
    x = images(2, 3, *SIZE)
    found = nn.GraphCell(ms.load(str(tmp_path / "half.mindir")))(Tensor(x))
    assert found.dtype == ms.float32
    assert 1e-5 < relative_difference(found, truth["plain"](x)) < 5e-3
    # Smaller than the float32 weights alone, though the graph comes on top, with the paths of its sources.
    assert (tmp_path / "half.mindir").stat().st_size < checkpoints["deploy"].stat().st_size


# -------------------------------------------------------------------------------------------------------- the command


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
        ("out.onnx", ["--batch_size", "many"], "batch_size (='many') must be a whole number of at least 1, or dynamic"),
        ("out.onnx", ["--image_size", "big"], "image_resize"),
        ("out.onnx", ["--precision", "int4"], "invalid choice: 'int4'"),
        ("out.air", ["--batch_size", "1"], "MindSpore writes AIR on Ascend only"),
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
    assert err == f"error: {tmp_path}/none.ckpt does not exist\n"


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named(package, call, checkpoints, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    status, _, err = call(checkpoints["deploy"], tmp_path / "out.onnx")
    assert status == 2
    assert re.fullmatch(rf'error: .* needs the package {package}: pip install "mindrepvgg\[onnx\]"\n', err)
    assert os.listdir(tmp_path) == []


def test_preprocessing_that_is_not_known_is_asked_for(call, checkpoints, tmp_path):
    """A gray network of another project tells no mean; a colour one's is ImageNet's."""
    status, _, err = call(checkpoints["silent"], tmp_path / "out.onnx", "--preprocess")
    assert status == 2
    assert "does not tell mean and std: give --mean and --std" in err
    small = (checkpoints["silent"], tmp_path / "out.onnx", "--image_size", "32", "--json")
    assert "mean" not in json.loads(call(*small)[1])["metadata"]
    assert json.loads(call(*small, "--preprocess", "--mean", ".1", "--std", ".3")[1])["metadata"]["mean"] == [0.1]


# ----------------------------------------------------------------------------------------------- pictures, Ascend, docs


@pytest.mark.parametrize("batch_size", [None, 1, 7, 32])
def test_batches_are_of_every_kind(batch_size):
    """Whole batches where the batch is fixed, other sizes where the size is not."""
    pictures = Pictures(make("nano"), {"image_resize": [16, 24]})
    fixed = [len(x) for x in pictures.batches(GraphOptions(batch_size, (16, 24)))]
    assert set(fixed) == ({batch_size} if batch_size else {8, 4, 1})
    shapes = {x.shape[1:3] for x in pictures.batches(GraphOptions(batch_size))}
    assert shapes == {(16, 24), (12, 24), (16, 18)}


def test_without_pictures_it_is_noise(monkeypatch):
    monkeypatch.setattr("mindrepvgg.deployment.pictures.labelled_photos", lambda: None)
    pictures = Pictures(make("plain"), {"image_resize": [16, 24]})
    assert pictures.origin == "8 images of seeded noise"
    assert pictures.pixels.shape == (8, 16, 24, 3)


def commands(suffix=".onnx", **options):
    return "\n".join(
        text for _, text in ascend_commands(Path(f"a b/out{suffix}"), GraphOptions(**options), 3, (224, 224))
    )


def test_commands_for_ascend():
    """As the documentation of ATC and converter_lite has them."""
    static = commands(batch_size=1, image_size=(224, 224))
    assert static.splitlines() == [
        "atc '--model=a b/out.onnx' --framework=5 '--output=a b/out' --soc_version=Ascend310P3 --input_format=NCHW "
        "--input_shape=images:1,3,224,224 --precision_mode_v2=origin",
        r"printf '%s\n' '[ascend_context]' precision_mode=enforce_origin > 'a b/out.lite.ini'",
        "converter_lite --fmk=ONNX '--modelFile=a b/out.onnx' '--outputFile=a b/out_lite' --saveType=MINDIR "
        "--optimize=ascend_oriented --inputShape=images:1,3,224,224 '--configFile=a b/out.lite.ini'",
    ]
    batch = commands(image_size=(224, 224), precision="float16")
    assert "--input_shape=images:-1,3,224,224 --dynamic_batch_size=1,2,4,8,16 --precision_mode_v2=fp16" in batch
    assert "'input_shape=images:[-1,3,224,224]' 'dynamic_dims=[1],[2],[4],[8],[16]'" in batch
    size = commands(batch_size=4)
    assert "--input_shape=images:4,3,-1,-1 '--dynamic_image_size=224,224;256,256'" in size
    both = commands(preprocess=preprocessing(**RGB))
    assert "--input_format=ND --input_shape=images:-1,-1,-1,3 '--dynamic_dims=1,224,224;1,256,256;2,224,224" in both
    assert "atc" not in commands(".mindir")
    assert "--framework=1" in commands(".air", batch_size=1, image_size=(224, 224))


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
