"""An INT8 file in the form that Ascend's AMCT reads.

    x -- Q -- DQ -- Conv(DQ(Q(float weights)), float bias) -- Relu -- Q -- DQ -- ...

AMCT (`amct_onnx.convert_qat_model`) turns such a file into one for ATC. Neither tool was run by us; the form is made
after the rules in `ascend_rules`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mindrepvgg.deployment.int8.qdq_graph import DEQUANTIZE, QUANTIZE, QdqGraph

# AMCT reads the operators of opset 8 to 14, its oldest onnx those up to 13; a scale for each channel needs 13.
OPSET = 13

# From uint8 to int8: both the integers and their zero point move, and the numbers that they stand for stay.
_TO_SIGNED = -128

# What may put out numbers below 0, which a uint8 zero point of 0 clips.
_LINEAR = ("Conv", "Gemm", "Add")


def to_ascend(model):
    """Give an INT8 model the form that AMCT reads.

    - Activations become int8. The numbers that they stand for stay, and so does the grid.
    - A ReLU stands again where clipping at the zero point took its place.
    - Pairs stay in front of integer layers alone: AMCT adapts no others. What else reads such a tensor, as the pooling
      or an addition, gets it unrounded.
    - Weights become float numbers on their grid, each with a Quantize and Dequantize pair. Biases become float numbers
      on their grid.

    Args:
        model: an `onnx.ModelProto` as `qdq.quantized_model` makes it; it stays as it was.

    Returns:
        A new `onnx.ModelProto`.
    """
    return _Form(model).model()


class _Form:
    def __init__(self, model):
        import onnx

        self._onnx = onnx
        self._made = onnx.ModelProto()
        self._made.CopyFrom(model)
        self._graph = QdqGraph(self._made)
        self._arrays = dict(self._graph.arrays)
        self._dropped: set[str] = set()  # nodes that go, by their output
        self._before: dict[str, Any] = {}  # nodes that come before another one, by that one's output
        self._after: dict[str, Any] = {}  # and those that come behind it

    def model(self):
        """The model in its new form."""
        nodes = [node for node in self._graph.nodes if node.op_type in (QUANTIZE, DEQUANTIZE)]
        for node in nodes:
            if node.input[0] in self._graph.arrays:
                self._constant(node)
            elif node.op_type == QUANTIZE:
                self._activation(node)
        return self._assembled()

    def _constant(self, node):
        """A Dequantize of weights or of a bias."""
        factors = self._graph.constant_factors(node)
        integers, output = self._graph.arrays[node.input[0]], node.output[0]
        source = output.removesuffix("_DequantizeLinear_Output")  # the name of the float network's weights
        self._arrays[source] = _real(integers, factors)
        if integers.dtype == np.int32:  # a bias; its readers get the number itself
            self._replace(output, source, self._graph.readers(output))
            self._dropped.add(output)
            return
        inputs, quantized = [source, *node.input[1:]], f"{source}_QuantizeLinear_Output"
        axis = {"axis": factors.axis} if factors.scale.ndim else {}
        self._before[output] = self._onnx.helper.make_node(
            QUANTIZE, inputs, [quantized], name=f"{source}_QuantizeLinear", **axis
        )
        node.input[0] = quantized

    def _activation(self, quantize):
        """A pair behind a tensor."""
        zero_point = self._graph.constant_factors(quantize).zero_point
        tensor, pairs = quantize.input[0], self._graph.readers(quantize.output[0])
        producer = self._graph.made_by(tensor, *_LINEAR)
        if producer is not None and zero_point == 0:
            unclipped = f"{tensor}_unclipped"
            self._after[tensor] = self._onnx.helper.make_node("Relu", [unclipped], [tensor], name=tensor)
        for pair in pairs:
            readers = self._graph.readers(pair.output[0])
            others = [reader for reader in readers if not self._graph.is_integer_layer(reader)]
            self._replace(pair.output[0], tensor, others)
            if len(others) == len(readers):
                self._dropped.add(pair.output[0])
        if all(pair.output[0] in self._dropped for pair in pairs):
            self._dropped.add(quantize.output[0])
        self._arrays[quantize.input[2]] = (zero_point.astype(np.int16) + _TO_SIGNED).astype(np.int8)

    def _replace(self, old, new, readers):
        """Let nodes read another tensor."""
        for reader in readers:
            for place, name in enumerate(reader.input):
                if name == old:
                    reader.input[place] = new

    def _assembled(self):
        kept = []
        for node in self._graph.nodes:
            output = node.output[0]
            if output in self._dropped:
                continue
            if output in self._before:
                kept.append(self._before[output])
            kept.append(node)
            if output in self._after:
                kept.append(self._after[output])
                node.output[0] = f"{output}_unclipped"
        nodes = [self._onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
        used = {name for node in nodes for name in node.input}
        del self._made.graph.node[:], self._made.graph.initializer[:]
        self._made.graph.node.extend(nodes)
        self._made.graph.initializer.extend(
            self._onnx.numpy_helper.from_array(array, name) for name, array in self._arrays.items() if name in used
        )
        return self._made


def _real(integers, factors) -> np.ndarray:
    """The numbers that integers stand for, float32."""
    scale, zero_point, axis = factors
    if scale.ndim:
        shape = [-1 if place == axis else 1 for place in range(integers.ndim)]
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    return ((integers.astype(np.float64) - zero_point) * scale).astype(np.float32)
