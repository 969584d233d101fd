"""Signal-to-noise ratios of an INT8 file against its float file: of each layer, of one layer alone, of the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mindrepvgg.deployment.graph import INPUT
from mindrepvgg.deployment.int8.sessions import Parts, session_of

# What stands for no noise at all.
_LEAST = 1e-15


def signal_to_noise(signal, noisy) -> float:
    """20 log10(|signal| / |signal - noisy|) in dB, in float64; 300 where the two are equal."""
    signal, noisy = np.asarray(signal, np.float64), np.asarray(noisy, np.float64)
    size = np.linalg.norm(signal)
    noise = np.linalg.norm(signal - noisy) / size if size else 0.0
    return float(-20 * np.log10(max(noise, _LEAST)))


class Noise(NamedTuple):
    """A layer's signal-to-noise ratios in dB.

    Attributes:
        weights: of the layer's rounded kernel; None where it is in float.
        by_weights: of the layer's output when nothing but its weights is rounded; nan where that was not asked for.
            A kernel whose large weights read channels without a signal is exact by `weights`, and not by this.
        own: of the layer's output when no other layer is INT8.
        output: of its output with the noise of the layers before it.
        alone: of the logits when no other layer is INT8.
    """

    weights: float | None
    by_weights: float
    own: float
    output: float
    alone: float


class LayerChain:
    """A float file and an INT8 file, run layer by layer.

    A part of a file begins with what a layer reads and ends with what the next layer reads, so that parts of both files
    can follow each other.

    Args:
        quantizer: a `Quantizer`, which has the float file.
        integer: the other file, an `onnx.ModelProto`.
        layers: the layers that are INT8 in it.
        by_weights: whether to measure `Noise.by_weights`.
    """

    def __init__(self, quantizer, integer, layers, by_weights=False):
        graph = quantizer.graph
        tensors = [layer.given for layer in graph.layers.values()]
        ends = [*tensors[1:], graph.model.graph.output[0].name]
        known = {name for node in integer.graph.node for name in node.output}
        rounded = [f"{end}_DequantizeLinear_Output" for end in ends]
        rounded = [name if name in known else end for name, end in zip(rounded, ends, strict=True)]
        self._names, self._begins = list(graph.layers), [INPUT, *tensors[1:]]
        self._floats = self._sessions(Parts(graph.model), ends)
        self._integers = self._sessions(Parts(integer), rounded)
        self._rounded = []
        if by_weights:
            self._rounded = self._sessions(Parts(graph.model, rounded_weights(quantizer, layers)), ends)
        self._weights = dict.fromkeys(self._names)
        for name in layers:
            self._weights[name] = _weight_noise(quantizer, graph.layers[name].parts)

    def _sessions(self, parts, ends):
        return [session_of(parts.between(begin, [end])) for begin, end in zip(self._begins, ends, strict=True)]

    def noise(self, images, step: Callable[[float], None] | None = None, alone: bool = True) -> dict[str, Noise]:
        """Layer -> `Noise`.

        Args:
            images: an array as the files take it.
            step: is called after each layer with the number of pictures that were run, in passes of the whole network.
            alone: whether to measure what each layer does to the logits, which takes as many passes as there are pairs
                of layers; else it is nan.
        """
        exact, noisy, found, count = [images], images, {}, len(self._names)
        for index in range(count):
            exact.append(self._run(self._floats, index, exact[-1]))
        for index, name in enumerate(self._names):
            following = exact[index + 1]
            single = self._run(self._integers, index, exact[index])
            own = signal_to_noise(following, single)
            by_weights = math.nan
            if self._rounded:
                by_weights = signal_to_noise(following, self._run(self._rounded, index, exact[index]))
            noisy = self._run(self._integers, index, noisy)
            for later in range(index + 1, count if alone else 0):
                single = self._run(self._floats, later, single)
            logits = signal_to_noise(exact[-1], single) if alone else math.nan
            found[name] = Noise(self._weights[name], by_weights, own, signal_to_noise(following, noisy), logits)
            if step:
                step(len(images) * (count - index) / count)
        return found

    def _run(self, sessions, index, x):
        return sessions[index].run(None, {self._begins[index]: x})[0]


def _weight_noise(quantizer, parts) -> float:
    """The weights' signal-to-noise ratio, of a split layer that of both kernels' sum."""
    graph = quantizer.graph
    kernels = [graph.weights(part)[0] for part in parts]
    rounded = [graph.rounded(part, quantizer.ranges, quantizer.options).real() for part in parts]
    return signal_to_noise(_sum_of_kernels(kernels), _sum_of_kernels(rounded))


def rounded_weights(quantizer, layers) -> dict[str, Any]:
    """Initializer -> the `onnx.TensorProto` of the weights that the integers stand for, of these layers."""
    import onnx

    graph, found = quantizer.graph, {}
    for name in layers:
        for part in graph.layers[name].parts:
            weight = graph.nodes[part].input[1]
            real = graph.rounded(part, quantizer.ranges, quantizer.options).real()
            found[weight] = onnx.numpy_helper.from_array(real.astype(np.float32), weight)
    return found


def _sum_of_kernels(kernels):
    """A kernel (out, in, k, k), and to its centre tap added those of 1x1."""
    total, *others = kernels
    if others:
        total, middle = total.copy(), total.shape[-1] // 2
        for kernel in others:
            total[:, :, middle, middle] += kernel[:, :, 0, 0]
    return total


class KernelNoise(NamedTuple):
    """Signal-to-noise ratios in dB of an INT8 file's logits.

    Attributes:
        kernels: of this CPU's int8 kernels against the file computed operator by operator.
        rounding: of the file computed operator by operator against the float file.
    """

    kernels: float
    rounding: float

    @property
    def saturates(self) -> bool:
        """Whether the kernels add more noise than the rounding did, which is a sign of overflow."""
        return self.kernels < self.rounding


def kernel_noise(float_model, model, images) -> KernelNoise:
    """Measure the int8 kernels of this CPU.

    Args:
        float_model, model: an `onnx.ModelProto` in float and the one in INT8 made of it.
        images: an array as the models take it.
    """
    fast, plain, expected = (
        session_of(each, plain=slow).run(None, {INPUT: images})[0]
        for each, slow in ((model, False), (model, True), (float_model, False))
    )
    return KernelNoise(signal_to_noise(plain, fast), signal_to_noise(expected, plain))
