"""The checker of AMCT's rules refuses what breaks one: files broken on purpose, and another tool's."""

import contextlib
import io
import json

import numpy as np
import onnx
import onnxruntime.quantization as ort_quantization
import pytest
from support.int8 import SHAPE, loader

import mindrepvgg
from mindrepvgg.cli import verbs
from mindrepvgg.deployment.int8.amct_check import check_int8, check_model
from mindrepvgg.deployment.int8.ascend_form import to_ascend
from mindrepvgg.deployment.int8.ascend_rules import (
    CONSTANT,
    CONV_SCALES,
    FLOAT32,
    FLOAT_BIAS,
    GEMM_SCALES,
    OPERATORS,
    PAIRED,
    PAIRS_ALONE,
    PER_TENSOR,
    PLAIN_GEMM,
    RULES,
    SAME_FACTORS,
    SIGNED,
    WEIGHTS_PAIRED,
    WHOLE_LAYERS,
    breaches,
)
from mindrepvgg.deployment.int8.calibration import calibration_batches
from mindrepvgg.deployment.int8.grids import IntegerOptions
from mindrepvgg.deployment.int8.integers import Quantizer, layer_nodes
from mindrepvgg.errors import CheckpointError, UserError
from mindrepvgg.models.variants import find


@pytest.fixture(scope="module")
def quantizer(float_path):
    layers = layer_nodes(find("repvgg", **SHAPE), "logits")
    return Quantizer(float_path, layers, calibration_batches(loader(32)), IntegerOptions(linear_per_channel=False))


@pytest.fixture
def file(quantizer):
    return to_ascend(quantizer.model(quantizer.layers))


def node(model, kind, part=""):
    return next(node for node in model.graph.node if node.op_type == kind and part in node.name)


def layer(model, kind):
    """A layer, and the nodes behind its weights: Dequantize and Quantize."""
    found = node(model, kind)
    makers = {output: node for node in model.graph.node for output in node.output}
    dequantize = makers[found.input[1]]
    return found, dequantize, makers[dequantize.input[0]]


def put(model, nodes, place, array):
    """Let nodes read a new initializer at a place of their inputs."""
    name = f"broken_{len(model.graph.initializer)}"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    for each in nodes:
        each.input[place] = name


def pair(model):
    """The nodes that quantise the pictures."""
    return [node(model, kind, "images") for kind in ("QuantizeLinear", "DequantizeLinear")]


def unsigned(model):
    put(model, pair(model), 2, np.uint8(0))


def without_zero_point(model):
    for each in pair(model):
        del each.input[2]


def per_channel_activations(model):
    put(model, pair(model), 1, np.full(3, 0.1, np.float32))
    put(model, pair(model), 2, np.zeros(3, np.int8))


def other_scale(model):
    put(model, pair(model)[1:], 1, np.float32(0.5))


def other_zero_point(model):
    put(model, pair(model)[1:], 2, np.int8(5))


def no_dequantize(model):
    quantize, dequantize = pair(model)
    for each in model.graph.node:
        for place, name in enumerate(each.input):
            if name == dequantize.output[0]:
                each.input[place] = quantize.output[0]
    model.graph.node.remove(dequantize)


def bare_weights(model):
    _, dequantize, quantize = layer(model, "Conv")
    shape = next(tuple(t.dims) for t in model.graph.initializer if t.name == quantize.input[0])
    put(model, [dequantize], 0, np.zeros(shape, np.int8))
    model.graph.node.remove(quantize)


def computed_weights(model):
    *_, quantize = layer(model, "Conv")
    made = onnx.helper.make_node("Identity", [quantize.input[0]], ["computed"], name="computed")
    quantize.input[0] = "computed"
    model.graph.node.insert(0, made)


def integer_bias(model):
    found, *_ = layer(model, "Conv")
    count = next(tensor.dims[0] for tensor in model.graph.initializer if tensor.name == found.input[2])
    made = onnx.helper.make_node("DequantizeLinear", ["", "", ""], ["bias_real"], name="bias_dequantize", axis=0)
    for place, array in enumerate((np.zeros(count, np.int32), np.ones(count, np.float32), np.zeros(count, np.int32))):
        put(model, [made], place, array)
    found.input[2] = "bias_real"
    model.graph.node.insert(0, made)


def gemm_per_channel(model):
    _, *both = layer(model, "Gemm")
    count = next(tensor.dims[0] for tensor in model.graph.initializer if tensor.name == both[1].input[0])
    put(model, both, 1, np.ones(count, np.float32))
    put(model, both, 2, np.zeros(count, np.int8))


def conv_along_inputs(model):
    for each in layer(model, "Conv")[1:]:
        next(attribute for attribute in each.attribute if attribute.name == "axis").i = 1


def half_scale(model):
    put(model, pair(model), 1, np.float16(0.1))


def zero_scale(model):
    put(model, pair(model), 1, np.float32(0))


def computed_scale(model):
    nodes = pair(model)
    made = onnx.helper.make_node("Identity", [nodes[0].input[1]], ["computed"], name="computed")
    model.graph.node.insert(0, made)
    for each in nodes:
        each.input[1] = "computed"


def scaled_gemm(model):
    node(model, "Gemm").attribute.append(onnx.helper.make_attribute("alpha", 2.0))


def newer_operators(model):
    model.opset_import[0].version = 21
    model.ir_version = 10


def foreign_operator(model):
    found = node(model, "Relu")
    found.op_type, found.domain = "FusedRelu", "com.microsoft"
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))


def other_integers(model):
    made = onnx.helper.make_node(
        "DynamicQuantizeLinear", ["images"], ["dynamic", "dynamic_scale", "dynamic_zero"], name="dynamic"
    )
    model.graph.node.insert(0, made)


def integer_weights_alone(model):
    quantize, dequantize = pair(model)
    found, *_ = layer(model, "Conv")
    found.input[0] = "images"
    model.graph.node.remove(quantize)
    model.graph.node.remove(dequantize)


# The file broken on purpose: the rule that it breaks.
BROKEN = {
    unsigned: SIGNED,
    without_zero_point: SIGNED,
    per_channel_activations: PER_TENSOR,
    other_scale: SAME_FACTORS,
    other_zero_point: SAME_FACTORS,
    no_dequantize: PAIRED,
    bare_weights: WEIGHTS_PAIRED,
    computed_weights: WEIGHTS_PAIRED,
    integer_bias: FLOAT_BIAS,
    gemm_per_channel: GEMM_SCALES,
    conv_along_inputs: CONV_SCALES,
    half_scale: FLOAT32,
    zero_scale: CONSTANT,
    computed_scale: CONSTANT,
    integer_weights_alone: WHOLE_LAYERS,
    scaled_gemm: PLAIN_GEMM,
    other_integers: PAIRS_ALONE,
    newer_operators: OPERATORS,
    foreign_operator: OPERATORS,
}


def test_the_file_itself_is_accepted(file):
    assert breaches(file) == []


@pytest.mark.parametrize("breaks", BROKEN, ids=lambda breaks: breaks.__name__)
def test_a_file_broken_on_purpose_is_refused_for_its_rule_alone(file, breaks):
    breaks(file)
    found = breaches(file)
    assert {breach.rule for breach in found} == {BROKEN[breaks]}
    report = check_model(file, "broken.onnx")
    assert not report.passed
    assert f"broken: {BROKEN[breaks].text}\n  where: {found[0].node} ({found[0].found})" in report.format()
    assert f"  what to do: {BROKEN[breaks].cure}\n" in report.format()


def test_each_rule_has_a_file_that_breaks_it():
    assert set(BROKEN.values()) == set(RULES)


def test_the_default_file_breaks_the_rules_it_is_known_to_break(quantizer):
    quantizer.options = IntegerOptions()
    try:
        default = quantizer.model(quantizer.layers)
    finally:
        quantizer.options = IntegerOptions(linear_per_channel=False)
    assert {breach.rule for breach in breaches(default)} == {SIGNED, WEIGHTS_PAIRED, FLOAT_BIAS, GEMM_SCALES}


class Batches(ort_quantization.CalibrationDataReader):
    def __init__(self, batches):
        self._batches = iter([{"images": batch} for batch in batches])

    def get_next(self):
        return next(self._batches, None)


def quantized_by_onnxruntime(quantizer, path, **options):
    with contextlib.redirect_stdout(io.StringIO()):
        ort_quantization.quantize_static(str(quantizer.path), str(path), Batches(quantizer.batches), **options)
    return path


def test_quantize_statics_breaches_are_named_one_by_one(quantizer, tmp_path):
    path = quantized_by_onnxruntime(quantizer, tmp_path / "default.onnx")
    assert list(check_int8(path).broken) == [WEIGHTS_PAIRED, FLOAT_BIAS]
    # As its pages advise for x86: unsigned activations and a scale for each channel.
    kind = ort_quantization.QuantType.QUInt8
    path = quantized_by_onnxruntime(quantizer, tmp_path / "advised.onnx", activation_type=kind, per_channel=True)
    found = check_int8(path)
    assert list(found.broken) == [SIGNED, WEIGHTS_PAIRED, FLOAT_BIAS, GEMM_SCALES]
    layers = len(quantizer.layers)
    assert found.layers == layers
    assert [len(found.broken[rule]) for rule in (WEIGHTS_PAIRED, FLOAT_BIAS, GEMM_SCALES)] == [layers, layers, 1]
    # By hand: each QuantizeLinear of the file quantises an activation.
    quantizes = [n for n in onnx.load(str(path)).graph.node if n.op_type == "QuantizeLinear"]
    assert [breach.node for breach in found.broken[SIGNED]] == [n.name for n in quantizes]


def test_what_fits_by_onnxruntime_is_accepted_and_its_biases_remarked(quantizer, tmp_path):
    options = {"AddQDQPairToWeight": True, "QuantizeBias": False, "ActivationSymmetric": True}
    kind = ort_quantization.QuantType.QInt8
    path = quantized_by_onnxruntime(
        quantizer, tmp_path / "fits.onnx", activation_type=kind, per_channel=False, extra_options=options
    )
    found = check_int8(path)
    assert found.passed, found.format()
    assert any(remark.startswith("biases off their grid: ") for remark in found.remarks)
    assert any(remark.startswith("pairs stand in front of ") for remark in found.remarks)


def test_the_operator_form_is_refused(quantizer, tmp_path):
    form = ort_quantization.QuantFormat.QOperator
    path = quantized_by_onnxruntime(quantizer, tmp_path / "operators.onnx", quant_format=form)
    found = check_int8(path)
    assert PAIRS_ALONE in found.broken
    assert any(breach.found == "it is a QLinearConv" for breach in found.broken[PAIRS_ALONE])


def one_layer(kind, size, scales=(), axis=1):
    """A model of one integer layer of this operator, with weights of this size, and scales of this shape."""
    make, arrays, nodes = onnx.helper.make_node, {}, []

    def pair(tensor, scale, axis):
        arrays[f"{tensor}_scale"] = np.full(scale, 0.1, np.float32)
        arrays[f"{tensor}_zero"] = np.zeros(scale, np.int8)
        factors, axes = [f"{tensor}_scale", f"{tensor}_zero"], {"axis": axis} if scale else {}
        nodes.append(make("QuantizeLinear", [tensor, *factors], [f"{tensor}_q"], name=f"{tensor}_q", **axes))
        nodes.append(make("DequantizeLinear", [f"{tensor}_q", *factors], [f"{tensor}_dq"], name=f"{tensor}_dq", **axes))

    arrays["w"] = np.ones(size, np.float32)
    pair("x", (), 1)
    pair("w", scales, axis)
    nodes.append(make(kind, ["x_dq", "w_dq"], ["y"], name="layer"))
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy"]
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = onnx.helper.make_graph(nodes, "one layer", ends[:1], ends[1:], initializers)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)])


@pytest.mark.parametrize(
    ("model", "broken"),
    [
        (one_layer("MatMul", (4, 3)), set()),
        (one_layer("MatMul", (4, 3), (3,)), {GEMM_SCALES}),
        (one_layer("ConvTranspose", (4, 3, 2, 2), (3,), 1), set()),
        (one_layer("ConvTranspose", (4, 3, 2, 2), (4,), 0), {CONV_SCALES}),
        (one_layer("Conv", (3, 4, 1, 1), (3,), -4), set()),
        (one_layer("Conv", (3, 4, 1, 1), (4,), -3), {CONV_SCALES}),
    ],
)
def test_other_layers_and_other_ways_to_name_an_axis(model, broken):
    assert {breach.rule for breach in breaches(model)} == broken


def test_two_activations_are_no_layer_with_weights():
    model = one_layer("MatMul", (4, 3))
    kept = [tensor for tensor in model.graph.initializer if tensor.name != "w"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [4, 3]))
    assert {breach.rule for breach in breaches(model)} == {WEIGHTS_PAIRED}


def test_a_quantize_may_give_the_only_output():
    model = one_layer("MatMul", (4, 3))
    model.graph.node.append(onnx.helper.make_node("QuantizeLinear", ["y", "x_scale", "x_zero"], ["q"], name="q"))
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("q", onnx.TensorProto.INT8, None))
    assert breaches(model) == []
    model.graph.output.append(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None))
    assert {breach.rule for breach in breaches(model)} == {PAIRED}


def test_a_gemm_may_transpose_its_weights_or_not(file):
    gemm = node(file, "Gemm")
    assert {a.name: a.i for a in gemm.attribute}["transB"] == 1
    next(a for a in gemm.attribute if a.name == "transB").i = 0
    assert breaches(file) == []


def test_factors_may_be_constant_nodes_and_of_one_element(file):
    """As PyTorch writes them."""
    nodes = pair(file)
    scale = next(t for t in file.graph.initializer if t.name == nodes[0].input[1])
    made = [
        onnx.helper.make_node("Constant", [], ["scale_0"], value=scale),
        onnx.helper.make_node("Constant", [], ["scale_1"], value_float=onnx.numpy_helper.to_array(scale).item()),
        onnx.helper.make_node(
            "Constant", [], ["zero"], value=onnx.helper.make_tensor("z", onnx.TensorProto.INT8, [1], [0])
        ),
    ]
    for number, each in enumerate(nodes):
        each.input[1], each.input[2] = f"scale_{number}", "zero"
    for number, each in enumerate(made):
        file.graph.node.insert(number, each)
    assert breaches(file) == []


def test_what_atc_asks_for_is_remarked(file):
    file.opset_import[0].version = 15
    found = check_model(file, "file")
    assert found.passed
    assert found.remarks == (
        "sizes of the input images are open: ATC takes a list of them, as --dynamic_batch_size=1,8",
        "the file says opset 15: AMCT's older onnx (1.8 to 1.10) reads files up to 14",
    )


def test_the_command_and_python_say_the_same(file, quantizer, tmp_path, capsys):
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    good.write_bytes(file.SerializeToString())
    unsigned(file)
    bad.write_bytes(file.SerializeToString())
    assert mindrepvgg.check_int8(good).passed
    assert verbs.main(["check-int8", str(good)]) == 0
    assert f"keeps all {len(RULES)} rules of Ascend's AMCT" in capsys.readouterr().out
    assert verbs.main(["check-int8", str(bad), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads(json.dumps(mindrepvgg.check_int8(bad).to_dict()))
    assert [broken["rule"] for broken in told["broken"]] == [SIGNED.text]
    assert told["not_run"].startswith("not run on an NPU")
    assert verbs.main(["check-int8", str(quantizer.path)]) == 2
    assert "it is a float file; mindrepvgg quantize --for ascend writes INT8" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"no ONNX", b"\x08\x07"])
def test_what_is_no_onnx_is_refused_in_a_line(content, tmp_path):
    path = tmp_path / "damaged.onnx"
    with pytest.raises(CheckpointError):
        check_int8(path)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"is not valid ONNX|is a float file"):
        check_int8(path)
