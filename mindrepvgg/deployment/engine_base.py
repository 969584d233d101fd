"""What the engines share: an exported file, or a network in memory, as a function of arrays that knows its network."""

from __future__ import annotations

import abc
import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from mindrepvgg.deployment.folding import folded_input
from mindrepvgg.deployment.graph import FOLDED_INPUT
from mindrepvgg.errors import CheckpointError, UserError
from mindrepvgg.models.preprocessing import DESCRIBED_KEYS
from mindrepvgg.text import counted, first_line, quoted
from mindrepvgg.weights.description import Description

LARGEST_FILE = 1 << 31  # bytes; a protobuf message has less

MINDSPORE, ONNXRUNTIME, OPENVINO = ENGINES = ("mindspore", "onnxruntime", "openvino")

# Of an exported file's metadata, those that a checkpoint's description has under the same name.
_DESCRIBED = (
    *("model", "model_args", "features", "form", "num_classes", "in_channels"),
    *("class_names", "dataset", "image_size"),
)


class Engine(abc.ABC):
    """A callable network: images (N, C, H, W) float32 array -> logits (N, classes) array.

    A file of a features network gives a tuple of arrays, its maps. A file with preprocessing inside takes uint8
    (N, H, W, C). So does a file with folded mean and std: the engine makes float32 (N, C, H, W) of 0 to 255 of them, as
    the file has it. A file with a fixed batch takes any number of images, and runs them in batches of its size. Several
    threads may call an engine at once.

    A subclass opens the model, calls `_describe`, and has `_compute`.

    Attributes:
        kind: one of ENGINES.
        path: the file; None for a model in memory.
        metadata: what the file says of itself (see `export.facts_of`); empty for a file of another program.
        description: the same as a checkpoint's description; None where the metadata are empty.
        preprocesses: whether the images are uint8 (N, H, W, C).
        gives_maps: whether it is a features network's.
        batch_size, image_size (height, width), in_channels, num_classes: None where the file leaves them open.
    """

    kind: ClassVar[str]

    def __init__(self, path: Path | None):
        self.path = path
        self.name = str(path or "the model")

    def _describe(self, shape: tuple, dtype, outputs: list[tuple], metadata: Mapping, num_inputs: int = 1):
        """Set what the attributes tell.

        Args:
            shape: of the first input; None where an axis is open.
            dtype: of the first input, as NumPy has it; None for another type than an engine feeds.
            outputs: the shape of each.
            metadata: what the file says of itself.
            num_inputs: how many inputs there are.

        Raises:
            CheckpointError: it is not a network of images, or the metadata cannot be used or are another network's.
        """
        self.metadata = dict(metadata)
        self.description: Description | None = None
        self.gives_maps = self.metadata.get("features") is not None
        takes_images = num_inputs == 1 and len(shape) == 4 and dtype is not None
        # A damaged file may have an axis of no length, as no batch of images has.
        if not takes_images or 0 in shape or not (len(outputs) == 1 or self.gives_maps):
            raise CheckpointError(
                f"{self.name} has {counted(num_inputs, 'input')} and {counted(len(outputs), 'output')}, the first of "
                f"shape {list(shape)}; expected one batch of images in and one array out"
            )
        self._shape, self._dtype = shape, np.dtype(dtype)
        self._folded = self.metadata.get("input") == FOLDED_INPUT
        if self._folded:
            self._shape, self._dtype = (shape[0], *shape[2:], shape[1]), np.dtype(np.uint8)
        self.preprocesses = self._dtype == np.uint8
        self.batch_size, *rest = self._shape
        height, width = rest[:2] if self.preprocesses else rest[1:]
        self.image_size = (height, width) if height and width else None
        self.in_channels = self._shape[3 if self.preprocesses else 1]
        self.num_classes = outputs[0][-1] if outputs[0] and not self.gives_maps else None
        if self.metadata:
            self._check_metadata()

    def _check_metadata(self):
        """Raise CheckpointError where the metadata cannot be used, or the graph is another network's."""
        told = {key: self.metadata[key] for key in _DESCRIBED if key in self.metadata}
        told["preprocessing"] = {key: self.metadata[key] for key in DESCRIBED_KEYS if key in self.metadata}
        told["versions"] = {"mindrepvgg": self.metadata["mindrepvgg"]}
        self.description = Description.read(told, self.name)
        size = self.image_size and list(self.image_size)
        graph = {"num_classes": self.num_classes, "in_channels": self.in_channels, "image_size": size}
        for key, has in graph.items():
            if has is not None and told.get(key, has) != has:
                raise CheckpointError(
                    f"{self.name} is not described rightly: its metadata say {key} {quoted(told[key])}, its graph "
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
            raise UserError(f"{self.name} takes {self._dtype} ({wanted}), not {images.dtype} {images.shape}")
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
        if self._folded:
            images = folded_input(images)
        try:
            found = self._compute(images)
        except Exception as error:  # the engines' errors have no common base
            raise CheckpointError(f"{self.name} cannot compute {images.shape}: {self._reason(error)}") from None
        return tuple(found) if self.gives_maps else found[0]

    @staticmethod
    def _reason(error) -> str:
        """What the engine's error says, on one line."""
        return first_line(error)

    @abc.abstractmethod
    def _compute(self, images) -> list:
        """The outputs for images of the file's own shape and type; several threads may call it at once."""

    def require(self, *keys):
        """Return the metadata under these keys, in their order; raise CheckpointError where the file lacks one."""
        missing = [key for key in keys if key not in self.metadata]
        if missing:
            lacks = f"{self.name} does not tell its {', '.join(missing)}"
            if self.metadata:
                raise CheckpointError(f"{lacks}, nor did {self.metadata.get('checkpoint')}, which it was exported from")
            raise CheckpointError(f"{lacks}: another program wrote it; mindrepvgg export makes a file that does")
        return [self.metadata[key] for key in keys]


def read_metadata(texts: Mapping[str, str]) -> dict:
    """What a file of this package says of itself, from its texts by name; empty for another program's."""
    return {key: _from_json(text) for key, text in texts.items()} if "mindrepvgg" in texts else {}


def _from_json(text):
    """Return a metadata value; text that is not JSON, which another program wrote, as it is."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
