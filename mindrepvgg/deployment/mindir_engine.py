"""A MindIR file, run by MindSpore as a function of arrays."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path

import mindspore as ms
import numpy as np
from google.protobuf.message import DecodeError
from mindspore import Tensor, nn
from mindspore.train.mind_ir_pb2 import ModelProto, TensorProto

from mindrepvgg.deployment.engine_base import LARGEST_FILE, MINDSPORE, Engine
from mindrepvgg.errors import CheckpointError
from mindrepvgg.files import MEGABYTE, read_regular
from mindrepvgg.text import first_line

_TYPES = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16, TensorProto.UINT8: np.uint8}


class MindIREngine(Engine):
    """A callable network, run by MindSpore on the device in use; see `Engine` for what it takes and gives.

    Calls from several threads are computed one after the other.

    Args:
        path: a `.mindir` file. What it says of itself lies beside it, under its name with `.json` behind it; without
            that the metadata are empty.

    Raises:
        CheckpointError: there is no such file, it is not MindIR, it is not a network of images, or its metadata cannot
            be used, or are of another file or another network.
    """

    kind = MINDSPORE

    def __init__(self, path):
        super().__init__(Path(path))
        content = read_regular(self.path, "a MindIR file", CheckpointError, LARGEST_FILE)
        try:
            graph = ModelProto.FromString(content).graph
        except (DecodeError, ValueError):  # ValueError: a name that is no UTF-8
            raise CheckpointError(f"{self.name} is not MindIR, or damaged; get a fresh copy") from None
        first = graph.input[0].tensor[0] if graph.input and graph.input[0].tensor else None
        self._describe(
            _sizes(first) if first else (),
            _TYPES.get(first.data_type) if first else None,
            [_sizes(output.tensor[0]) if output.tensor else () for output in graph.output],
            self._read_metadata(content),
            len(graph.input),
        )
        try:
            self._graph = nn.GraphCell(ms.load(str(self.path)))
        except Exception as error:  # MindSpore raises errors of many kinds
            raise CheckpointError(f"MindSpore {ms.__version__} cannot load {self.name}: {first_line(error)}") from None
        self._lock = threading.Lock()

    def _read_metadata(self, content):
        """What lies beside the file, if it is of this file; empty where nothing does."""
        beside = Path(f"{self.path}.json")
        if not beside.exists():
            return {}
        try:
            facts = json.loads(read_regular(beside, "a MindIR file's description", CheckpointError, MEGABYTE))
        except (ValueError, RecursionError):
            facts = None
        if not isinstance(facts, dict) or "mindrepvgg" not in facts:
            raise CheckpointError(f"{beside} is not what mindrepvgg export wrote; get a fresh copy, or remove it")
        if facts.get("file_sha256") != hashlib.sha256(content).hexdigest():
            raise CheckpointError(
                f"{beside} describes another file than {self.name} (file_sha256); get a fresh copy of both"
            )
        return facts

    def _compute(self, images):
        with self._lock:
            found = self._graph(Tensor(images))
            return [one.asnumpy() for one in (found if isinstance(found, tuple) else (found,))]


def _sizes(tensor):
    """A tensor's shape, with None for the axes that are open."""
    return tuple(None if size < 0 else int(size) for size in tensor.dims)
