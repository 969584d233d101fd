"""An ONNX file, or a network in memory, run by onnxruntime as a function of arrays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from mindrepvgg.deployment.graph import GraphOptions, build_onnx, require_onnx
from mindrepvgg.errors import CheckpointError, UserError
from mindrepvgg.files import open_regular
from mindrepvgg.models.parameters import network_arrays
from mindrepvgg.models.preprocessing import DESCRIBED_KEYS
from mindrepvgg.models.variants import DEPLOY
from mindrepvgg.reparam.deploy import to_deploy
from mindrepvgg.runtime.optional import import_optional
from mindrepvgg.text import counted, first_line, quoted
from mindrepvgg.version import __version__
from mindrepvgg.weights.description import Description

_LARGEST_FILE = 1 << 31  # bytes; a protobuf message has less

# Of an exported file's metadata, those that a checkpoint's description has under the same name.
_DESCRIBED = (
    *("model", "model_args", "features", "form", "num_classes", "in_channels"),
    *("class_names", "dataset", "image_size"),
)

# ONNX's types as onnxruntime names them.
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


class OnnxEngine:
    """A callable network, run by onnxruntime on CPU: images (N, C, H, W) float32 array -> logits (N, classes) array.

    A file of a features network gives a tuple of arrays, its maps.
    A file with preprocessing inside takes uint8 (N, H, W, C). A file with a fixed batch takes any number of images,
    and runs them in batches of its size. Several threads may call an engine at once.

    Args:
        model: an ONNX file's path or content.
        num_threads: threads of one call; None leaves the choice to onnxruntime, which takes the physical cores.

    Attributes:
        metadata: what the file says of itself (see `export.facts_of`); empty for a file of another program.
        batch_size, image_size (height, width), num_classes: None where the file leaves them open.

    Raises:
        UserError: onnxruntime is missing.
        CheckpointError: there is no such file, it is not ONNX, it is not a network of images, or its metadata cannot be
            used or are another network's.
    """

    def __init__(self, model, num_threads: int | None = None):
        ort = import_optional("onnxruntime", "onnx", "running an ONNX file")
        in_memory = isinstance(model, (bytes, bytearray))
        self.path = None if in_memory else Path(model)
        self._name = str(self.path or "the model")
        if self.path is not None:
            open_regular(self.path, "an ONNX file", CheckpointError, _LARGEST_FILE).close()
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors only; they are raised as well
        # Threads that wait shall sleep. Spinning threads take the processor from the machine's other work, and on a
        # busy machine from the thread they wait for.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if num_threads is not None:
            options.intra_op_num_threads = num_threads
        try:
            source = bytes(model) if in_memory else str(self.path)
            self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common base
            reason = first_line(error)
            raise CheckpointError(f"{self._name} cannot be run by onnxruntime {ort.__version__}: {reason}") from None
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self.metadata = self._read_metadata()
        self.gives_maps = self.metadata.get("features") is not None
        takes_images = len(inputs) == 1 and len(inputs[0].shape) == 4 and inputs[0].type in _TYPES
        # A damaged file may have an axis of no length, as no batch of images has.
        if not takes_images or 0 in inputs[0].shape or not (len(outputs) == 1 or self.gives_maps):
            raise CheckpointError(
                f"{self._name} has {counted(len(inputs), 'input')} and {counted(len(outputs), 'output')}, the first of "
                f"shape {inputs[0].shape if inputs else None}; expected one batch of images in and one array out"
            )
        self._input, self._dtype = inputs[0].name, np.dtype(_TYPES[inputs[0].type])
        self._shape = [size if isinstance(size, int) else None for size in inputs[0].shape]
        self.preprocesses = self._dtype == np.uint8
        self.batch_size, *rest = self._shape
        height, width = rest[:2] if self.preprocesses else rest[1:]
        self.image_size = (height, width) if height and width else None
        last = outputs[0].shape[-1] if outputs[0].shape else None
        self.num_classes = last if isinstance(last, int) and not self.gives_maps else None
        if self.metadata:
            self._check_metadata()

    def _read_metadata(self):
        """What a file of this package says of itself."""
        try:
            texts = self._session.get_modelmeta().custom_metadata_map
        except UnicodeDecodeError:
            raise CheckpointError(f"{self._name} is damaged: its metadata are not UTF-8; get a fresh copy") from None
        return {key: _from_json(text) for key, text in texts.items()} if "mindrepvgg" in texts else {}

    def _check_metadata(self):
        """Raise CheckpointError where the metadata cannot be used, or the graph is another network's."""
        told = {key: self.metadata[key] for key in _DESCRIBED if key in self.metadata}
        told["preprocessing"] = {key: self.metadata[key] for key in DESCRIBED_KEYS if key in self.metadata}
        told["versions"] = {"mindrepvgg": self.metadata["mindrepvgg"]}
        Description.read(told, self._name)
        channels = self._shape[3 if self.preprocesses else 1]
        size = self.image_size and list(self.image_size)
        for key, has in (("num_classes", self.num_classes), ("in_channels", channels), ("image_size", size)):
            if has is not None and told.get(key, has) != has:
                raise CheckpointError(
                    f"{self._name} is not described rightly: its metadata say {key} {quoted(told[key])}, its graph "
                    f"has {has}; get a fresh copy"
                )

    def __call__(self, images):
        """Compute logits (N, classes), or the probabilities of a file that has a softmax.

        Args:
            images: an array of the shape and type that the file takes.

        Raises:
            UserError: the images have another shape, or the file's operators do not fit together.
        """
        images = np.asarray(images)
        expected = (None, *self._shape[1:])
        fits = images.ndim == 4 and all(size in (None, has) for size, has in zip(expected, images.shape, strict=True))
        if not fits or 0 in images.shape or (self.preprocesses and images.dtype != np.uint8):
            wanted = ", ".join("any" if size is None else str(size) for size in expected)
            raise UserError(f"{self._name} takes {self._dtype} ({wanted}), not {images.dtype} {images.shape}")
        images = np.ascontiguousarray(images, self._dtype)
        if self.batch_size in (None, len(images)):
            return self._run(images)
        size = self.batch_size
        missing = -len(images) % size
        padded = np.concatenate([images, np.zeros((missing, *images.shape[1:]), self._dtype)]) if missing else images
        parts = [self._run(padded[start : start + size]) for start in range(0, len(padded), size)]
        if self.gives_maps:
            return tuple(np.concatenate(maps)[: len(images)] for maps in zip(*parts, strict=True))
        return np.concatenate(parts)[: len(images)]

    def _run(self, images):
        try:
            found = self._session.run(None, {self._input: images})
            return tuple(found) if self.gives_maps else found[0]
        except Exception as error:  # onnxruntime's errors have no common base
            raise CheckpointError(f"{self._name} cannot compute {images.shape}: {first_line(error)}") from None

    def require(self, *keys):
        """Return the metadata under these keys, in their order; raise CheckpointError where the file lacks one."""
        missing = [key for key in keys if key not in self.metadata]
        if missing:
            lacks = f"{self._name} does not tell its {', '.join(missing)}"
            if self.metadata:
                raise CheckpointError(f"{lacks}, nor did {self.metadata.get('checkpoint')}, which it was exported from")
            raise CheckpointError(f"{lacks}: another program wrote it; mindrepvgg export makes a file that does")
        return [self.metadata[key] for key in keys]


def _from_json(text):
    """Return a metadata value; text that is not JSON, which another program wrote, as it is."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def network_facts(net) -> dict:
    """Return what a network says of itself, for the metadata of an exported file: plain types by name."""
    facts = {
        "mindrepvgg": __version__,
        "model": net.variant.name,
        **({"model_args": net.variant.model_args} if net.variant.model_args else {}),
        "form": DEPLOY,
        **({"features": net.variant.features.to_dict()} if net.variant.features else {"num_classes": net.num_classes}),
        "in_channels": net.in_channels,
    }
    return {**facts, **{key: net.metadata[key] for key in ("class_names", "dataset") if key in net.metadata}}


def engine_of(net, num_threads: int | None = None, precision: str = "float32") -> OnnxEngine:
    """Make an engine of a MindSpore network, in memory, for any batch and image size.

    Args:
        net: in either form; a train-form network is fused in a copy.
        num_threads: see `OnnxEngine`.
        precision: see `GraphOptions`.

    Raises:
        UserError: onnx or onnxruntime is missing.
    """
    require_onnx()
    layout = net.variant.deploy_layout("onnxruntime", "take the engine mindspore")
    deployed = net if net.deploy else to_deploy(net)
    options = GraphOptions(precision=precision)
    facts = {**network_facts(net), "model": layout.name}
    model = build_onnx(layout, network_arrays(deployed), options, facts)
    return OnnxEngine(model.SerializeToString(), num_threads)
