"""A float ONNX graph with Quantize and Dequantize pairs: the INT8 file.

    x -- Q -- DQ -- Conv(DQ(int8 weights), DQ(int32 bias)) -- Q -- DQ -- ...

An engine makes one integer operator of a layer and the pairs around it. A ReLU in front of a pair is left out, because
uint8 with the zero point of a range from 0 clips as it does. Names are those of onnxruntime's own tools.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from mindrepvgg.deployment.int8.grids import IntegerOptions, Rounded, activation_grid, bias_scale, round_weights

_WEIGHTED = ("Conv", "Gemm")


class Layer(NamedTuple):
    """A layer of the float graph.

    Attributes:
        end: the node that ends its linear part: a Conv, a Gemm, or the Add of a layer whose centre tap is split.
        parts: its Conv or Gemm nodes; the first has the bias.
        given: the tensor that they read.
        sums: the tensors that the parts put out, where an Add follows.
        output: the tensor behind its ReLU, where the ReLU follows the linear part at once; else that of `end`.
        relu: that ReLU's node; None without one.
    """

    end: str
    parts: tuple[str, ...]
    given: str
    sums: tuple[str, ...]
    output: str
    relu: str | None


class FloatGraph:
    """A float model, and where its layers lie.

    Args:
        model: an `onnx.ModelProto` as `build_onnx` makes it.
        ends: layer -> the node that ends its linear part, see `integers.layer_nodes`.

    Attributes:
        layers: layer -> `Layer`, in the order of `ends`.
        arrays: initializer -> array.
    """

    def __init__(self, model, ends: Mapping[str, str]):
        import onnx

        self.model = model
        self.nodes = {node.name: node for node in model.graph.node}
        self.arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self._producers = {node.output[0]: node for node in model.graph.node}
        self._readers: dict[str, list] = {}
        for node in model.graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self.layers = {name: self._layer(end) for name, end in ends.items()}

    def _layer(self, end) -> Layer:
        node = self.nodes[end]
        parts, sums = [node], ()
        if node.op_type not in _WEIGHTED:
            parts, sums = [self._producers[name] for name in node.input], tuple(node.input)
        readers = self._readers.get(node.output[0], [])
        relu = readers[0] if len(readers) == 1 and readers[0].op_type == "Relu" else None
        return Layer(
            end,
            tuple(part.name for part in parts),
            parts[0].input[0],
            sums,
            relu.output[0] if relu else node.output[0],
            relu.name if relu else None,
        )

    def weights(self, part) -> tuple[np.ndarray, np.ndarray | None]:
        """Kernel and bias of a part; None for a bias that it has not."""
        names = self.nodes[part].input[1:]
        return self.arrays[names[0]], self.arrays[names[1]] if len(names) > 1 else None

    def observed(self) -> list[str]:
        """The tensors whose ranges are needed: what layers read and put out, in the graph's order."""
        found: dict[str, None] = {}
        for layer in self.layers.values():
            found.update(dict.fromkeys((layer.given, *layer.sums, layer.output)))
        return list(found)

    def rounded(self, part, ranges, options: IntegerOptions) -> Rounded:
        """A part's weights as integers; ranges: tensor -> (lowest, highest)."""
        input_scale = activation_grid(*ranges[self.nodes[part].input[0]])[0]
        if self.nodes[part].op_type == "Gemm" and not options.linear_per_channel:
            options = dataclasses.replace(options, per_channel=False)
        return round_weights(*self.weights(part), input_scale, options)


def quantized_model(graph: FloatGraph, layers: Iterable[str], ranges, options: IntegerOptions):
    """Build the INT8 model.

    Args:
        graph: the float model.
        layers: the names of those that become integer; the others stay as they are.
        ranges: tensor -> (lowest, highest), of all of `FloatGraph.observed`.
        options: how weights are rounded.

    Returns:
        The `onnx.ModelProto`; its metadata are the float model's.
    """
    return _Writer(graph, list(layers), ranges, options).model()


class _Writer:
    def __init__(self, graph, layers, ranges, options):
        import onnx

        self._onnx, self._graph, self._ranges, self._options = onnx, graph, ranges, options
        chosen = [graph.layers[name] for name in layers]
        self._parts = {part for layer in chosen for part in layer.parts}
        # The Gemm gives the logits, which stay in float.
        with_output = [layer for layer in chosen if graph.nodes[layer.end].op_type != "Gemm"]
        self._dropped = {layer.relu for layer in with_output if layer.relu}
        self._renamed = {graph.nodes[layer.end].output[0]: layer.output for layer in with_output}
        self._rounded = {layer.given for layer in chosen}
        for layer in with_output:
            self._rounded.update((*layer.sums, layer.output))
        self._nodes: list = []
        self._initializers: dict[str, np.ndarray] = {}

    def model(self):
        graph = self._graph.model.graph
        for given in graph.input:
            self._add_pair(given.name)
        for node in graph.node:
            if node.name not in self._dropped:
                self._add(node)
        kept = {name for node in self._nodes for name in node.input}
        built = self._without_graph()
        built.graph.name = graph.name
        built.graph.input.extend(graph.input)
        built.graph.output.extend(graph.output)
        built.graph.node.extend(self._nodes)
        built.graph.initializer.extend(tensor for tensor in graph.initializer if tensor.name in kept)
        built.graph.initializer.extend(
            self._onnx.numpy_helper.from_array(array, name) for name, array in self._initializers.items()
        )
        return built

    def _without_graph(self):
        given = self._graph.model
        return self._onnx.ModelProto(
            ir_version=given.ir_version,
            opset_import=given.opset_import,
            producer_name=given.producer_name,
            producer_version=given.producer_version,
            metadata_props=given.metadata_props,
        )

    def _add(self, node):
        """A node of the float graph, reading what is rounded, and the pair behind its output."""
        copied = self._onnx.NodeProto()
        copied.CopyFrom(node)
        for place, name in enumerate(node.input):
            copied.input[place] = f"{name}_DequantizeLinear_Output" if name in self._rounded else name
        if node.name in self._parts:
            self._add_weights(node, copied)
        copied.output[0] = self._renamed.get(node.output[0], node.output[0])
        self._nodes.append(copied)
        self._add_pair(copied.output[0])

    def _add_pair(self, tensor):
        if tensor not in self._rounded:
            return
        scale, zero_point = activation_grid(*self._ranges[tensor])
        names = self._grid(tensor, scale, zero_point)
        outputs = [f"{tensor}_{kind}_Output" for kind in ("QuantizeLinear", "DequantizeLinear")]
        make = self._onnx.helper.make_node
        self._nodes.append(make("QuantizeLinear", [tensor, *names], outputs[:1], name=f"{tensor}_QuantizeLinear"))
        self._nodes.append(
            make("DequantizeLinear", [outputs[0], *names], outputs[1:], name=f"{tensor}_DequantizeLinear")
        )

    def _grid(self, prefix, scale, zero_point) -> list[str]:
        """Add a grid's two initializers, and return their names."""
        found = {f"{prefix}_scale": scale, f"{prefix}_zero_point": zero_point}
        self._initializers.update(found)
        return list(found)

    def _add_weights(self, node, copied):
        """The integers of a layer's weights and of its bias, each behind a Dequantize."""
        rounded = self._graph.rounded(node.name, self._ranges, self._options)
        name, scale = node.input[1], rounded.scale
        copied.input[1] = self._dequantized(name, name, rounded.weight, scale)
        if rounded.bias is not None:
            units = bias_scale(activation_grid(*self._ranges[node.input[0]])[0], scale)
            bias = node.input[2]
            copied.input[2] = self._dequantized(bias, f"{bias}_quantized", rounded.bias, units)

    def _dequantized(self, name, prefix, integers, scale) -> str:
        inputs = [f"{name}_quantized", *self._grid(prefix, scale, np.zeros(scale.shape, integers.dtype))]
        self._initializers[inputs[0]] = integers
        axis = {"axis": 0} if scale.ndim else {}
        output = f"{name}_DequantizeLinear_Output"
        self._nodes.append(
            self._onnx.helper.make_node("DequantizeLinear", inputs, [output], name=f"{name}_DequantizeLinear", **axis)
        )
        return output
