"""ONNX files under onnxruntime, without a line of ours."""

from pathlib import Path

import onnx
import onnxruntime
from onnx.numpy_helper import to_array


def session(model, optimised=True):
    """Open a file or model: a function of its one input. optimised: False computes operator by operator."""
    options = onnxruntime.SessionOptions()
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    found = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return lambda x: found.run(None, {"images": x})[0]


def initializers(path):
    """Return the constants of a file by name."""
    return {tensor.name: to_array(tensor) for tensor in onnx.load(str(path)).graph.initializer}
