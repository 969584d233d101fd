"""INT8 files of a float file: ranges from pictures, integers, corrected biases.

The convolutions of the blocks and the linear layer become integer. Preprocessing, SE, the pooling and the logits stay
in float. A convolution's output is rounded after its ReLU.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import numpy as np

from mindrepvgg.deployment.graph import INPUT, require_onnx
from mindrepvgg.deployment.int8.grids import IntegerOptions
from mindrepvgg.deployment.int8.observe import observe
from mindrepvgg.deployment.int8.qdq import FloatGraph, quantized_model
from mindrepvgg.deployment.int8.sessions import Parts, session_of

LINEAR = "linear"

# Bias correction takes about so many images: it holds a layer's output for all of them.
_MOST_CORRECTING = 128


def layer_nodes(variant, output, split: Collection[str] = ()) -> dict[str, str]:
    """Return layer -> the node that ends its linear part, of the blocks' convolutions and the linear layer in order.

    Args:
        variant: the network's layout.
        output: the name of the file's logits.
        split: the blocks whose centre tap is a convolution of its own, see `splitting`.
    """
    ends = {spec.name: f"{spec.name}.{'sum' if spec.name in split else 'conv'}" for spec in variant.block_specs()}
    return {**ends, LINEAR: output}


def _no_step(_):
    """Progress that nobody watches."""


class Quantizer:
    """Makes INT8 files of a float file.

    Args:
        path: an exported file that takes any batch.
        layers: see `layer_nodes`.
        batches: the pictures that ranges are taken from, as arrays that the file takes; all of them are kept.
        options: how real numbers become integers.
        step: is called with the number of pictures that were run.

    Attributes:
        graph: the file's `FloatGraph`.
        extremes: tensor -> (lowest, highest) of each of its channels.
        ranges: tensor -> (lowest, highest) that the integers span.
    """

    def __init__(
        self,
        path,
        layers,
        batches: Iterable[np.ndarray],
        options: IntegerOptions,
        step: Callable[[int], None] = _no_step,
    ):
        require_onnx()
        import onnx

        self.path, self.layers, self.options = Path(path), dict(layers), options
        self.batches = list(batches)
        self.graph = FloatGraph(onnx.load(str(path)), self.layers)
        self.extremes, self.ranges = observe(self.graph.model, self.graph.observed(), self.batches, options, step)
        self._float_means: dict[str, np.ndarray] | None = None

    def model(self, layers):
        """The INT8 `onnx.ModelProto` in which these layers are integer."""
        return quantized_model(self.graph, layers, self.ranges, self.options)

    def write(self, destination, layers, corrects=False) -> dict[str, np.ndarray]:
        """Write the file of `corrected` or `model`.

        Args:
            destination: its path.
            layers: the layers that become integer.
            corrects: whether to correct their biases.

        Returns:
            The shifts of `correct_biases`; empty without correction.
        """
        model, shifts = self.corrected(layers) if corrects else (self.model(layers), {})
        Path(destination).write_bytes(model.SerializeToString())
        return shifts

    def corrected(self, layers):
        """The INT8 `onnx.ModelProto` in which these layers are integer and have corrected biases, and the shifts."""
        model = self.model(layers)
        batches = self.batches[: -(-_MOST_CORRECTING // len(self.batches[0]))]
        if self._float_means is None:
            self._float_means = channel_means(self.graph.model, list(self.layers.values()), batches)
        chosen = {name: self.graph.layers[name] for name in self.layers if name in layers}
        means = {name: self._float_means[layer.end] for name, layer in chosen.items()}
        return model, correct_biases(model, chosen, means, batches)


def channel_means(model, nodes, batches) -> dict[str, np.ndarray]:
    """Return node -> mean (channels,) of its output over all images and pixels, in float64."""
    outputs = {node.name: node.output[0] for node in model.graph.node if node.name in nodes}
    session = session_of(Parts(model).between(INPUT, [outputs[node] for node in nodes]), plain=True)
    means: dict = dict.fromkeys(nodes, 0.0)
    count = sum(map(len, batches))
    for batch in batches:
        for node, maps in zip(nodes, session.run(None, {INPUT: batch}), strict=True):
            means[node] = means[node] + _channel_mean([maps]) * (len(batch) / count)
    return means


def correct_biases(model, layers, means, batches) -> dict[str, np.ndarray]:
    """Shift the integer biases of an INT8 model, in place, so that each layer's mean output is the float network's.

    Args:
        model: the INT8 `onnx.ModelProto`.
        layers: layer -> `Layer`, in the network's order: a layer is measured after those before it are corrected.
        means: layer -> (channels,), the mean outputs of the float network before the ReLU.
        batches: the pictures to measure on.

    Returns:
        Layer -> (channels,), the shifts.

    Source: arXiv:1906.04721, section 4.2 and appendix D (empirical bias correction).
    """
    import onnx

    parts = Parts(model)
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    producers = {node.output[0]: node for node in model.graph.node}
    limits = np.iinfo(np.int32)
    given, maps, shifts = INPUT, batches, {}
    for name, layer in layers.items():
        end = nodes[layer.end]
        integers, scale = (initializers[key] for key in producers[nodes[layer.parts[0]].input[2]].input[:2])
        # From the output of the layer before, corrected, to this one's: every layer is run once.
        run = session_of(parts.between(given, [end.output[0]]), plain=True)
        maps, given = [run.run(None, {given: batch})[0] for batch in maps], end.output[0]
        step = onnx.numpy_helper.to_array(scale)
        steps = np.rint((means[name] - _channel_mean(maps)) / step)
        shifted = np.clip(onnx.numpy_helper.to_array(integers) + steps, limits.min, limits.max).astype(np.int32)
        integers.CopyFrom(onnx.numpy_helper.from_array(shifted, integers.name))
        shifts[name] = steps * step
        for batch in maps:
            batch += shifts[name].reshape(-1, *[1] * (batch.ndim - 2))
    return shifts


def _channel_mean(maps):
    """Mean (channels,) of arrays (N, channels, ...), in float64."""
    pixels = sum(batch.size // batch.shape[1] for batch in maps)
    return sum(batch.sum((0, *range(2, batch.ndim)), dtype=np.float64) for batch in maps) / pixels
