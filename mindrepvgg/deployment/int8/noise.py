"""Signal-to-noise ratios of an INT8 file against its float file: of each layer, of one layer alone, of the CPU."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from mindrepvgg.deployment.engine import OnnxEngine
from mindrepvgg.deployment.graph import INPUT
from mindrepvgg.deployment.int8.integers import LINEAR, plain_session, quantization_tools, reader

_DEQUANTIZED = "_DequantizeLinear_Output"  # behind a tensor's name, in onnxruntime's QDQ format


def signal_to_noise(signal, noisy) -> float:
    """20 log10(|signal| / |signal - noisy|) in dB, by onnxruntime's function: some 300 where the two are equal."""
    return quantization_tools().qdq_loss_debug.compute_signal_to_quantization_noice_ratio(signal, noisy)


def layer_noise(float_path, path, layers, images) -> dict[str, dict]:
    """Measure each layer of an INT8 file against the float file, without the CPU's int8 kernels.

    Args:
        float_path, path: the two files.
        layers: layer -> node, see `layer_nodes`.
        images: an array as the files take it.

    Returns:
        Layer -> signal-to-noise ratios in dB: 'output' of the layer's output after the ReLU, with the noise of the
        layers before it; 'weights' of the layer's kernel, None where it is in float.
    """
    tools = quantization_tools()
    with tempfile.TemporaryDirectory(prefix="mindrepvgg-noise.") as folder:
        found = []
        for index, source in enumerate((float_path, path)):
            observed = str(Path(folder, f"{index}.onnx"))
            tools.qdq_loss_debug.modify_model_output_intermediate_tensors(str(source), observed)
            arrays = tools.qdq_loss_debug.collect_activations(observed, reader(tools, [images]))
            found.append({name: values[0] for name, values in arrays.items()})
    reference, integer = found
    kernels = _kernels(float_path)
    noise = {}
    for name, node in layers.items():
        tensor = node if name == LINEAR else f"{name}.relu"
        kernel = kernels[node]
        rounded = integer.get(f"{kernel[0]}{_DEQUANTIZED}")
        noise[name] = {
            "output": signal_to_noise(reference[tensor], integer.get(f"{tensor}{_DEQUANTIZED}", integer[tensor])),
            "weights": None if rounded is None else signal_to_noise(kernel[1].ravel(), rounded.ravel()),
        }
    return noise


def _kernels(path):
    """Return node -> (name, array) of its weights."""
    import onnx

    graph = onnx.load(str(path)).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return {
        node.name: (node.input[1], arrays[node.input[1]]) for node in graph.node if node.op_type in ("Conv", "Gemm")
    }


def noise_alone(quantizer, images, show_progress=False) -> dict[str, float]:
    """Return layer -> signal-to-noise ratio in dB of the logits when only this layer is INT8, with the int8 kernels."""
    expected = OnnxEngine(quantizer.path)(images)
    found = {}
    with tempfile.TemporaryDirectory(prefix="mindrepvgg-alone.") as folder:
        path = Path(folder, "alone.onnx")
        shown = show_progress and sys.stderr.isatty()
        for name in tqdm(quantizer.layers, "layers alone", leave=False, disable=not shown):
            quantizer.write(path, [name])
            found[name] = signal_to_noise(expected, OnnxEngine(path)(images))
    return found


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


def kernel_noise(float_path, path, images) -> KernelNoise:
    """Measure the int8 kernels of this CPU.

    Args:
        float_path, path: a float file and the INT8 file made of it.
        images: an array as the files take it.
    """
    expected = OnnxEngine(float_path)(images)
    plain = plain_session(str(path)).run(None, {INPUT: images})[0]
    return KernelNoise(signal_to_noise(plain, OnnxEngine(path)(images)), signal_to_noise(expected, plain))
