"""The form that Ascend's AMCT reads: it stands for the same numbers, and keeps every rule."""

import math

import numpy as np
import onnx
import pytest
from support import relative_difference
from support.int8 import SHAPE, loader
from support.onnx_files import session

from mindrepvgg.deployment.graph import GraphOptions, build_onnx
from mindrepvgg.deployment.int8.amct_check import check_model
from mindrepvgg.deployment.int8.ascend_form import OPSET, to_ascend
from mindrepvgg.deployment.int8.calibration import calibration_batches
from mindrepvgg.deployment.int8.grids import IntegerOptions
from mindrepvgg.deployment.int8.integers import LINEAR, Quantizer, layer_nodes
from mindrepvgg.deployment.int8.splitting import split_layers
from mindrepvgg.models.dead_channels import zero_dead
from mindrepvgg.models.preprocessing import Preprocessing
from mindrepvgg.models.shapes import parameter_shapes
from mindrepvgg.models.variants import DEPLOY, find

OPTIONS = IntegerOptions(linear_per_channel=False)


@pytest.fixture(scope="module")
def quantizer(float_path):
    layers = layer_nodes(find("repvgg", **SHAPE), "logits")
    return Quantizer(float_path, layers, calibration_batches(loader(64)), OPTIONS)


def run(model, tmp_path, batch):
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return session(path, optimised=False)(batch)


def kinds(model):
    return [node.op_type for node in model.graph.node]


def test_it_stands_for_the_same_numbers(quantizer, tmp_path):
    default = quantizer.corrected(quantizer.layers)[0]
    before = default.SerializeToString()
    file = to_ascend(default)
    assert default.SerializeToString() == before
    onnx.checker.check_model(file, full_check=True)
    batch = quantizer.batches[0]
    # The last map is not rounded here, and the same numbers meet in another order: one step of a grid may tip over.
    assert relative_difference(run(default, tmp_path, batch), run(file, tmp_path, batch)) < 2e-2
    found = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in file.graph.initializer}
    assert found == {"FLOAT", "INT8"}


def test_every_weight_bias_and_activation_is_the_default_files(quantizer):
    """In float64, by hand: of the integers of one file and the numbers of the other."""
    default = quantizer.model(quantizer.layers)
    file = to_ascend(default)
    old, new = ({t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer} for model in (default, file))
    checked = 0
    for name, integers in old.items():
        if not name.endswith("_quantized"):
            continue
        base = name.removesuffix("_quantized")
        scale = old[f"{base}{'_quantized' if integers.dtype == np.int32 else ''}_scale"].astype(np.float64)
        real = new[base]
        assert real.dtype == np.float32
        expected = integers * scale.reshape(scale.shape + (1,) * (integers.ndim - scale.ndim if scale.ndim else 0))
        np.testing.assert_allclose(real, expected, rtol=1e-6, atol=0)
        checked += 1
    assert checked == 2 * len(quantizer.layers)
    points = {name for name, array in old.items() if array.dtype == np.uint8}
    kept = points & new.keys()
    assert points - kept == {"stage4.0.relu_zero_point"}, "the pooling reads what is not rounded"
    for name in kept:
        assert new[name].dtype == np.int8
        assert int(new[name]) == int(old[name]) - 128


def test_relus_stand_again_and_pairs_in_front_of_layers_alone(quantizer):
    default = quantizer.model(quantizer.layers)
    file = to_ascend(default)
    assert "Relu" not in kinds(default)
    assert kinds(file).count("Relu") == 6
    readers = {node.op_type for node in file.graph.node if any("_DequantizeLinear_" in name for name in node.input)}
    assert readers == {"Conv", "Gemm"}
    by_name = {node.name: node for node in file.graph.node}
    relu, pool = by_name["stage4.0.relu"], by_name["pool"]
    assert (relu.op_type, pool.input[0]) == ("Relu", relu.output[0])


def test_a_layer_in_float_reads_what_is_not_rounded(quantizer):
    file = to_ascend(quantizer.model([name for name in quantizer.layers if name not in ("stage0", "stage3.0")]))
    assert check_model(file, "file").passed
    convolutions = {node.name: node.input for node in file.graph.node if node.op_type == "Conv"}
    assert convolutions["stage3.0.conv"][0] == "stage2.0.relu"
    assert convolutions["stage0.conv"][0] == "images"
    assert convolutions["stage3.1.conv"][0] == "stage3.0.relu_DequantizeLinear_Output"


def arrays_of(variant):
    """Random weights of a network's deploy form, by name."""
    rng, shapes = np.random.default_rng(0), parameter_shapes(variant, DEPLOY, 10)
    return {name: rng.normal(0, math.prod(size[1:]) ** -0.5, size).astype(np.float32) for name, size in shapes.items()}


PIXELS = Preprocessing(image_size=(16, 16), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2), in_channels=3)
SPLIT = ("stage1.0", "stage3.1")
# What a file has beside plain blocks: (the network, what its file takes and gives).
FILES = {
    "softmax": ({}, {"softmax": True}),
    "pixels": ({}, {"preprocess": PIXELS}),
    "maps": ({}, {}),
    "grouped": ({"group_size": 4}, {}),
    "se before": ({"se": "pre", "se_ratio": 8}, {}),
    "se after": ({"se": "post", "se_ratio": 8}, {}),
    "split": ({}, {}),
    "dead": ({}, {}),
    "fixed batch": ({}, {"batch_size": 4, "image_size": (16, 16)}),
}


@pytest.mark.parametrize("kind", FILES)
def test_every_kind_of_network_keeps_the_rules(kind, tmp_path):
    network, takes = FILES[kind]
    variant, options = find("repvgg", **SHAPE, **network), GraphOptions(opset=OPSET, **takes)
    if kind == "maps":
        variant = variant.with_features({"out_indices": (1, 3)})
    arrays = arrays_of(variant)
    shape = (4, 16, 16, 3) if kind == "pixels" else (4, 3, 16, 16)
    rng = np.random.default_rng(1)
    batch = rng.integers(0, 256, shape, np.uint8) if kind == "pixels" else rng.normal(0, 1, shape).astype(np.float32)
    if kind == "split":
        arrays = split_layers(variant, arrays, SPLIT, True)
    if kind == "dead":
        arrays["stage2.0.rbr_reparam.weight"][3] = 0
        arrays["stage2.0.rbr_reparam.bias"][3] = -1
        extremes = {
            spec.name: (np.zeros(spec.in_channels), np.ones(spec.in_channels)) for spec in variant.block_specs(3)
        }
        extremes[LINEAR] = (np.zeros(64), np.ones(64))
        extremes["stage3.0"][1][3] = 0
        arrays = zero_dead(variant, arrays, extremes).arrays
        assert not arrays["stage3.0.rbr_reparam.weight"][:, 3].any()
    path = tmp_path / "float.onnx"
    path.write_bytes(build_onnx(variant, arrays, options).SerializeToString())
    layers = layer_nodes(variant, "linear" if kind == "softmax" else options.output, SPLIT if kind == "split" else ())
    if kind == "maps":
        del layers[LINEAR]
    quantizer = Quantizer(path, layers, [batch], OPTIONS)
    default = quantizer.model(layers)
    file = to_ascend(default)
    onnx.checker.check_model(file, full_check=True)
    found = check_model(file, kind)
    assert found.breaches == ()
    assert found.layers == len(layers) + len(SPLIT) * (kind == "split")
    assert not check_model(default, kind).passed
    open_sizes = () if kind == "fixed batch" else ("sizes",)
    assert [remark.split()[0] for remark in found.remarks] == [*open_sizes, *["the"] * (kind == "pixels")]
    assert relative_difference(session(path)(batch), run(file, tmp_path, batch)) < 0.2
