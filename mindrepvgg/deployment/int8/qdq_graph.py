"""An ONNX graph with Quantize and Dequantize pairs, written by any program: who makes and who reads each tensor."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"

# The operators that Ascend's AMCT makes integer, each with its weights as the second input.
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class Factors(NamedTuple):
    """How a node quantises: `scale` and `zero_point`, both () or (channels,), along `axis`."""

    scale: np.ndarray
    zero_point: np.ndarray
    axis: int


class QdqGraph:
    """A model's arrays, nodes, and the nodes that make and read each tensor.

    Args:
        model: an `onnx.ModelProto`; the nodes here are its own.

    Attributes:
        nodes: in the model's order.
        arrays: tensor -> array, of initializers and Constant nodes.
        outputs: the names of the model's outputs.
    """

    def __init__(self, model):
        import onnx

        self.nodes = list(model.graph.node)
        self.arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self.arrays |= {node.output[0]: _constant(node) for node in self.nodes if node.op_type == "Constant"}
        self.outputs = [output.name for output in model.graph.output]
        self._producers = {name: node for node in self.nodes for name in node.output}
        self._readers: dict[str, list] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self._readers.setdefault(name, []).append(node)

    def made_by(self, tensor: str, *kinds: str) -> Any:
        """The node that makes a tensor, where it is one of these operators; else None."""
        node = self._producers.get(tensor)
        return node if node is not None and node.op_type in kinds else None

    def readers(self, tensor: str) -> list:
        """The nodes that read a tensor."""
        return self._readers.get(tensor, [])

    def factors(self, node) -> Factors | None:
        """The factors of a Quantize or Dequantize node; None where they are computed, and not constants.

        Without a zero point it is ONNX's: 0, of uint8.
        """
        names = node.input[1:]
        if not names or any(name not in self.arrays for name in names if name):
            return None
        scale = self.arrays[names[0]]
        given = len(names) > 1 and names[1]
        zero_point = self.arrays[names[1]] if given else np.zeros(scale.shape, np.uint8)
        return Factors(scale, zero_point, attributes_of(node).get("axis", 1))

    def constant_factors(self, node) -> Factors:
        """The factors of a node of this project's own files, which has constants."""
        found = self.factors(node)
        if found is None:
            raise ValueError(f"the factors of {node.name} are computed")
        return found

    def is_integer_layer(self, node) -> bool:
        """Whether a node is a layer whose weights come from a Dequantize."""
        return node.op_type in WEIGHTED and len(node.input) > 1 and self.made_by(node.input[1], DEQUANTIZE) is not None


def attributes_of(node) -> dict[str, Any]:
    """A node's attributes, by name."""
    import onnx

    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _constant(node) -> np.ndarray:
    """What a Constant node holds; an empty array for what is no number."""
    import onnx

    value = next(iter(attributes_of(node).values()), None)
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    # Python's numbers here are float32 and int64; anything else is no factor and no weight.
    return np.asarray(value, np.float32) if isinstance(value, float) else np.empty(0)
