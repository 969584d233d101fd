"""An exported ONNX file in INT8, by onnxruntime's tools: ranges from pictures, integers, corrected biases.

Activations are uint8 with a zero point, weights int8 and symmetric, in QDQ format: what onnxruntime's quantize_static
recommends for x86 CPUs. Convolutions of the blocks and the linear layer are integer; preprocessing, SE, the pooling and
the logits stay in float. A ReLU is part of its convolution's rounding.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindrepvgg.deployment.engine import import_onnxruntime
from mindrepvgg.deployment.graph import INPUT, import_onnx
from mindrepvgg.errors import UserError

METHODS = ("minmax", "entropy", "percentile")
LINEAR = "linear"

_OPERATORS = ["Conv", "Gemm", "Relu"]

# Bias correction takes about so many images, and holds a layer's output for all of them.
_MOST_CORRECTING = 128


@dataclass(frozen=True)
class IntegerOptions:
    """How real numbers become integers.

    method: which range of an activation its 256 steps span: 'minmax' the whole, 'percentile' what holds `percentile` of
    a hundred values, 'entropy' what keeps its distribution. per_channel: a scale for each output channel's weights, or
    one for a layer's. weight_bits: 8, or 7 for x86 CPUs without VNNI, whose int8 arithmetic adds pairs of products in
    16 bits and saturates.
    """

    method: str = "minmax"
    percentile: float = 99.99
    per_channel: bool = True
    weight_bits: int = 8

    def __post_init__(self):
        if self.method not in METHODS:
            raise UserError(f"method (={self.method!r}) must be one of {', '.join(METHODS)}")
        if not 50 < self.percentile <= 100:
            raise UserError(f"percentile (={self.percentile}) must be above 50 and at most 100")
        if self.weight_bits not in (7, 8):
            raise UserError(f"weight_bits (={self.weight_bits}) must be 7 or 8")


def import_tools():
    """The module onnxruntime.quantization, or UserError with what to install."""
    import_onnx()
    import_onnxruntime()
    try:
        from onnxruntime import quantization as tools
        from onnxruntime.quantization import qdq_loss_debug  # noqa: F401 - a module the other does not load itself
    except ImportError as error:
        raise UserError(f"onnxruntime's quantisation tools cannot be loaded: {error}") from None
    return tools


def plain_session(model):
    """A session that computes operator by operator, as the file says, and without the CPU's int8 kernels."""
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def layer_nodes(variant, output) -> dict[str, str]:
    """Layer -> its node in an exported file, in order: the blocks' convolutions and the linear layer.

    output: the name of the logits.
    """
    return {**{spec.name: f"{spec.name}.conv" for spec in variant.block_specs()}, LINEAR: output}


class Quantizer:
    """One float file and the pictures its ranges are taken from; makes INT8 files of it.

    path: an exported file that takes any batch. layers: see `layer_nodes`. batches: arrays as the file takes them, all
    of which are kept. A folder of its own holds what is in between, until `close`.
    ranges: tensor -> (lowest, highest) that the integers span.
    """

    def __init__(self, path, layers, batches: Iterable[np.ndarray], options: IntegerOptions):
        self.tools, self.layers, self.options = import_tools(), dict(layers), options
        self.batches = list(batches)
        self._folder = tempfile.TemporaryDirectory(prefix="mindrepvgg-int8.")
        self.path = Path(self._folder.name, "float.onnx")
        # Types and shapes of all tensors, and a mark that spares a warning; there is nothing to optimise in the graph.
        self.tools.quant_pre_process(str(path), str(self.path), skip_optimization=True, skip_symbolic_shape=True)
        self.ranges = self._calibrate()
        self._float_means = None

    def close(self):
        """Remove what is in between."""
        self._folder.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _calibrate(self):
        methods = self.tools.CalibrationMethod
        chosen = {"minmax": methods.MinMax, "entropy": methods.Entropy, "percentile": methods.Percentile}
        method = self.options.method
        with contextlib.redirect_stdout(io.StringIO()):  # the tools tell of their progress
            calibrator = self.tools.create_calibrator(
                self.path,
                _OPERATORS,
                augmented_model_path=str(Path(self._folder.name, "observed.onnx")),
                calibrate_method=chosen[method],
                extra_options={"percentile": self.options.percentile} if method == "percentile" else {},
            )
            for batch in self.batches:  # one at a time: histograms are made of all activations at once
                calibrator.collect_data(reader(self.tools, [batch]))
            found = calibrator.compute_data()
        return {name: tuple(float(end) for end in data.range_value) for name, data in found.items()}

    def write(self, destination, layers, corrects=False) -> dict[str, np.ndarray]:
        """Write an INT8 file in which these layers are integer; gives the shifts of `correct_biases`, if asked for."""
        nodes = [self.layers[name] for name in layers]
        overrides = {
            name: [{"rmin": np.float32(low), "rmax": np.float32(high)}] for name, (low, high) in self.ranges.items()
        }
        with contextlib.redirect_stdout(io.StringIO()):
            self.tools.quantize_static(
                str(self.path),
                str(destination),
                reader(self.tools, [self.batches[0][:1]]),  # it wants one; the ranges are known
                quant_format=self.tools.QuantFormat.QDQ,
                op_types_to_quantize=_OPERATORS,
                nodes_to_quantize=[*nodes, *(f"{name}.relu" for name in layers if name != LINEAR)],
                per_channel=self.options.per_channel,
                reduce_range=self.options.weight_bits == 7,
                activation_type=self.tools.QuantType.QUInt8,
                weight_type=self.tools.QuantType.QInt8,
                extra_options={
                    "OpTypesToExcludeOutputQuantization": ["Gemm"],
                    "TensorQuantOverrides": overrides,
                },
            )
        if not corrects:
            return {}
        batches = self.batches[: -(-_MOST_CORRECTING // len(self.batches[0]))]
        if self._float_means is None:
            self._float_means = channel_means(self.path, list(self.layers.values()), batches)
        means = {name: self._float_means[self.layers[name]] for name in layers}
        return correct_biases(destination, {name: self.layers[name] for name in layers}, means, batches)


def reader(tools, batches):
    """The batches as onnxruntime's tools want them."""

    class Reader(tools.CalibrationDataReader):
        def __init__(self):
            self._batches = iter(batches)

        def get_next(self):
            """The next batch by the input's name, None after the last."""
            batch = next(self._batches, None)
            return None if batch is None else {INPUT: batch}

    return Reader()


def channel_means(path, nodes, batches) -> dict[str, np.ndarray]:
    """Node -> mean (channels,) of its output over all images and pixels, in float64."""
    onnx = import_onnx()
    model = onnx.load(str(path))
    outputs = {node.name: node.output[0] for node in model.graph.node if node.name in nodes}
    del model.graph.output[:]
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(outputs[node], onnx.TensorProto.FLOAT, None) for node in nodes
    )
    session = plain_session(model.SerializeToString())
    means, count = dict.fromkeys(nodes, 0.0), sum(map(len, batches))
    for batch in batches:
        for node, maps in zip(nodes, session.run(None, {INPUT: batch}), strict=True):
            means[node] = means[node] + _channel_mean([maps]) * (len(batch) / count)
    return means


def correct_biases(path, layers, means, batches) -> dict[str, np.ndarray]:
    """Shift the integer biases of an INT8 file so that each layer's mean output is the float network's; in place.

    layers: layer -> node, in order: each is measured with those before it corrected. means: layer -> (channels,), of
    the float network, before the ReLU. Gives the shifts (channels,) by layer.
    Source: arXiv:1906.04721, section 4.2 and appendix D (empirical bias correction).
    """
    onnx = import_onnx()
    model = onnx.load(str(path))
    parts = onnx.utils.Extractor(model)
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    producers = {node.output[0]: node for node in model.graph.node}
    limits = np.iinfo(np.int32)
    given, maps, shifts = INPUT, batches, {}
    for name, node_name in layers.items():
        node = next(node for node in model.graph.node if node.name == node_name)
        integers, scale = (initializers[key] for key in producers[node.input[2]].input[:2])
        # From the output of the layer before, corrected, to this one's: every layer is run once.
        run = plain_session(parts.extract_model([given], [node.output[0]]).SerializeToString())
        maps, given = [run.run(None, {given: batch})[0] for batch in maps], node.output[0]
        step = onnx.numpy_helper.to_array(scale)
        steps = np.rint((means[name] - _channel_mean(maps)) / step)
        shifted = np.clip(onnx.numpy_helper.to_array(integers) + steps, limits.min, limits.max).astype(np.int32)
        integers.CopyFrom(onnx.numpy_helper.from_array(shifted, integers.name))
        shifts[name] = steps * step
        for batch in maps:
            batch += shifts[name].reshape(-1, *[1] * (batch.ndim - 2))
    Path(path).write_bytes(model.SerializeToString())
    return shifts


def _channel_mean(maps):
    """Mean (channels,) of arrays (N, channels, ...), in float64."""
    pixels = sum(batch.size // batch.shape[1] for batch in maps)
    return sum(batch.sum((0, *range(2, batch.ndim)), dtype=np.float64) for batch in maps) / pixels
