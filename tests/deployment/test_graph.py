"""The ONNX graph computes what the checkpoint does, judged by PyTorch on the original; the checker refuses others."""

import numpy as np
import onnx
import pytest
from support import images, relative_difference
from support.exports import FACTS, SIZE, make, normalised, pixels
from support.onnx_files import session

from mindrepvgg import to_deploy
from mindrepvgg.deployment.graph import GraphOptions, build_onnx, check_operators
from mindrepvgg.errors import EquivalenceError, UserError
from mindrepvgg.models.parameters import network_arrays
from mindrepvgg.models.preprocessing import Preprocessing

pytestmark = pytest.mark.usefixtures("few_photos")


def test_dynamic_sizes(fused, truth):
    run = session(fused("d2se"))
    for shape in ((1, 3, 32, 32), (2, 3, 50, 37), (5, 3, 33, 64)):
        assert relative_difference(run(images(*shape)), truth["d2se"](images(*shape))) < 1e-5
    shape = fused("d2se").graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in shape] == ["batch", 3, "height", "width"]


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


@pytest.mark.parametrize("kind", ["plain", "d2se"])
def test_every_convolution_has_all_attributes(kind, fused):
    """Those that equal ONNX's defaults too: MindSpore Lite refuses a Conv without strides."""
    told = Preprocessing(image_size=SIZE, in_channels=3, **FACTS["preprocessing"])
    static = {"batch_size": 2, "image_size": SIZE}
    for options in ({}, {"preprocess": told}, {"folded": told, **static}, {"precision": "float16", **static}):
        nodes = [node for node in fused(kind, **options).graph.node if node.op_type == "Conv"]
        assert len(nodes) >= 7
        for node in nodes:
            names = {attribute.name for attribute in node.attribute}
            assert names == {"kernel_shape", "pads", "strides", "dilations", "group"}, node.name


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
