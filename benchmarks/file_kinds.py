"""Every kind of exported file under every engine: does it run, how exact is it, and does it give the same classes.

The truth is the train form of the same weights in PyTorch, in float64, on the same pictures. A cell holds the largest
difference over the largest logit, and the share of pictures that get the same class; or why nothing ran.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from trained import trained

from mindrepvgg import api
from mindrepvgg.deployment.engine import RUNS, open_engine
from mindrepvgg.deployment.engine_base import MINDSPORE, ONNXRUNTIME, OPENVINO
from mindrepvgg.deployment.int8.grids import IntegerOptions
from mindrepvgg.deployment.int8.integers import Quantizer, layer_nodes
from mindrepvgg.deployment.pictures import Pictures
from mindrepvgg.errors import EquivalenceError, UserError
from mindrepvgg.measure.torch_network import torch_network
from mindrepvgg.models.parameters import network_arrays
from mindrepvgg.models.repvgg import build
from mindrepvgg.models.shapes import parameter_shapes
from mindrepvgg.models.synthetic import parameter_values
from mindrepvgg.models.variants import TRAIN, find
from mindrepvgg.recipe.sources import load_recipe
from mindrepvgg.reparam.compare import difference
from mindrepvgg.runtime import device
from mindrepvgg.runtime.environment import processor
from mindrepvgg.text import first_line, markdown_table
from mindrepvgg.weights.checkpoint import load_checkpoint, save_checkpoint

NETWORKS = ("repvgg_a0", "repvgg_a1", "repvgg_d2se", "repvgg_b1g4")
_ENGINES = ((ONNXRUNTIME, "float32"), (OPENVINO, "float32"), (OPENVINO, "bfloat16"), (MINDSPORE, "float32"))

# Files that nothing on a machine with a CPU alone runs.
_ELSEWHERE = (
    (".ms", "MindSpore Lite's converter makes it of the ONNX file; the section on MindSpore Lite has a run of it"),
    (".om", "ATC makes it of the ONNX file, on a machine with CANN"),
    (".plan", "trtexec makes it of the ONNX file, on a machine with a GPU"),
)


class Kind(NamedTuple):
    """A kind of file: its suffix, the options of `export` that make it, and what makes it of a file in float32."""

    suffix: str = ".onnx"
    options: Mapping = MappingProxyType({})
    made_of: Callable | None = None


def as_int8(source, destination, net, images):
    """Write an INT8 file of a float one, with every layer in INT8."""
    options = IntegerOptions("minmax", 99.99, True, 8)
    layers = layer_nodes(net.variant.deploy_layout("INT8"), "logits")
    quantizer = Quantizer(source, layers, [images], options)
    quantizer.write(destination, layers)


def _as_ir(source, destination, net, images):
    import openvino

    openvino.save_model(openvino.Core().read_model(source), str(destination), compress_to_fp16=False)


KINDS = {
    "ONNX, any batch and size": Kind(options={"image_size": "dynamic"}),
    "ONNX, batches of 8": Kind(options={"batch_size": 8}),
    "ONNX, pixels in": Kind(options={"preprocess": True}),
    "ONNX, float16": Kind(options={"precision": "float16"}),
    "ONNX, INT8": Kind(made_of=as_int8),
    "OpenVINO's IR": Kind(".xml", made_of=_as_ir),
    "MindIR": Kind(".mindir"),
    "MindIR, pixels in, batches of 8": Kind(".mindir", {"preprocess": True, "batch_size": 8}),
}


def measure(recipe_path, networks=NETWORKS) -> str:
    """Return a markdown table with a row for each network and kind of file, and a column for each engine.

    Args:
        recipe_path: a recipe, whose trained network takes part too.
        networks: names of the family; their weights and BN statistics are random.
    """
    device.setup("CPU", seed=0)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, checkpoint in checkpoints(recipe_path, networks, folder):
            rows += _rows(name, checkpoint, folder)
    engines = [engine if precision == "float32" else f"{engine}, {precision}" for engine, precision in _ENGINES]
    elsewhere = "\n".join(f"- `{suffix}` was not run: {reason}." for suffix, reason in _ELSEWHERE)
    return (
        f"The largest difference from float64 over the largest logit, and the share of pictures of the same class; "
        f"{processor()}:\n\n{markdown_table(('network', 'file', *engines), rows)}\n\n{elsewhere}"
    )


def checkpoints(recipe_path, networks, folder) -> Iterator[tuple[str, Path]]:
    """Names and checkpoints: a recipe's trained network, and those of the family with random weights, in a folder."""
    recipe = load_recipe(str(recipe_path))
    yield f"{recipe.model}, trained", trained(recipe)
    for name in networks:
        variant = find(name)
        path = Path(folder, f"{name}.ckpt")
        save_checkpoint(build(variant, arrays=parameter_values(parameter_shapes(variant, TRAIN))), path)
        yield name, path


def _rows(name, checkpoint, folder):
    net = load_checkpoint(checkpoint)
    pictures = Pictures(net, {})
    images = pictures.normalised(pictures.pixels)
    truth = truth_of(net, images)
    plain = Path(folder, "plain.onnx")
    api.export(checkpoint, plain)
    for title, kind in KINDS.items():
        path = Path(folder, f"made{kind.suffix}")
        try:
            if kind.made_of:
                kind.made_of(plain, path, net, images)
            else:
                api.export(checkpoint, path, **kind.options)
        except (EquivalenceError, UserError) as error:  # a file that is not exact enough is not written
            cells = [first_line(error).removeprefix(f"{path} was ")] * len(_ENGINES)
        else:
            cells = [_cell(path, engine, pictures, images, truth) for engine in _ENGINES]
        yield name, title, *cells


def truth_of(net, images):
    """The logits of normalised images (N, C, H, W) in float64: the branches in PyTorch."""
    import torch

    twin = torch_network(net.variant, network_arrays(net)).double()
    with torch.inference_mode():
        return twin(torch.from_numpy(images).double()).numpy()


def _cell(path, engine, pictures, images, truth):
    kind, precision = engine
    if kind not in RUNS[path.suffix]:
        return f"reads no {path.suffix}"
    try:
        opened = open_engine(path, kind, precision=precision)
        found = opened(pictures.pixels if opened.preprocesses else images)
    except UserError as error:
        return first_line(error)
    _, relative = difference(found.astype(np.float64), truth)
    return f"{relative:.1e}, {100 * np.mean(found.argmax(1) == truth.argmax(1)):.0f} %"
