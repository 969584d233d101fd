"""Damaged and hostile ONNX files."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import strategies as st

from fuzz import samples
from fuzz.cases import Case, json_values, mutated, sizes
from mindrepvgg.cli import verbs
from mindrepvgg.deployment.engine import OnnxEngine

_MOST_PIXELS = 2**16


def _open(path):
    engine = OnnxEngine(path, num_threads=1)
    engine.require("model", "class_names")
    return engine


def _run(path):
    engine = OnnxEngine(path, num_threads=1)
    height, width = engine.image_size or (16, 16)
    if height * width <= _MOST_PIXELS:
        shape = (1, height, width, 1) if engine.preprocesses else (1, 1, height, width)
        engine(np.zeros(shape, np.uint8 if engine.preprocesses else np.float32))


DOORS = {
    "open": _open,
    "run": _run,
    "as a checkpoint": lambda path: verbs.main(["convert", path, "--inspect"]),
}


@st.composite
def _altered(draw):
    """A model with one to three lies in its messages."""
    model = onnx.ModelProto()
    model.CopyFrom(draw(st.sampled_from(samples.onnx_models())))
    graph = model.graph
    number = sizes().map(lambda n: min(n, 2**63 - 1))
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(
            st.sampled_from(["dims", "data", "outside", "operator", "edge", "attribute", "input", "version", "told"])
        )
        constant = graph.initializer[draw(st.integers(0, len(graph.initializer) - 1))]
        node = graph.node[draw(st.integers(0, len(graph.node) - 1))]
        if kind == "dims":
            constant.dims[:] = draw(st.lists(number, max_size=6))
        elif kind == "data":
            constant.data_type = draw(st.integers(0, 25))
        elif kind == "outside":
            constant.data_location = onnx.TensorProto.EXTERNAL
            for key in ("location", "offset", "length"):
                value = draw(st.sampled_from(["/dev/zero", "/etc/hostname", "../x", "x.onnx", "", "-1", "0", "9" * 30]))
                constant.external_data.add(key=key, value=value)
        elif kind == "operator":
            operators = [
                "Loop",
                "If",
                "Conv",
                "ConstantOfShape",
                "Expand",
                "Tile",
                "Resize",
                "Nothing",
                "MatMul",
                "Pad",
            ]
            node.op_type = draw(st.sampled_from(operators))
        elif kind == "edge":
            names = [*node.input, *node.output, graph.node[0].input[0], graph.node[-1].output[0], ""]
            node.input[draw(st.integers(0, len(node.input) - 1))] = draw(st.sampled_from(names))
        elif kind == "attribute":
            name = draw(st.sampled_from(["pads", "strides", "dilations", "kernel_shape", "group", "axis", "to"]))
            del node.attribute[:]
            node.attribute.append(onnx.helper.make_attribute(name, draw(st.lists(number, min_size=1, max_size=5))))
        elif kind == "input":
            shape = graph.input[0].type.tensor_type
            shape.elem_type = draw(st.integers(0, 25))
            for dim in shape.shape.dim:
                if draw(st.booleans()):
                    dim.dim_value = draw(number)
        elif kind == "version":
            model.ir_version, model.opset_import[0].version = draw(number), draw(number)
        else:
            text = draw(
                json_values().map(str) | st.text(max_size=20) | st.sampled_from(["[" * 10**5, "9" * 5000, "x" * 10**6])
            )
            model.metadata_props[draw(st.integers(0, len(model.metadata_props) - 1))].value = text.encode(
                errors="replace"
            )
    return model.SerializePartialToString()


def cases():
    """Mutated bytes, and messages that lie."""
    whole = [model.SerializeToString() for model in samples.onnx_models()]
    door = st.sampled_from(["open", "run", "run", "as a checkpoint"])
    return st.builds(lambda door, data: Case(door, "x.onnx", {"x.onnx": data}), door, mutated(whole) | _altered())
