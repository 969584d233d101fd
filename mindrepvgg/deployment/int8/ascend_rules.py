"""What Ascend's AMCT accepts of an INT8 file, and a checker that holds a file of any program against it.

The rules are those of the pages "QAT Model Adaptation to CANN Format", "convert_qat_model", "Uniform Quantization" and
"AMCT (ONNX)" of CANN's commercial documentation, 8.0 and 8.5. **Neither AMCT nor ATC was run by us**: a file that keeps
every rule is one that the pages accept, and no more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mindrepvgg.deployment.int8.qdq_graph import DEQUANTIZE, QUANTIZE, WEIGHTED, QdqGraph, attributes_of

# ATC's table of operators that AMCT adapts; Add since CANN 8.5.
_ADAPTED = (*WEIGHTED, "Add")
_NEWEST_OPSET = 14
_OTHER_INTEGERS = ("DynamicQuantizeLinear", "ConvInteger", "MatMulInteger")
# ONNX lets a Quantize take float32, and others since opset 19; int8 is there where a pair is not complete.
_NO_FLOAT = (None, "float32", "int8", "uint8")


class Rule(NamedTuple):
    """A rule: what AMCT asks for, and what to do about a file that breaks it, both in words."""

    text: str
    cure: str


SIGNED = Rule(
    "activations are int8, with a zero point of that type",
    "quantise them as signed; onnxruntime's quantize_static: activation_type=QuantType.QInt8",
)
PER_TENSOR = Rule("activations have one scale", "give each activation one scale and one zero point")
PAIRED = Rule(
    "a QuantizeLinear is read by DequantizeLinear alone, and a DequantizeLinear reads a QuantizeLinear",
    "put the missing node of the pair in; a QuantizeLinear alone may give the file's only output",
)
SAME_FACTORS = Rule("both nodes of a pair have the same scale and zero point", "let both read the same two constants")
WEIGHTS_PAIRED = Rule(
    "weights are float constants behind a QuantizeLinear and a DequantizeLinear",
    "quantize_static: extra_options={'AddQDQPairToWeight': True}",
)
FLOAT_BIAS = Rule(
    "biases are float numbers, and not behind a DequantizeLinear",
    "quantize_static: extra_options={'QuantizeBias': False}; round each to multiples of input scale * weight scale",
)
CONV_SCALES = Rule(
    "the weights of a convolution have one scale, or one for each output channel",
    "let the scales lie along axis 0, of a ConvTranspose axis 1",
)
GEMM_SCALES = Rule("the weights of a Gemm or MatMul have one scale", "quantise this layer per tensor")
FLOAT32 = Rule("what is quantised is float32, and so are the scales", "export the float network in float32")
CONSTANT = Rule(
    "scales and zero points are constants; scales are positive and finite",
    "quantise statically, with ranges from calibration pictures",
)
WHOLE_LAYERS = Rule(
    "a layer is integer in both its input and its weights, or in neither",
    "quantise the other one too, or let the layer read what is not quantised",
)
PLAIN_GEMM = Rule(
    "a Gemm has transA 0, alpha 1 and beta 1", "put alpha and beta into the weights and the bias, and transpose before"
)
PAIRS_ALONE = Rule(
    "integers are made by QuantizeLinear and DequantizeLinear alone",
    "write the QDQ format; quantize_static: quant_format=QuantFormat.QDQ",
)
OPERATORS = Rule(
    f"operators are ONNX's own, of opset 8 to {_NEWEST_OPSET}",
    "export with --opset 13, or convert the float file to it",
)
RULES = (
    *(SIGNED, PER_TENSOR, PAIRED, SAME_FACTORS, WEIGHTS_PAIRED, FLOAT_BIAS, CONV_SCALES, GEMM_SCALES, FLOAT32),
    *(CONSTANT, WHOLE_LAYERS, PLAIN_GEMM, PAIRS_ALONE, OPERATORS),
)


class Breach(NamedTuple):
    """A node that breaks a rule: its name, or where it has none its output, and what stands there."""

    rule: Rule
    node: str
    found: str

    def format(self) -> str:
        """One line."""
        return f"{self.node}: {self.found}; the rule: {self.rule.text}"


def breaches(model) -> list[Breach]:
    """Hold an `onnx.ModelProto` with Quantize and Dequantize pairs against RULES.

    Returns:
        What breaks a rule, in the order of the nodes; empty where the model keeps all of them.
    """
    return list(_Checker(model).breaches())


def _named(node) -> str:
    return node.name or next(iter(node.output), node.op_type)


class _Checker:
    def __init__(self, model):
        self._graph = QdqGraph(model)
        self._opset = next((given.version for given in model.opset_import if given.domain in ("", "ai.onnx")), 0)
        layers = [node for node in self._graph.nodes if node.op_type in WEIGHTED]
        # Outputs of the Dequantize nodes behind weights, with their layer, and behind biases.
        self._weights = {node.input[1]: node for node in layers if self._graph.is_integer_layer(node)}
        biases = [node.input[2] for node in layers if len(node.input) > 2]
        self._biases = {name for name in biases if self._graph.made_by(name, DEQUANTIZE)}
        self._types = _types(model)

    def breaches(self) -> Iterator[Breach]:
        for node in self._graph.nodes:
            yield from self._operator(node)
            if node.op_type == QUANTIZE:
                yield from self._quantize(node)
            elif node.op_type == DEQUANTIZE:
                yield from self._dequantize(node)
            elif node.op_type in WEIGHTED:
                yield from self._layer(node)

    def _operator(self, node):
        import onnx

        kind, own = node.op_type, node.domain in ("", "ai.onnx")
        if kind in _OTHER_INTEGERS or kind.startswith("QLinear") or (not own and kind in ("QGemm", "QAttention")):
            yield Breach(PAIRS_ALONE, _named(node), f"it is a {kind}")
            return
        if not own:
            yield Breach(OPERATORS, _named(node), f"{kind} is of the domain {node.domain}")
            return
        try:
            since = onnx.defs.get_schema(kind, self._opset, "").since_version
        except onnx.defs.SchemaError:
            yield Breach(OPERATORS, _named(node), f"opset {self._opset} has no {kind}")
            return
        if since > _NEWEST_OPSET:
            yield Breach(OPERATORS, _named(node), f"{kind} is of opset {since}")

    def _quantize(self, node):
        output = node.output[0]
        readers = self._graph.readers(output)
        kinds = sorted({reader.op_type for reader in readers} - {DEQUANTIZE})
        alone = not readers and self._graph.outputs == [output]
        if kinds or not (readers or alone):
            yield Breach(PAIRED, _named(node), f"its output is read by {', '.join(kinds) or 'nothing'}")
        found = self._types.get(node.input[0])
        if found not in _NO_FLOAT:
            yield Breach(FLOAT32, _named(node), f"it is given {found}")
        yield from self._scales(node)
        behind = {name for reader in readers for name in reader.output}
        if not behind & (self._weights.keys() | self._biases):
            yield from self._activation(node)

    def _dequantize(self, node):
        output = node.output[0]
        if output in self._biases:
            yield Breach(FLOAT_BIAS, _named(node), "it makes a bias")
            return
        quantize, layer = self._graph.made_by(node.input[0], QUANTIZE), self._weights.get(output)
        if quantize is None:
            yield Breach(PAIRED if layer is None else WEIGHTS_PAIRED, _named(node), "it reads no QuantizeLinear")
        elif not self._same_factors(quantize, node):
            yield Breach(SAME_FACTORS, _named(node), f"its factors are not those of {_named(quantize)}")
        yield from self._scales(node)
        if layer is not None:
            if quantize is not None and quantize.input[0] not in self._graph.arrays:
                yield Breach(WEIGHTS_PAIRED, _named(node), "what it quantises is computed, and no constant")
            yield from self._weight_scales(node, layer)
        elif quantize is None:
            yield from self._activation(node)

    def _same_factors(self, quantize, dequantize) -> bool:
        one, other = self._graph.factors(quantize), self._graph.factors(dequantize)
        if one is None or other is None:  # computed ones are another rule's
            return list(quantize.input[1:]) == list(dequantize.input[1:])
        same = one.zero_point.dtype == other.zero_point.dtype and (one.scale.size == 1 or one.axis == other.axis)
        pairs = zip(one[:2], other[:2], strict=True)
        return same and all(np.array_equal(ours.ravel(), theirs.ravel()) for ours, theirs in pairs)

    def _activation(self, node):
        factors = self._graph.factors(node)
        if factors is None:
            return
        if factors.zero_point.dtype != np.int8:
            given = len(node.input) > 2 and node.input[2]
            what = f"is {factors.zero_point.dtype}" if given else "is left out, which means uint8"
            yield Breach(SIGNED, _named(node), f"its zero point {what}")
        if factors.scale.size != 1:
            yield Breach(PER_TENSOR, _named(node), f"it has {factors.scale.size} scales")

    def _scales(self, node):
        factors = self._graph.factors(node)
        if factors is None:
            yield Breach(CONSTANT, _named(node), "its factors are computed")
            return
        scale = factors.scale
        if scale.dtype != np.float32:
            yield Breach(FLOAT32, _named(node), f"its scale is {scale.dtype}")
        if not (scale.size and np.isfinite(scale).all() and (scale > 0).all()):
            extremes = f"from {scale.min():g} to {scale.max():g}" if scale.size else "missing"
            yield Breach(CONSTANT, _named(node), f"its scales are {extremes}")

    def _weight_scales(self, node, layer):
        factors = self._graph.factors(node)
        if factors is None or factors.scale.size == 1:
            return
        if layer.op_type in ("Gemm", "MatMul"):
            yield Breach(GEMM_SCALES, _named(node), f"it has {factors.scale.size} scales")
            return
        axis = factors.axis
        if axis < 0 and (weights := self._weights_behind(node)) is not None:
            axis += weights.ndim
        if axis != (1 if layer.op_type == "ConvTranspose" else 0):
            yield Breach(CONV_SCALES, _named(node), f"its scales lie along axis {axis}")

    def _weights_behind(self, dequantize) -> np.ndarray | None:
        quantize = self._graph.made_by(dequantize.input[0], QUANTIZE)
        return self._graph.arrays.get((quantize or dequantize).input[0])

    def _layer(self, node):
        weights = self._graph.is_integer_layer(node)
        given = self._graph.made_by(node.input[0], DEQUANTIZE, QUANTIZE) is not None
        if given != weights:
            which = "input" if given else "weights"
            yield Breach(WHOLE_LAYERS, _named(node), f"only its {which} are integer")
        if weights and node.op_type == "Gemm":
            has = {"transA": 0, "alpha": 1.0, "beta": 1.0} | attributes_of(node)
            if (has["transA"], has["alpha"], has["beta"]) != (0, 1, 1):
                text = ", ".join(f"{name} {has[name]:g}" for name in ("transA", "alpha", "beta"))
                yield Breach(PLAIN_GEMM, _named(node), f"it has {text}")


def _types(model) -> dict[str, str]:
    """Tensor -> the name of its type, of all that ONNX's shape inference tells."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    known = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output, *graph.value_info)}
    known |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return {name: onnx.helper.tensor_dtype_to_np_dtype(kind).name for name, kind in known.items() if kind}


def remarks(model) -> list[str]:
    """What the pages leave open about a model, or ask for in ATC's command, in words."""
    graph = QdqGraph(model)
    return [*_unlisted_readers(graph), *_weights_as_integers(graph), *_biases(graph), *_inputs(model), *_opset(model)]


def _unlisted_readers(graph) -> Iterator[str]:
    pairs = [node for node in graph.nodes if node.op_type == DEQUANTIZE]
    kinds = {reader.op_type for node in pairs for reader in graph.readers(node.output[0])} - set(_ADAPTED)
    if kinds:
        yield (
            f"pairs stand in front of {', '.join(sorted(kinds))}: the pages list {', '.join(WEIGHTED)}, and since CANN "
            "8.5 Add, as what AMCT adapts"
        )


def _weights_as_integers(graph) -> Iterator[str]:
    for node in graph.nodes:
        if graph.is_integer_layer(node):
            factors = graph.factors(graph.made_by(node.input[1], DEQUANTIZE))
            if factors is not None and (factors.zero_point.dtype != np.int8 or factors.zero_point.any()):
                yield "weights are not int8 with the zero point 0: the pages say nothing of others"
                return


def _biases(graph) -> Iterator[str]:
    off = [_named(node) for node in graph.nodes if graph.is_integer_layer(node) and _off_grid(graph, node)]
    if off:
        yield (
            f"biases off their grid: {', '.join(off[:3])}{f' and {len(off) - 3} more' if len(off) > 3 else ''}; AMCT "
            "rounds them to multiples of input scale * weight scale, so round them before results are compared"
        )


def _off_grid(graph, layer) -> bool:
    """Whether a layer's bias is no multiple of input scale * weight scale; False where that is not known."""
    bias = graph.arrays.get(layer.input[2]) if len(layer.input) > 2 else None
    pairs = [graph.made_by(name, DEQUANTIZE) for name in layer.input[:2]]
    factors = [pair and graph.factors(pair) for pair in pairs]
    if bias is None or None in factors or factors[0].scale.size != 1 or not all(f.scale.all() for f in factors):
        return False
    scales = [found.scale.astype(np.float64).ravel() for found in factors]
    if scales[1].size not in (1, bias.size):
        return False
    steps = bias.astype(np.float64).ravel() / (scales[0] * scales[1])
    # float32 itself moves a large bias by some steps, and keeps a small one to a thousandth of one.
    return bool((np.abs(steps - np.rint(steps)) > 1e-2 + 1e-6 * np.abs(steps)).any())


def _inputs(model) -> Iterator[str]:
    import onnx

    constants = {tensor.name for tensor in model.graph.initializer}
    for given in model.graph.input:
        if given.name in constants:
            continue
        kind = given.type.tensor_type
        if any(not size.dim_value for size in kind.shape.dim):
            yield f"sizes of the input {given.name} are open: ATC takes a list of them, as --dynamic_batch_size=1,8"
        if kind.elem_type == onnx.TensorProto.UINT8:
            yield f"the input {given.name} is uint8, which ATC documents for AIPP alone"


def _opset(model) -> Iterator[str]:
    found = next((given.version for given in model.opset_import if given.domain in ("", "ai.onnx")), 0)
    if found > _NEWEST_OPSET:
        yield f"the file says opset {found}: AMCT's older onnx (1.8 to 1.10) reads files up to {_NEWEST_OPSET}"
