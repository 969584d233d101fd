"""onnxruntime's sessions of models in memory, and of the parts of a model between two tensors."""

from __future__ import annotations

from collections.abc import Sequence


def session_of(model, plain=False):
    """Open a session of a model in memory.

    Args:
        model: an `onnx.ModelProto`.
        plain: compute operator by operator, without the CPU's int8 kernels.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    # As in an `OnnxEngine`: threads that wait sleep.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if plain:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class Parts:
    """The parts of a model between two of its tensors.

    It is onnx.utils.Extractor without the inference of shapes, which takes seconds for a large model.

    Args:
        model: an `onnx.ModelProto`, which stays as it is.
        weights: initializer -> the tensor that stands in its place.
    """

    def __init__(self, model, weights=None):
        self._model = model
        self._producers = {name: node for node in model.graph.node for name in node.output}
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer} | (weights or {})
        self._inputs = {given.name: given for given in model.graph.input}

    def between(self, begin: str, ends: Sequence[str]):
        """The model that computes `ends` of `begin`, which is its input: float32, unless the whole model's is another.

        Raises:
            ValueError: something else is needed to compute `ends`.
        """
        import onnx

        wanted, chosen, weights = list(ends), set(), {}
        while wanted:
            name = wanted.pop()
            if name in self._initializers:
                weights[name] = self._initializers[name]
            elif name != begin:
                if name not in self._producers:
                    raise ValueError(f"{name} is not computed of {begin}")
                node = self._producers[name]
                if node.name not in chosen:
                    chosen.add(node.name)
                    wanted.extend(node.input)
        real = onnx.TensorProto.FLOAT
        model = onnx.ModelProto(ir_version=self._model.ir_version, opset_import=self._model.opset_import)
        model.graph.name = begin
        model.graph.input.append(self._inputs.get(begin) or onnx.helper.make_tensor_value_info(begin, real, None))
        model.graph.output.extend(onnx.helper.make_tensor_value_info(name, real, None) for name in ends)
        model.graph.node.extend(node for node in self._model.graph.node if node.name in chosen)
        model.graph.initializer.extend(weights.values())
        return model
