"""Signal-to-noise ratios, against NumPy."""

import itertools

import numpy as np
import onnx
import pytest
from support.int8 import SHAPE, loader, loader_recipe
from support.onnx_files import initializers, session

from mindrepvgg.data.datasets import open_source
from mindrepvgg.data.loaders import loader_of
from mindrepvgg.deployment.int8.calibration import calibration_batches, calibration_source
from mindrepvgg.deployment.int8.grids import IntegerOptions
from mindrepvgg.deployment.int8.integers import Quantizer, layer_nodes
from mindrepvgg.deployment.int8.noise import KernelNoise, LayerChain, kernel_noise, signal_to_noise
from mindrepvgg.models.variants import find


def test_noise_is_what_numpy_finds(written, float_path):
    """Of the last layer's output, the logits, and of a kernel."""
    recipe = loader_recipe()
    source, _ = calibration_source(recipe, None, 100, open_source("mnist5k", None, "val"))
    x = calibration_batches(loader_of(recipe, source))[0][:8]
    expected, rounded = session(float_path)(x), session(written.destination, optimised=False)(x)

    def decibels(signal, noisy):
        return 20 * np.log10(np.linalg.norm(signal) / np.linalg.norm(signal - noisy))

    layers = {layer.name: layer for layer in written.layers}
    assert layers["linear"].output == pytest.approx(decibels(expected, rounded), abs=0.01)
    kernel, integer = initializers(float_path)["stage2.0.rbr_reparam.weight"], initializers(written.destination)
    steps = integer["stage2.0.rbr_reparam.weight_quantized"].reshape(len(kernel), -1)
    rounded = steps * integer["stage2.0.rbr_reparam.weight_scale"][:, None]
    assert layers["stage2.0"].weights == pytest.approx(decibels(kernel.reshape(len(kernel), -1), rounded), abs=0.01)


def test_kernels_that_compute_what_the_file_says_are_not_suspected(written, float_path):
    assert not written.kernels[7].saturates
    x = calibration_batches(loader(20))[0]
    found = kernel_noise(onnx.load(str(float_path)), onnx.load(str(written.destination)), x)
    outputs = [session(float_path)(x), *(session(written.destination, optimised)(x) for optimised in (False, True))]
    expected = [20 * np.log10(np.linalg.norm(a) / np.linalg.norm(a - b)) for a, b in itertools.pairwise(outputs)]
    assert found.rounding == pytest.approx(expected[0], abs=0.01)
    assert found.kernels == pytest.approx(expected[1], abs=0.1)
    assert not found.saturates
    assert KernelNoise(20.0, 30.0).saturates


def test_a_layer_alone_is_the_file_in_which_only_it_is_integer(float_path, tmp_path):
    """The chain of single layers gives what whole files give."""
    x = calibration_batches(loader(20))[0]
    quantizer = Quantizer(float_path, layer_nodes(find("repvgg", **SHAPE), "logits"), [x], IntegerOptions())
    chain = LayerChain(quantizer, quantizer.model(quantizer.layers), quantizer.layers, by_weights=True)
    found = chain.noise(x)
    expected = session(float_path)(x)
    for name in ("stage1.0", "stage3.1", "linear"):
        quantizer.write(tmp_path / "alone.onnx", [name])
        alone = signal_to_noise(expected, session(tmp_path / "alone.onnx")(x))
        assert found[name].alone == pytest.approx(alone, abs=0.5), name
        assert found[name].by_weights > found[name].own - 1
    quantizer.write(tmp_path / "all.onnx", quantizer.layers)
    whole = signal_to_noise(expected, session(tmp_path / "all.onnx")(x))
    assert found["linear"].output == pytest.approx(whole, abs=0.5)
    assert all(np.isnan(layer.alone) and np.isnan(layer.by_weights) for layer in _without_alone(quantizer, x))


def _without_alone(quantizer, x):
    return LayerChain(quantizer, quantizer.model(quantizer.layers), quantizer.layers).noise(x, alone=False).values()
