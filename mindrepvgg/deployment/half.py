"""What float16 does to a network, layer by layer, as a chip that computes in float16.

onnxruntime on a CPU runs a float16 file in float32 from one end to the other: the weights are rounded, what the layers
hand on is not. A value that float16 cannot hold, which makes infinity on a chip, passes there unseen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np

from mindrepvgg.deployment.graph import INPUT, GraphOptions, build_onnx
from mindrepvgg.files import json_types
from mindrepvgg.models.variants import Variant
from mindrepvgg.reparam.compare import difference

_EXACT, _HALF = "exact", "half"  # behind a tensor's name: before, and after rounding
LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class HalfCheck:
    """A float16 file computed with the output of every layer rounded to float16, and sums in float32.

    Attributes:
        max_rel: how far the outputs are from float32's, over the largest of these.
        all_float16: the same where no block stays in float32; None where none does.
        blocks: name -> (largest magnitude of the block's output in float32, how far its output in float16 is from
            that, over the largest).
    """

    max_rel: float
    all_float16: float | None
    blocks: dict[str, tuple[float, float]]

    @property
    def overflowing(self) -> str | None:
        """The first block whose output in float16 is infinite, by name; None where none is."""
        return next((name for name, (_, relative) in self.blocks.items() if not np.isfinite(relative)), None)

    def to_dict(self) -> dict:
        """Plain types, for JSON; NaN and infinity as text, because JSON has no such number."""
        return json_types(asdict(self))

    def format(self) -> str:
        """Return two lines for people."""
        name = max(self.blocks, key=lambda block: self.blocks[block][0])
        largest = self.blocks[name][0]
        line = f"every layer rounded to float16, as on a chip: outputs differ by {self.max_rel:.2e} of the largest"
        if self.all_float16 is not None:
            line += f"; without float32 layers by {self.all_float16:.2e}"
        return f"{line}\nlargest output of a block in float32: {largest:.4g}, of {name}; float16 holds {LARGEST:.0f}"


def check_half(variant: Variant, arrays: Mapping[str, np.ndarray], options: GraphOptions, images) -> HalfCheck:
    """Compute a network with its layers' outputs rounded, and compare with float32, block by block.

    Args:
        variant: the network's layout.
        arrays: of the deploy form, by name.
        options: of the float16 file.
        images: as the file takes them.
    """
    exact = replace(options, precision="float32", float32_blocks=())
    blocks = [f"{spec.name}.relu" if spec.se != "post" else spec.squeeze_excite for spec in variant.block_specs()]
    names = [spec.name for spec in variant.block_specs()]

    def computed(chosen):
        model = build_onnx(variant, arrays, chosen)
        return _run(_rounded(model) if chosen.precision == "float16" else model, blocks, images)

    expected_outputs, expected = computed(exact)
    outputs, found = computed(options)
    all_float16 = None
    if options.float32_blocks:
        all_float16 = _difference(expected_outputs, computed(replace(options, float32_blocks=()))[0])
    return HalfCheck(
        _difference(expected_outputs, outputs),
        all_float16,
        {
            name: (float(np.abs(one).max()), difference(one, other)[1])
            for name, one, other in zip(names, expected, found, strict=True)
        },
    )


def _difference(expected, found):
    # max() would overlook a NaN that does not come first.
    return float(np.max([difference(one, other)[1] for one, other in zip(expected, found, strict=True)]))


def _rounded(model):
    """The float32 model that computes what a float16 one does: a Cast there and back behind whatever is float16."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    half = {value.name for value in graph.value_info if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16}
    nodes = []
    for node in model.graph.node:
        (name,) = node.output
        if name not in half:
            nodes.append(node)
            continue
        casts = node.op_type == "Cast"
        if not casts:
            node.output[0] = f"{name}.{_EXACT}"
            nodes.append(node)
        to_half = onnx.helper.make_node(
            "Cast", [node.input[0] if casts else f"{name}.{_EXACT}"], [f"{name}.{_HALF}"], to=onnx.TensorProto.FLOAT16
        )
        nodes += [to_half, onnx.helper.make_node("Cast", [f"{name}.{_HALF}"], [name], to=onnx.TensorProto.FLOAT)]
    constants = [
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
        for tensor in model.graph.initializer
    ]
    name, inputs, outputs = model.graph.name, list(model.graph.input), list(model.graph.output)
    made = onnx.helper.make_graph(nodes, name, inputs, outputs, constants)
    return onnx.helper.make_model(made, opset_imports=list(model.opset_import), ir_version=model.ir_version)


def _run(model, tensors, images):
    """The file's outputs, and these tensors inside it; as onnxruntime computes them node by node."""
    import onnx
    import onnxruntime as ort

    outputs = [output.name for output in model.graph.output]
    inside = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in tensors]
    model.graph.output.extend(inside)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = session.run([*outputs, *tensors], {INPUT: images})
    return found[: len(outputs)], found[len(outputs) :]
