"""Signal-to-noise ratios, against NumPy."""

import itertools

import numpy as np
import pytest
from support.int8 import loader, loader_recipe
from support.onnx_files import initializers, session

from mindrepvgg.data.datasets import open_source
from mindrepvgg.data.loaders import loader_of
from mindrepvgg.deployment.int8.calibration import calibration_batches, calibration_source
from mindrepvgg.deployment.int8.noise import KernelNoise, kernel_noise


def test_noise_is_what_numpy_finds(written, float_path):
    """Of the last layer's output, the logits, and of a kernel."""
    recipe = loader_recipe()
    source, _ = calibration_source(recipe, None, 100, open_source("mnist5k", None, "val"))
    x = calibration_batches(loader_of(recipe, source))[0][:16]
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
    found = kernel_noise(float_path, written.destination, x)
    outputs = [session(float_path)(x), *(session(written.destination, optimised)(x) for optimised in (False, True))]
    expected = [20 * np.log10(np.linalg.norm(a) / np.linalg.norm(a - b)) for a, b in itertools.pairwise(outputs)]
    assert found.rounding == pytest.approx(expected[0], abs=0.01)
    assert found.kernels == pytest.approx(expected[1], abs=0.1)
    assert not found.saturates
    assert KernelNoise(20.0, 30.0).saturates
