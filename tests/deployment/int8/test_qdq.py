"""The INT8 graph, held against the one that onnxruntime's own tools write."""

import contextlib
import io
from collections import Counter

import numpy as np
import onnx
import pytest
from support.onnx_files import initializers, session

from mindrepvgg.deployment.graph import build_onnx
from mindrepvgg.deployment.int8.grids import IntegerOptions, activation_grid, round_weights
from mindrepvgg.deployment.int8.integers import Quantizer, layer_nodes
from mindrepvgg.models.shapes import parameter_shapes
from mindrepvgg.models.variants import DEPLOY, find

SHAPE = {"num_blocks": [1, 1, 2, 1], "widths": [8, 8, 16, 24, 64]}


def random_network(path, **options):
    """Write a network of random weights in float; returns its layout and pictures."""
    rng, variant = np.random.default_rng(0), find("repvgg", **SHAPE, **options)
    arrays = {
        name: (rng.standard_normal(shape) * 1.5 / np.sqrt(max(1, np.prod(shape[1:])))).astype(np.float32)
        for name, shape in parameter_shapes(variant, DEPLOY, 10).items()
    }
    path.write_bytes(build_onnx(variant, arrays).SerializeToString())
    return variant, rng.standard_normal((4, 3, 32, 32)).astype(np.float32)


def quantize_static(source, destination, x, nodes, relus, ranges, per_channel):
    """The INT8 file by onnxruntime's own tools, with these ranges."""
    from onnxruntime import quantization as tools

    class Reader(tools.CalibrationDataReader):
        batches = iter([{"images": x[:1]}])

        def get_next(self):
            return next(self.batches, None)

    # Ranges for what the tools observe and we do not, which they overwrite: of a convolution in front of its ReLU.
    given = {**{f"{relu.removesuffix('.relu')}.conv": ranges.get(relu, (0, 1)) for relu in relus}, **ranges}
    prepared = str(source.with_suffix(".prepared"))
    with contextlib.redirect_stdout(io.StringIO()):
        tools.quant_pre_process(str(source), prepared, skip_optimization=True, skip_symbolic_shape=True)
        tools.quantize_static(
            prepared,
            str(destination),
            Reader(),
            quant_format=tools.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm", "Relu"],
            nodes_to_quantize=[*nodes, *relus],
            per_channel=per_channel,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
            extra_options={
                "OpTypesToExcludeOutputQuantization": ["Gemm"],
                "TensorQuantOverrides": {
                    name: [{"rmin": np.float32(low), "rmax": np.float32(high)}] for name, (low, high) in given.items()
                },
            },
        )


CASES = [
    ({}, True, ()),
    ({"group_size": 4}, False, ("stage2.0",)),
    ({"se": "pre", "se_ratio": 4}, False, ()),
    ({"se": "post", "se_ratio": 4}, True, ("stage1.0", "linear")),
]


@pytest.mark.parametrize(("options", "per_channel", "kept"), CASES, ids=["plain", "groups", "SE before", "SE after"])
def test_every_integer_is_that_of_onnxruntimes_tools(options, per_channel, kept, tmp_path):
    variant, x = random_network(tmp_path / "float.onnx", **options)
    integers = IntegerOptions(per_channel=per_channel)
    quantizer = Quantizer(tmp_path / "float.onnx", layer_nodes(variant, "logits"), [x], integers)
    layers = [name for name in quantizer.layers if name not in kept]
    quantizer.write(tmp_path / "ours.onnx", layers)
    nodes, relus = [quantizer.layers[name] for name in layers], [f"{name}.relu" for name in layers if name != "linear"]
    quantize_static(tmp_path / "float.onnx", tmp_path / "theirs.onnx", x, nodes, relus, quantizer.ranges, per_channel)
    ours, theirs = (initializers(tmp_path / f"{name}.onnx") for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype, name
        np.testing.assert_array_equal(array, np.reshape(theirs[name], array.shape), err_msg=name)
    models = [onnx.load(tmp_path / f"{name}.onnx") for name in ("ours", "theirs")]
    onnx.checker.check_model(models[0], full_check=True)
    counts = [Counter(node.op_type for node in model.graph.node) for model in models]
    assert counts[0] == counts[1]
    logits = [session(tmp_path / f"{name}.onnx")(x) for name in ("ours", "theirs")]
    np.testing.assert_array_equal(*logits)


def test_grids_hold_zero_and_both_ends():
    for low, high in ((-1.0, 3.0), (0.5, 2.0), (-2.0, -1.0)):
        scale, zero_point = activation_grid(low, high)
        ends = (np.array([0, 255]) - int(zero_point)) * float(scale)
        assert ends[0] == pytest.approx(min(low, 0), abs=scale / 2)
        assert ends[1] == pytest.approx(max(high, 0), abs=scale / 2)
    assert activation_grid(0, 0) == (1, 0)


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_bias_that_int32_cannot_hold_widens_the_scale(per_channel):
    """A channel without weights and with a bias keeps the bias."""
    kernel, bias = np.zeros((3, 2, 1, 1), np.float32), np.array([0.5, -2, 1e-3], np.float32)
    kernel[0] = 1e-12
    rounded = round_weights(kernel, bias, 0.01, IntegerOptions(per_channel=per_channel))
    real = rounded.bias * (0.01 * rounded.scale.astype(np.float64))
    np.testing.assert_allclose(real, bias, rtol=1e-5, atol=1e-8)
