"""The deploy form as an ONNX graph, and the check of a written file.

    images -- [preprocessing] -- (Conv -- [SE] -- Relu) a block -- pool -- Gemm -- [Softmax] -- logits

The graph is written here, node by node, and not by `mindspore.export`, for four reasons:

- A file names its nodes and weights as the network does; equalisation and INT8 find them by name.
- The operators are known before the file is written, so that a written file can be checked for exactly these.
- Preprocessing, softmax, float16 and dynamic sizes are options of one small function each.
- It needs the package onnx alone: no MindSpore, no device, no tracing of a network.
"""

from __future__ import annotations

import collections
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mindrepvgg.deployment.folding import fold_normalisation
from mindrepvgg.errors import CheckpointError, EquivalenceError, UserError
from mindrepvgg.models.block_kinds import BlockSpec
from mindrepvgg.models.preprocessing import Preprocessing
from mindrepvgg.models.variants import Variant
from mindrepvgg.runtime.optional import import_optional
from mindrepvgg.text import first_line
from mindrepvgg.version import __version__

# Softmax has its present meaning since opset 13. The default is the newest opset that Ascend's ATC documents ("ai.onnx
# opset v11 to v15", CANN 8.0, --framework); later opsets change none of the operators used here.
LEAST_OPSET, DEFAULT_OPSET = 13, 15

INPUT = "images"

# What a file with folded mean and std takes, in the words of its metadata.
FOLDED_INPUT = "float32 NCHW of 0 to 255"
PRECISIONS = ("float32", "float16")

# A protobuf message must stay below 2 GiB.
_MOST_BYTES = 2**31 - 2**20


@dataclass(frozen=True)
class GraphOptions:
    """What an exported file takes and gives, and its precision.

    Attributes:
        batch_size: None for any.
        image_size: (height, width); None for any.
        precision: of weights and arithmetic, one of PRECISIONS; inputs and outputs stay float32.
        float32_blocks: names of blocks that stay in float32 where `precision` is float16.
        preprocess: the file takes uint8 RGB (N, H, W, C) and normalises it with the mean and std given here. None: the
            file takes normalised float32 (N, C, H, W).
        folded: the mean and std that the first convolution holds: the file takes float32 (N, C, H, W) of 0 to 255. It
            needs a fixed batch and image size, and no `preprocess`.
        softmax: whether the file gives probabilities instead of logits.
        opset: ONNX's operator set.
    """

    batch_size: int | None = None
    image_size: tuple[int, int] | None = None
    precision: str = "float32"
    float32_blocks: tuple[str, ...] = ()
    preprocess: Preprocessing | None = None
    folded: Preprocessing | None = None
    softmax: bool = False
    opset: int = DEFAULT_OPSET

    @property
    def output(self) -> str:
        """The output's name: 'logits' or 'probabilities'."""
        return "probabilities" if self.softmax else "logits"

    @property
    def input_type(self) -> str:
        """The input's type: 'float32', or 'uint8' where preprocessing is in the graph."""
        return "uint8" if self.preprocess else "float32"

    @property
    def takes(self) -> str:
        """What the file takes, in the words of its metadata."""
        if self.folded:
            return FOLDED_INPUT
        return "uint8 NHWC" if self.preprocess else "normalised float32 NCHW"

    def precision_of(self, block: str) -> str:
        """The precision of a block, by its name."""
        return "float32" if block in self.float32_blocks else self.precision

    def input_shape(self, channels, batch="batch", height="height", width="width") -> tuple:
        """The input's shape, in the input's own layout; `batch`, `height` and `width` stand for what is dynamic."""
        count = self.batch_size or batch
        size = self.image_size or (height, width)
        return (count, *size, channels) if self.preprocess else (count, channels, *size)


def require_onnx():
    """Check that onnx and onnxruntime can be imported: one writes files, the other runs them.

    Raises:
        UserError: one of them is missing or broken; the message gives the pip command.
    """
    for package in ("onnx", "onnxruntime"):
        import_optional(package, "onnx", "an ONNX file")


def set_metadata(model, metadata: dict):
    """Replace a model's metadata_props by these facts (name -> value), each value as JSON; in place."""
    import onnx

    texts = {key: json.dumps(value, ensure_ascii=False) for key, value in metadata.items()}
    onnx.helper.set_model_props(model, texts)


def check_opset(opset: int):
    """Raise UserError for an opset that cannot be written; the message names the oldest or the newest that can."""
    newest = import_optional("onnx", "onnx", "writing ONNX").defs.onnx_opset_version()
    if opset < LEAST_OPSET:
        raise UserError(f"opset (={opset}) must be at least {LEAST_OPSET}: older ones have another Softmax and Cast")
    if opset > newest:
        raise UserError(f"opset (={opset}) must be at most {newest}, the newest the installed onnx knows")


def build_onnx(
    variant: Variant,
    arrays: Mapping[str, np.ndarray],
    options: GraphOptions = GraphOptions(),
    metadata: dict | None = None,
):
    """Build the ONNX model of a deploy-form network.

    Args:
        variant: the network's layout.
        arrays: name -> array of the deploy form, as `parameters.network_arrays` gives them. Nodes and initializers
            keep these names. A block with a `coarse.weight` beside its weight and bias gets a 1x1 convolution more,
            whose output is added, see `int8.splitting`.
        options: what the file takes and gives.
        metadata: JSON-able facts by name, kept as metadata_props.

    Returns:
        The `onnx.ModelProto`.

    Raises:
        UserError: onnx is missing, the opset cannot be written, float16 cannot hold a weight, or the weights take
            more than 2 GiB.
    """
    onnx = import_optional("onnx", "onnx", "writing ONNX")
    check_opset(options.opset)
    size = sum(array.size for array in arrays.values()) * np.dtype(options.precision).itemsize
    if size > _MOST_BYTES:
        raise UserError(f"the weights take {size / 2**30:.1f} GiB, an ONNX file holds 2 at most; export to .mindir")
    specs = variant.block_specs()
    channels = arrays[f"{specs[0].fused}.weight"].shape[1]
    graph = _Graph(onnx)
    x = _add_preprocessing(graph, channels, options)
    if options.folded:
        x = _add_ones(graph, x, options)
        arrays = {**arrays, **fold_normalisation(arrays, specs[0].fused, options.folded)}
    maps = {}
    for spec in specs:
        x = graph.turn(x, options.precision_of(spec.name), spec.name)
        x = _add_block(graph, x, spec, arrays)
        maps[spec.name.partition(".")[0]] = x, graph.dtype
    elements = onnx.TensorProto.UINT8 if options.preprocess else onnx.TensorProto.FLOAT
    shape = options.input_shape(channels)
    if variant.features:
        shapes = map_shapes(variant, options)
        for name in shapes:
            _add_map(graph, *maps[name], name)
    else:
        shapes = {_add_head(graph, x, arrays, options): [shape[0], len(arrays["linear.bias"])]}
    inputs = [onnx.helper.make_tensor_value_info(INPUT, elements, shape)]
    outputs = [onnx.helper.make_tensor_value_info(x, onnx.TensorProto.FLOAT, size) for x, size in shapes.items()]
    opsets = [onnx.helper.make_opsetid("", options.opset)]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(graph.nodes, variant.name, inputs, outputs, graph.initializers),
        opset_imports=opsets,
        # The oldest that fits the opset: a reader refuses a file with a newer IR version than its own.
        ir_version=onnx.helper.find_min_ir_version_for(opsets),
        producer_name="mindrepvgg",
        producer_version=__version__,
    )
    set_metadata(model, metadata or {})
    return model


class _Graph:
    """Nodes and initializers of a graph; every method that adds a node returns the name of the node's output."""

    def __init__(self, onnx):
        self._onnx = onnx
        self.dtype = np.dtype(np.float32)
        self.nodes = []
        self.initializers = []

    def add(self, operator, inputs, output, **attributes):
        """Add a node named as its output."""
        self.nodes.append(self._onnx.helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name, array):
        """Add an initializer in the graph's present type."""
        dtype = self.dtype
        if dtype == np.float16 and not np.abs(array).max() <= np.finfo(np.float16).max:
            raise UserError(f"{name} holds values that float16 cannot; export in float32, or see --float32_layers")
        self.initializers.append(self._onnx.numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def cast(self, x, output, dtype):
        """Add a Cast."""
        return self.add("Cast", [x], output, to=self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def turn(self, x, precision, name):
        """Go on in another type, with a Cast named after what comes behind it; nothing where it is the present type."""
        if self.dtype == precision:
            return x
        self.dtype = np.dtype(precision)
        return self.cast(x, f"{name}.{precision}", precision)

    def conv(self, x, name, arrays, output, stride=1, groups=1, dilation=1):
        """Add a convolution with PyTorch's padding; arrays: `name`.weight and, where it has a bias, `name`.bias."""
        size = arrays[f"{name}.weight"].shape[-1]
        names = [key for key in (f"{name}.weight", f"{name}.bias") if key in arrays]
        inputs = [x, *(self.constant(key, arrays[key]) for key in names)]
        # All attributes, those that equal ONNX's defaults too: MindSpore Lite refuses a Conv that lacks one.
        attributes = {
            "kernel_shape": [size] * 2,
            "pads": [size // 2 * dilation] * 4,
            "strides": [stride] * 2,
            "dilations": [dilation] * 2,
            "group": groups,
        }
        return self.add("Conv", inputs, output, **attributes)


def _add_preprocessing(graph, channels, options):
    """Add what lies between the file's input and the network's: normalisation.

    Normalisation is a 1x1 convolution of each channel by itself, in float32. Folding it into the first 3x3 convolution
    takes a channel more, see `fold_normalisation`.
    """
    x = INPUT
    if options.preprocess:
        gain, bias = options.preprocess.gain_and_bias()
        x = graph.add("Transpose", [x], "preprocess.nchw", perm=[0, 3, 1, 2])
        x = graph.cast(x, "preprocess.float32", np.float32)
        arrays = {"preprocess.weight": gain[:, None], "preprocess.bias": bias.ravel()}
        x = graph.conv(x, "preprocess", arrays, "preprocess.normalised", groups=channels)
    return x


def _add_ones(graph, x, options):
    """Add the channel of ones that `fold_normalisation` is for; UserError where its size is not known."""
    if not (options.batch_size and options.image_size):
        raise UserError(
            "folding mean and std takes a fixed batch and image size: give --batch_size N and --image_size H,W"
        )
    ones = graph.constant("folded.ones", np.ones((options.batch_size, 1, *options.image_size)))
    return graph.add("Concat", [x, ones], "folded.images", axis=1)


def _add_block(graph, x, spec: BlockSpec, arrays):
    """One block of the deploy form, SE before ('pre') or after ('post') its ReLU."""
    given = x
    x = graph.conv(x, spec.fused, arrays, f"{spec.name}.conv", spec.stride, spec.groups, spec.dilation)
    if (name := f"{spec.fused}.coarse") + ".weight" in arrays:
        coarse = graph.conv(given, name, arrays, f"{spec.name}.coarse", spec.stride, spec.groups)
        x = graph.add("Add", [x, coarse], f"{spec.name}.sum")
    if spec.se == "pre":
        x = _add_squeeze_excite(graph, x, spec.squeeze_excite, arrays)
    x = graph.add("Relu", [x], f"{spec.name}.relu")
    return _add_squeeze_excite(graph, x, spec.squeeze_excite, arrays) if spec.se == "post" else x


def _add_squeeze_excite(graph, x, name, arrays):
    """`x * sigmoid(up(relu(down(mean(x)))))`."""
    pooled = graph.add("GlobalAveragePool", [x], f"{name}.pool")
    squeezed = graph.add("Relu", [graph.conv(pooled, f"{name}.down", arrays, f"{name}.squeezed")], f"{name}.relu")
    excited = graph.add("Sigmoid", [graph.conv(squeezed, f"{name}.up", arrays, f"{name}.excited")], f"{name}.sigmoid")
    return graph.add("Mul", [x, excited], name)


def map_shapes(variant: Variant, options: GraphOptions) -> dict[str, list]:
    """The outputs of a features network's file, in their order: name -> (N, C, H, W); what is dynamic has a name.

    They are called as the stages that they come from.
    """
    batch, shapes = options.input_shape(0)[0], {}
    for info in variant.feature_info:
        name, reduction = info["name"], info["reduction"]
        size = [f"{name}_height", f"{name}_width"]
        if options.image_size:
            size = [-(-side // reduction) for side in options.image_size]
        shapes[name] = [batch, info["channels"], *size]
    return shapes


def _ends(variant):
    """The last block of each stage that gives a map, by name."""
    last = {spec.name.partition(".")[0]: spec.name for spec in variant.block_specs()}
    return [last[info["name"]] for info in variant.feature_info]


def _add_map(graph, x, dtype, name):
    """Give a map of this type the name of an output, in float32."""
    if dtype == np.float16:
        graph.cast(x, name, np.float32)
    else:
        graph.add("Identity", [x], name)


def _add_head(graph, x, arrays, options):
    """Add pooling, the linear layer, and a softmax if asked for; returns the name of the file's output."""
    # A ReduceMean would need no Flatten, and is a few per cent slower: onnxruntime leaves its blocked layout before it.
    x = graph.turn(x, options.precision, "pool")
    x = graph.add("Flatten", [graph.add("GlobalAveragePool", [x], "pool")], "pool.flat", axis=1)
    weights = [graph.constant(f"linear.{leaf}", arrays[f"linear.{leaf}"]) for leaf in ("weight", "bias")]
    half = options.precision == "float16"
    x = graph.add("Gemm", [x, *weights], "linear" if half or options.softmax else options.output, transB=1)
    if half:
        x = graph.cast(x, "linear.float32" if options.softmax else options.output, np.float32)
    return graph.add("Softmax", [x], options.output, axis=1) if options.softmax else x


def expected_operators(variant: Variant, options: GraphOptions) -> dict[str, int]:
    """Return operator -> how many of it a deploy-form file holds."""
    specs = variant.block_specs()
    blocks, excited = len(specs), sum(spec.se is not None for spec in specs)
    preprocess, half = options.preprocess is not None, options.precision == "float16"
    heads = 0 if variant.features else 1
    maps = [options.precision_of(name) for name in _ends(variant)] if variant.features else []
    types = ["float32", *(options.precision_of(spec.name) for spec in specs), *[options.precision] * heads]
    turns = sum(one != other for one, other in itertools.pairwise(types))
    counts = {
        "Conv": blocks + 2 * excited + preprocess,
        "Relu": blocks + excited,
        **dict.fromkeys(("Sigmoid", "Mul"), excited),
        "GlobalAveragePool": excited + heads,
        **dict.fromkeys(("Flatten", "Gemm"), heads),
        "Concat": int(options.folded is not None),
        "Identity": maps.count("float32"),
        "Transpose": int(preprocess),
        "Cast": preprocess + turns + maps.count("float16") + heads * half,
        "Softmax": int(options.softmax),
    }
    return {operator: count for operator, count in counts.items() if count}


def check_operators(model, variant: Variant, options: GraphOptions) -> dict[str, int]:
    """Check that a model holds the operators of the deploy form and no others, as a BN or an addition of branches.

    Args:
        model: an `onnx.ModelProto`.
        variant: the network's layout.
        options: what the file takes and gives.

    Returns:
        Operator -> how many of it the model holds.

    Raises:
        EquivalenceError: the operators differ; its report is the counts.
    """
    found = dict(collections.Counter(node.op_type for node in model.graph.node))
    expected = expected_operators(variant, options)
    wrong = [
        f"{found.get(operator, 0)} {operator} instead of {expected.get(operator, 0)}"
        for operator in sorted(found.keys() | expected.keys())
        if found.get(operator, 0) != expected.get(operator, 0)
    ]
    if wrong:
        raise EquivalenceError(f"the graph is not the deploy form of {variant.name}: it has {', '.join(wrong)}", found)
    return found


def check_onnx_file(path, variant: Variant, options: GraphOptions) -> dict[str, int]:
    """Check a written file with ONNX's own checker and strict shape inference, then count its operators.

    Args:
        path: the file.
        variant: the network's layout.
        options: what the file takes and gives.

    Returns:
        Operator -> how many of it the file holds.

    Raises:
        CheckpointError: the file is not valid ONNX.
        EquivalenceError: the file does not hold the deploy form, see `check_operators`.
    """
    onnx = import_optional("onnx", "onnx", "reading ONNX")
    model = onnx.load(str(path))
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CheckpointError(f"{path} is not valid ONNX: {first_line(error)}") from None
    return check_operators(model, variant, options)
