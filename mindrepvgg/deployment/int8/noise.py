"""How far an INT8 file is from its float file: the whole, layer by layer, one layer alone, and what the CPU adds."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from mindrepvgg.deployment.engine import OnnxEngine
from mindrepvgg.deployment.graph import INPUT, import_onnx
from mindrepvgg.deployment.int8.integers import LINEAR, import_tools, plain_session, reader

_DEQUANTIZED = "_DequantizeLinear_Output"  # behind a tensor's name, in onnxruntime's QDQ format


def signal_to_noise(signal, noisy) -> float:
    """20 log10(|signal| / |signal - noisy|) in dB, by onnxruntime's function: some 300 where the two are equal."""
    return import_tools().qdq_loss_debug.compute_signal_to_quantization_noice_ratio(signal, noisy)


def layer_noise(float_path, path, layers, images) -> dict[str, dict[str, float]]:
    """Layer -> signal-to-noise ratios in dB of an INT8 file against the float one, on images as the files take them.

    'output': of the layer's output after the ReLU, all layers before it being as they are in the file; 'weights': of
    its kernel, None where it is in float. Both files are run as they are written, without the CPU's int8 kernels.
    """
    tools = import_tools()
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
    """Node -> (name, array) of its weights."""
    onnx = import_onnx()
    graph = onnx.load(str(path)).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return {
        node.name: (node.input[1], arrays[node.input[1]]) for node in graph.node if node.op_type in ("Conv", "Gemm")
    }


def noise_alone(quantizer, images, show_progress=False) -> dict[str, float]:
    """Layer -> signal-to-noise ratio in dB of the logits when this layer alone is integer, run by the CPU's kernels."""
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
    """Signal-to-noise ratios in dB of an INT8 file's logits: of this CPU's int8 kernels, and of the integers.

    kernels: against the file's own arithmetic. rounding: of that arithmetic against the float file. Kernels that
    saturate, see `IntegerOptions`, add more noise than the rounding did, and show here alone.
    """

    kernels: float
    rounding: float

    @property
    def saturates(self) -> bool:
        """Whether the kernels compute something else than the file says."""
        return self.kernels < self.rounding


def kernel_noise(float_path, path, images) -> KernelNoise:
    """Measure a file that was made of `float_path`, on images as the files take them."""
    expected = OnnxEngine(float_path)(images)
    plain = plain_session(str(path)).run(None, {INPUT: images})[0]
    return KernelNoise(signal_to_noise(plain, OnnxEngine(path)(images)), signal_to_noise(expected, plain))
