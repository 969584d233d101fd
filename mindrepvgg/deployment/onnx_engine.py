"""An ONNX file, or one in memory, run by onnxruntime as a function of arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mindrepvgg.deployment.engine_base import LARGEST_FILE, ONNXRUNTIME, Engine, read_metadata
from mindrepvgg.errors import CheckpointError
from mindrepvgg.files import open_regular
from mindrepvgg.runtime.optional import import_optional
from mindrepvgg.text import first_line

# ONNX's types as onnxruntime names them.
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


class OnnxEngine(Engine):
    """A callable network, run by onnxruntime on CPU; see `Engine` for what it takes and gives.

    Args:
        model: an ONNX file's path or content.
        num_threads: threads of one call; None leaves the choice to onnxruntime, which takes the physical cores.

    Raises:
        UserError: onnxruntime is missing.
        CheckpointError: there is no such file, it is not ONNX, it is not a network of images, or its metadata cannot be
            used or are another network's.
    """

    kind = ONNXRUNTIME

    def __init__(self, model, num_threads: int | None = None):
        ort = import_optional("onnxruntime", "onnx", "running an ONNX file")
        in_memory = isinstance(model, (bytes, bytearray))
        super().__init__(None if in_memory else Path(model))
        if self.path is not None:
            open_regular(self.path, "an ONNX file", CheckpointError, LARGEST_FILE).close()
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
            raise CheckpointError(f"{self.name} cannot be run by onnxruntime {ort.__version__}: {reason}") from None
        try:
            metadata = read_metadata(self._session.get_modelmeta().custom_metadata_map)
        except UnicodeDecodeError:
            raise CheckpointError(f"{self.name} is damaged: its metadata are not UTF-8; get a fresh copy") from None
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        first = inputs[0] if inputs else None
        self._input = first and first.name
        self._describe(
            _sizes(first.shape) if first else (),
            _TYPES.get(first.type) if first else None,
            [_sizes(output.shape) for output in outputs],
            metadata,
            len(inputs),
        )

    def _compute(self, images):
        return self._session.run(None, {self._input: images})


def _sizes(shape):
    """A shape with None for the axes that have a name in place of a size."""
    return tuple(size if isinstance(size, int) else None for size in shape)
