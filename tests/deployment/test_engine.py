"""onnxruntime as a function of arrays: right numbers, any number of images, and errors that say what is wrong."""

import json
import sys

import mindspore as ms
import numpy as np
import onnx
import pytest
from mindspore import Tensor
from support import SMALL, context_mode, images, noise, randomise_bn, relative_difference, weights
from support.loaders import RGB, preprocessing

from mindrepvgg import create_model, to_deploy
from mindrepvgg.deployment.engine import OnnxEngine, engine_of, network_facts
from mindrepvgg.deployment.graph import GraphOptions, build_onnx
from mindrepvgg.errors import CheckpointError, UserError
from mindrepvgg.models.parameters import network_arrays


@pytest.fixture(autouse=True, scope="module")
def _pynative():
    with context_mode("pynative"):
        yield


def make(**options):
    ms.set_seed(0)
    return randomise_bn(create_model("repvgg", 10, 3, **SMALL["d2se"], **options)).set_train(False)


def content(**options):
    """An ONNX model in memory."""
    net = make(deploy=True)
    return build_onnx(net.variant, network_arrays(net), GraphOptions(**options), network_facts(net)).SerializeToString()


@pytest.fixture(scope="module")
def foreign():
    """The content of another program's file: one Relu over images."""
    helper, shape = onnx.helper, ["n", 3, 8, 8]
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "other", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    helper.set_model_props(model, {"mean": "none of ours"})
    return model.SerializeToString()


@pytest.mark.parametrize("deploy", [False, True])
def test_a_network_in_memory(deploy):
    """Both forms, any batch and size; the network stays as it was, branches, names and all."""
    net = make()
    net = to_deploy(net) if deploy else net
    before = weights(net)
    engine = engine_of(net, num_threads=1)
    for shape in ((2, 3, 32, 32), (1, 3, 45, 33)):
        x = images(*shape)
        assert relative_difference(engine(x), net(Tensor(x))) < 1e-5
    assert net.deploy == deploy
    after = weights(net)
    assert list(after) == list(before)
    assert all(np.array_equal(after[name], before[name]) for name in before)
    assert engine.metadata["model"] == "repvgg"
    assert (engine.batch_size, engine.image_size, engine.num_classes) == (None, None, 10)


@pytest.mark.parametrize("count", [1, 4, 6, 8])
def test_a_fixed_batch_takes_any_number(count):
    """In batches of the file's; what fills the last one up does not count."""
    fixed, free = OnnxEngine(content(batch_size=4, image_size=(32, 32))), OnnxEngine(content())
    assert (fixed.batch_size, fixed.image_size) == (4, (32, 32))
    x = images(count, 3, 32, 32)
    assert fixed(x).shape == (count, 10)
    assert relative_difference(fixed(x), free(x)) < 1e-5


def test_a_file_and_its_content_are_the_same(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(content())
    x = images()
    assert np.array_equal(OnnxEngine(path, 1)(x), OnnxEngine(content(), 1)(x))
    assert OnnxEngine(str(path)).path == path


def test_float64_and_strided_images_are_taken():
    engine = OnnxEngine(content())
    x = images(2, 3, 32, 32)
    assert np.array_equal(engine(x.astype(np.float64)), engine(x))
    assert np.array_equal(engine(x[:, ::-1][:, ::-1]), engine(x))


def test_bytes_for_a_file_that_normalises():
    engine = OnnxEngine(content(preprocess=preprocessing(**RGB), image_size=(32, 40)))
    assert engine.preprocesses
    assert engine.image_size == (32, 40)
    assert engine(np.zeros((2, 32, 40, 3), np.uint8)).shape == (2, 10)
    with pytest.raises(UserError, match=r"takes uint8 \(any, 32, 40, 3\), not float64 \(1, 32, 40, 3\)"):
        engine(np.zeros((1, 32, 40, 3)))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 1, 32, 32), (1, 3, 32, 33), (0, 3, 32, 32), (1, 32, 32, 3)])
def test_images_of_another_shape_are_refused(shape):
    engine = OnnxEngine(content(image_size=(32, 32)))
    with pytest.raises(UserError, match=r"the model takes float32 \(any, 3, 32, 32\), not float32 \("):
        engine(noise(*shape))


def test_what_is_no_onnx_file(tmp_path):
    (tmp_path / "text.onnx").write_text("no model")
    for name, problem in (
        ("none.onnx", "none.onnx does not exist, expected an ONNX file"),
        ("", "is a folder, expected an ONNX file"),
        ("text.onnx", "text.onnx cannot be run by onnxruntime"),
    ):
        with pytest.raises(CheckpointError, match=problem) as caught:
            OnnxEngine(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="the model cannot be run by onnxruntime"):
        OnnxEngine(content()[:-100])


@pytest.mark.parametrize("shape", [[2], [0, 3, 8, 8]])
def test_what_is_no_network_of_images(shape):
    helper = onnx.helper
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    with pytest.raises(CheckpointError, match="expected one batch of images in and one array out"):
        OnnxEngine(model.SerializeToString())


def test_another_programs_file_runs_and_tells_nothing(foreign):
    engine = OnnxEngine(foreign)
    assert engine.metadata == {}
    assert engine(noise(1, 3, 8, 8)).min() == 0
    with pytest.raises(CheckpointError, match="does not tell its mean, std: another program wrote it"):
        engine.require("mean", "std")


def altered(change):
    model = onnx.ModelProto.FromString(content())
    change(model)
    return model.SerializeToString()


def test_metadata_that_are_no_text():
    damaged = content().replace(b"num_classes", b"num_\xff\xfe\xfdsses")
    with pytest.raises(CheckpointError, match=r"^the model is damaged: its metadata are not UTF-8; get a fresh copy$"):
        OnnxEngine(damaged)


def test_metadata_that_no_parser_bears():
    def nest(model):
        model.metadata_props[-1].value = "[" * 10**5

    with pytest.raises(CheckpointError, match="is not described rightly") as caught:
        OnnxEngine(altered(nest))
    assert len(str(caught.value)) < 500


def told(**facts):
    """A model with other metadata than its own; None removes one."""

    def change(model):
        kept = {entry.key: entry.value for entry in model.metadata_props if facts.get(entry.key, "") is not None}
        changed = {key: json.dumps(value) for key, value in facts.items() if value is not None}
        onnx.helper.set_model_props(model, {**kept, **changed})

    return altered(change)


@pytest.mark.parametrize(
    ("facts", "problem"),
    [
        ({"num_classes": 9}, "is not described rightly: its metadata say num_classes 9, its graph has 10; get a"),
        ({"in_channels": 1}, "is not described rightly: its metadata say in_channels 1, its graph has 3; get a fresh"),
        ({"class_names": ["a"] * 9}, "is not described rightly: class_names holds 9 names, the network has 10 classes"),
        ({"class_names": "ten"}, "is not described rightly: class_names (='ten') must be a list of names"),
        ({"image_size": 10**9}, "is not described rightly: image_size (=1000000000) must be a height and a width"),
        ({"std": [1, 0, 1]}, "is not described rightly: preprocessing's std (=[1, 0, 1]) must be a list of numbers"),
        ({"mean": [0.5]}, "is not described rightly: preprocessing's mean holds 1 numbers, the network has 3 input"),
        ({"model": "resnet50", "model_args": {}}, "describes a network that cannot be built: model (='resnet50') is "),
        ({"num_classes": None}, "does not tell its num_classes: it was written by another program"),
        ({"mindrepvgg": "9.0.0", "form": "int4"}, "deploy, bn, qat; mindrepvgg 9.0.0 wrote it, this is "),
    ],
)
def test_metadata_that_lie(facts, problem):
    with pytest.raises(CheckpointError) as caught:
        OnnxEngine(told(**facts))
    assert str(caught.value).startswith("the model ")
    assert problem in str(caught.value)


def test_metadata_of_a_newer_version():
    engine = OnnxEngine(told(mindrepvgg="9.0.0", tags=["new"], class_names=[*"abcdefghij"]))
    assert engine.require("tags", "num_classes") == [["new"], 10]


def test_operators_that_do_not_fit_together():
    def widen(model):
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 5
        model.ClearField("metadata_props")
        del model.graph.value_info[:]

    with pytest.raises(CheckpointError, match=r"^the model cannot ") as caught:
        OnnxEngine(altered(widen))(images(1, 5, 32, 32))
    assert len(str(caught.value).splitlines()) == 1


def test_facts_are_asked_for_by_name():
    engine = OnnxEngine(content())
    assert engine.require("model", "num_classes") == ["repvgg", 10]
    with pytest.raises(CheckpointError, match="does not tell its class_names, nor did"):
        engine.require("model", "class_names")


def test_without_onnxruntime_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    missing = r"needs the package onnxruntime: pip install onnxruntime 'numpy<2' \(extra: onnx\)"
    with pytest.raises(UserError, match=missing):
        OnnxEngine("any.onnx")
    with pytest.raises(UserError, match=missing):
        engine_of(make())
