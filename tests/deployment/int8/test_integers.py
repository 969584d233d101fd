"""Integers: ranges, corrected biases, and the repairs on networks that need them."""

import mindspore as ms
import numpy as np
import onnx
import onnxruntime
import pytest
from support import SMALL, images, randomise_bn, relative_difference
from support.int8 import LAYERS, SHAPE, loader
from support.onnx_files import initializers, session

from mindrepvgg import create_model
from mindrepvgg.deployment.graph import build_onnx
from mindrepvgg.deployment.int8.calibration import calibration_batches
from mindrepvgg.deployment.int8.equalize import equalize
from mindrepvgg.deployment.int8.grids import IntegerOptions
from mindrepvgg.deployment.int8.integers import Quantizer, layer_nodes
from mindrepvgg.deployment.int8.noise import signal_to_noise
from mindrepvgg.models.parameters import network_arrays
from mindrepvgg.models.variants import find


def test_ranges_are_the_float_files(float_path):
    """Each tensor's smallest and largest value over all pictures, found in the float graph; percentiles lie inside."""
    batches = calibration_batches(loader(150))
    model = onnx.load(str(float_path))
    names = [f"{layer}.relu" for layer in LAYERS[:-1]]
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in names)
    run = onnxruntime.InferenceSession(model.SerializeToString())
    arrays = [run.run(None, {"images": batch}) for batch in batches]
    nodes = layer_nodes(find("repvgg", **SHAPE), "logits")
    quantizer = Quantizer(float_path, nodes, batches, IntegerOptions())
    ranges = quantizer.ranges
    quantizer = Quantizer(float_path, nodes, batches, IntegerOptions("percentile", 99))
    inner = quantizer.ranges
    for index, name in enumerate(names):
        values = np.concatenate([found[index].ravel() for found in arrays])
        assert ranges[name] == pytest.approx((values.min(), values.max()))
        assert (values > inner[name][1]).mean() == pytest.approx(0.005, abs=0.01)
        assert inner[name][1] < ranges[name][1]


@pytest.mark.parametrize("kind", ["g4", "d2se", "plus"])
def test_every_kind_runs_and_squeeze_excite_stays_in_float(kind, tmp_path):
    ms.set_seed(0)
    net = randomise_bn(create_model("repvgg", 10, 3, deploy=True, **SMALL[kind]))
    (tmp_path / "float.onnx").write_bytes(build_onnx(net.variant, network_arrays(net)).SerializeToString())
    x = images(8, 3, 32, 32)
    quantizer = Quantizer(tmp_path / "float.onnx", layer_nodes(net.variant, "logits"), [x], IntegerOptions())
    quantizer.write(tmp_path / "int8.onnx", quantizer.layers)
    found = initializers(tmp_path / "int8.onnx")
    kernels = [name for name in found if name.endswith("weight_quantized")]
    assert len(kernels) == len(net.variant.block_specs()) + 1
    assert not any(".se." in name or ".post_se." in name for name in kernels)
    assert any("se.down.weight" in name for name in found) == (net.variant.se is not None)
    expected = session(tmp_path / "float.onnx")(x)
    assert signal_to_noise(expected, session(tmp_path / "int8.onnx", optimised=False)(x)) > 20


@pytest.fixture(scope="module")
def broken(float_path):
    """(variant, arrays) of the digits' network whose channels were scaled apart, which changes no logit."""
    variant, arrays = find("repvgg", **SHAPE), initializers(float_path)
    rng, specs = np.random.default_rng(2), find("repvgg", **SHAPE).block_specs(1)
    arrays = {name: array.copy() for name, array in arrays.items()}
    for spec, following in zip(specs, [*specs[1:], None], strict=True):
        factors = (2.0 ** rng.uniform(-5, 5, spec.out_channels)).astype(np.float32)
        arrays[f"{spec.name}.rbr_reparam.weight"] *= factors[:, None, None, None]
        arrays[f"{spec.name}.rbr_reparam.bias"] *= factors
        reader = arrays["linear.weight" if following is None else f"{following.name}.rbr_reparam.weight"]
        reader /= factors.reshape(-1, *[1] * (reader.ndim - 2))
    return variant, arrays


@pytest.mark.parametrize("per_channel", [True, False], ids=["per channel", "per tensor"])
def test_equalising_repairs_what_rounding_breaks(per_channel, broken, float_path, tmp_path):
    variant, arrays = broken
    batches = calibration_batches(loader(100))
    expected = session(float_path)(batches[0])
    cases = {"sound": initializers(float_path), "broken": arrays, "repaired": equalize(variant, arrays).arrays}
    decibels = {}
    for name, case in cases.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(build_onnx(variant, case).SerializeToString())
        assert relative_difference(session(path)(batches[0]), expected) < 1e-5, "in float all three are the same"
        options = IntegerOptions(per_channel=per_channel)
        quantizer = Quantizer(path, layer_nodes(variant, "logits"), batches, options)
        quantizer.write(tmp_path / "int8.onnx", quantizer.layers)
        decibels[name] = signal_to_noise(expected, session(tmp_path / "int8.onnx", optimised=False)(batches[0]))
    assert decibels["broken"] < decibels["sound"] - 10
    assert decibels["repaired"] > decibels["sound"] - 6


def means_apart(float_path, path, x):
    """Largest difference of a channel's mean, over the layer's largest mean, before the ReLU, by layer."""
    found = []
    for source in (float_path, path):
        model = onnx.load(str(source))
        outputs = [node.output[0] for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
        del model.graph.output[:]
        model.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in outputs)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        run = onnxruntime.InferenceSession(model.SerializeToString(), options)
        found.append([values.mean(axis=(0, *range(2, values.ndim))) for values in run.run(None, {"images": x})])
    return [np.abs(a - b).max() / np.abs(a).max() for a, b in zip(*found, strict=True)]


def test_corrected_biases_keep_each_channels_mean(float_path, tmp_path):
    batches = calibration_batches(loader(100))
    nodes, options = layer_nodes(find("repvgg", **SHAPE), "logits"), IntegerOptions(per_channel=False, weight_bits=7)
    quantizer = Quantizer(float_path, nodes, batches, options)
    assert quantizer.write(tmp_path / "plain.onnx", nodes) == {}
    shifts = quantizer.write(tmp_path / "corrected.onnx", nodes, corrects=True)
    plain, corrected = (
        means_apart(float_path, tmp_path / f"{name}.onnx", batches[0]) for name in ("plain", "corrected")
    )
    assert max(plain) > 0.01
    assert max(corrected) < 1e-3
    assert list(shifts) == list(LAYERS)
    assert all(np.isfinite(shift).all() and shift.ndim == 1 for shift in shifts.values())
