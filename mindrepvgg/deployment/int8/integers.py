"""An exported ONNX file in INT8, by onnxruntime's tools: ranges from pictures, integers, corrected biases.

Activations are uint8 with a zero point, weights int8 and symmetric, in QDQ format: onnxruntime's quantize_static
recommends this for x86 CPUs. The convolutions of the blocks and the linear layer become integer. Preprocessing, SE,
the pooling and the logits stay in float. A convolution's output is rounded after its ReLU.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from mindrepvgg.deployment.graph import INPUT, require_onnx
from mindrepvgg.errors import UserError
from mindrepvgg.runtime.optional import import_optional
from mindrepvgg.text import quoted

METHODS = ("minmax", "entropy", "percentile")
LINEAR = "linear"

_OPERATORS = ["Conv", "Gemm", "Relu"]

# Bias correction takes about so many images: it holds a layer's output for all of them.
_MOST_CORRECTING = 128


@dataclass(frozen=True)
class IntegerOptions:
    """How real numbers become integers.

    Attributes:
        method: the range that an activation's 256 steps span: 'minmax' the whole range, 'percentile' the range that
            holds `percentile` of a hundred values, 'entropy' the range that keeps the distribution best.
        percentile: of the method 'percentile'.
        per_channel: one scale for the weights of each output channel; otherwise one for a layer.
        weight_bits: 8, or 7 for x86 CPUs without VNNI: their int8 arithmetic adds pairs of products in 16 bits, which
            overflow with 8-bit weights.
    """

    method: str = "minmax"
    percentile: float = 99.99
    per_channel: bool = True
    weight_bits: int = 8

    def __post_init__(self):
        if self.method not in METHODS:
            raise UserError(f"method (={quoted(self.method)}) must be one of {', '.join(METHODS)}")
        if not 50 < self.percentile <= 100:
            raise UserError(f"percentile (={self.percentile}) must be above 50 and at most 100")
        if self.weight_bits not in (7, 8):
            raise UserError(f"weight_bits (={self.weight_bits}) must be 7 or 8")


def quantization_tools() -> ModuleType:
    """Return the module onnxruntime.quantization; raise UserError where onnx or onnxruntime is missing or broken."""
    require_onnx()
    # The package does not load this module of its own.
    import_optional("onnxruntime.quantization.qdq_loss_debug", "onnx", "INT8")
    return import_optional("onnxruntime.quantization", "onnx", "INT8")


def plain_session(model):
    """Open a session that computes operator by operator, without the CPU's int8 kernels."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def layer_nodes(variant, output) -> dict[str, str]:
    """Return layer -> its node in an exported file: the blocks' convolutions and the linear layer, in their order.

    Args:
        variant: the network's layout.
        output: the name of the file's logits.
    """
    return {**{spec.name: f"{spec.name}.conv" for spec in variant.block_specs()}, LINEAR: output}


class Quantizer:
    """Makes INT8 files of a float file.

    It keeps intermediate files in a folder of its own, until `close`.

    Args:
        path: an exported file that takes any batch.
        layers: see `layer_nodes`.
        batches: the pictures that ranges are taken from, as arrays that the file takes; all of them are kept.
        options: how real numbers become integers.

    Attributes:
        ranges: tensor -> (lowest, highest) that the integers span.
    """

    def __init__(self, path, layers, batches: Iterable[np.ndarray], options: IntegerOptions):
        self.tools, self.layers, self.options = quantization_tools(), dict(layers), options
        self.batches = list(batches)
        self._folder = tempfile.TemporaryDirectory(prefix="mindrepvgg-int8.")
        self.path = Path(self._folder.name, "float.onnx")
        # It adds the shapes of all tensors, and a mark without which the tools warn. There is nothing to optimise.
        self.tools.quant_pre_process(str(path), str(self.path), skip_optimization=True, skip_symbolic_shape=True)
        self.ranges = self._calibrate()
        self._float_means: dict[str, np.ndarray] | None = None

    def close(self):
        """Remove the intermediate files."""
        self._folder.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _calibrate(self):
        methods = self.tools.CalibrationMethod
        chosen = {"minmax": methods.MinMax, "entropy": methods.Entropy, "percentile": methods.Percentile}
        method = self.options.method
        with contextlib.redirect_stdout(io.StringIO()):  # the tools print their progress
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
        """Write an INT8 file.

        Args:
            destination: its path.
            layers: the layers that become integer.
            corrects: whether to correct their biases.

        Returns:
            The shifts of `correct_biases`; empty without correction.
        """
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
    """Make a calibration data reader of batches, as onnxruntime's tools want it."""

    class Reader(tools.CalibrationDataReader):  # type: ignore[name-defined]  # known at run time only
        def __init__(self):
            self._batches = iter(batches)

        def get_next(self):
            """Return the next batch by the input's name, None after the last."""
            batch = next(self._batches, None)
            return None if batch is None else {INPUT: batch}

    return Reader()


def channel_means(path, nodes, batches) -> dict[str, np.ndarray]:
    """Return node -> mean (channels,) of its output over all images and pixels, in float64."""
    import onnx

    model = onnx.load(str(path))
    outputs = {node.name: node.output[0] for node in model.graph.node if node.name in nodes}
    del model.graph.output[:]
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(outputs[node], onnx.TensorProto.FLOAT, None) for node in nodes
    )
    session = plain_session(model.SerializeToString())
    means: dict = dict.fromkeys(nodes, 0.0)
    count = sum(map(len, batches))
    for batch in batches:
        for node, maps in zip(nodes, session.run(None, {INPUT: batch}), strict=True):
            means[node] = means[node] + _channel_mean([maps]) * (len(batch) / count)
    return means


def correct_biases(path, layers, means, batches) -> dict[str, np.ndarray]:
    """Shift the integer biases of an INT8 file, in place, so that each layer's mean output is the float network's.

    Args:
        path: the file.
        layers: layer -> node, in the network's order: a layer is measured after those before it are corrected.
        means: layer -> (channels,), the mean outputs of the float network before the ReLU.
        batches: the pictures to measure on.

    Returns:
        Layer -> (channels,), the shifts.

    Source: arXiv:1906.04721, section 4.2 and appendix D (empirical bias correction).
    """
    import onnx

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
