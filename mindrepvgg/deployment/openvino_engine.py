"""An ONNX file, one in memory, or an OpenVINO IR, run by OpenVINO as a function of arrays.

Two things make OpenVINO compute something else than was asked for, or slowly, without a word:

- On CPUs with AVX512-BF16 or AMX its default precision is bfloat16, for float32 files too. Here float32 is asked for,
  and bfloat16 by name only; the compiled model is asked what it was given.
- Its oneDNN heeds `ONEDNN_MAX_CPU_ISA`, which this package sets for MindSpore's. It reads the variable once, when the
  first model is compiled; in that moment it is taken away.
"""

from __future__ import annotations

import functools
import queue
import threading
from pathlib import Path
from typing import Any

import numpy as np

from mindrepvgg.deployment.engine_base import LARGEST_FILE, OPENVINO, Engine, read_metadata
from mindrepvgg.errors import CheckpointError, UserError
from mindrepvgg.files import open_regular
from mindrepvgg.runtime.environment import without_isa_cap
from mindrepvgg.runtime.optional import import_optional
from mindrepvgg.text import first_line, printable, quoted

# What this package calls a precision: what OpenVINO calls it, and the capability of a CPU that has it.
_PRECISIONS = {"float32": ("f32", "FP32"), "bfloat16": ("bf16", "BF16")}
_TYPES = {"f32": np.float32, "f16": np.float16, "u8": np.uint8}
_LARGEST_OPSET = 1000  # of today's 26
_METADATA = "framework"  # where OpenVINO keeps the metadata of the ONNX file that a model was made from

_compiling = threading.Lock()  # the environment is the process's


class OpenVinoEngine(Engine):
    """A callable network, run by OpenVINO on the CPU; see `Engine` for what it takes and gives.

    Args:
        model: the path of an ONNX file or of an IR's `.xml`, whose `.bin` lies beside it; or an ONNX file's content.
        num_threads: threads of all calls together; None leaves the choice to OpenVINO, which takes the physical cores.
        precision: of the arithmetic, "float32" or "bfloat16"; INT8 layers stay INT8 in both.
        num_streams: calls that compute at the same time, each with its share of the threads. It helps where several
            threads call the engine.

    Attributes:
        precision: as given.

    Raises:
        UserError: OpenVINO is missing, or the CPU has no such precision.
        CheckpointError: there is no such file, OpenVINO does not read it, it is not a network of images, or its
            metadata cannot be used or are another network's.
    """

    kind = OPENVINO

    def __init__(self, model, num_threads: int | None = None, precision: str = "float32", num_streams: int = 1):
        openvino = import_optional("openvino", "openvino", "the engine openvino")
        if precision not in _PRECISIONS:
            raise UserError(f"precision (={quoted(precision)}) of the engine openvino must be float32 or bfloat16")
        in_memory = isinstance(model, (bytes, bytearray))
        super().__init__(None if in_memory else Path(model))
        self.precision = precision
        if self.path is not None:
            _check_files(self.path)
        if self.path is None or self.path.suffix != ".xml":
            _check_onnx(model, self.name)
        hint, capability = _PRECISIONS[precision]
        options = {"INFERENCE_PRECISION_HINT": hint, "NUM_STREAMS": num_streams}
        if num_threads is not None:
            options["INFERENCE_NUM_THREADS"] = num_threads
        try:
            with _compiling, without_isa_cap():
                core = _core()
                able = capability in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
                read = core.read_model(bytes(model) if in_memory else str(self.path))
                self._compiled: Any = core.compile_model(read, "CPU", options) if able else None
        except Exception as error:  # its errors are RuntimeErrors of all kinds
            raise CheckpointError(
                f"{self.name} cannot be run by OpenVINO {openvino.__version__}: {self._reason(error)}"
            ) from None
        if self._compiled is None:
            raise UserError(f"this CPU has no {precision}, says OpenVINO; leave out the precision for float32")
        given = self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if given != hint:
            raise UserError(
                f"OpenVINO was asked for {precision} and computes {self.name} in {given}; give another engine"
            )
        # A request computes one call at a time; they are made as they are needed, and used again.
        self._requests: queue.LifoQueue = queue.LifoQueue()
        inputs, outputs = self._compiled.inputs, self._compiled.outputs
        first = inputs[0] if inputs else None
        self._describe(
            _sizes(first) if first else (),
            _TYPES.get(_type_of(first)) if first else None,
            [_sizes(output) for output in outputs],
            _metadata_of(read, self.name),
            len(inputs),
        )

    @staticmethod
    def _reason(error):
        """The line that says what is wrong; those before it name OpenVINO's own source files."""
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        told = [line for line in lines if not line.startswith(("Exception", "Check '", "FrontEnd"))]
        return printable(told[0] if told else first_line(error), 200)

    def _compute(self, images):
        try:
            request = self._requests.get_nowait()
        except queue.Empty:
            request = self._compiled.create_infer_request()
        found = request.infer([images], share_inputs=True)
        arrays = [np.array(found[output]) for output in self._compiled.outputs]
        self._requests.put(request)
        return arrays


def _check_files(path: Path):
    """Raise CheckpointError for a file that is not there or too large, and for an IR without its weights."""
    if path.suffix == ".xml":
        open_regular(path, "an OpenVINO IR", CheckpointError, LARGEST_FILE).close()
        open_regular(path.with_suffix(".bin"), f"the weights of {path}", CheckpointError).close()
    else:
        open_regular(path, "an ONNX file", CheckpointError, LARGEST_FILE).close()


def _check_onnx(model, name):
    """Raise CheckpointError for what is not valid ONNX: OpenVINO crashes on some, and hangs on an opset of billions.

    ONNX's own checker does not see every lie of a file.
    """
    onnx = import_optional("onnx", "openvino", "an ONNX file under openvino")
    try:
        if isinstance(model, (bytes, bytearray)):
            read = onnx.load_model_from_string(bytes(model))
        else:
            read = onnx.load(str(model), load_external_data=False)
        onnx.checker.check_model(read)
    except UnicodeDecodeError:
        raise CheckpointError(f"{name} is damaged: its names or metadata are not UTF-8; get a fresh copy") from None
    except Exception as error:  # protobuf's, the checker's, or a ValueError
        raise CheckpointError(f"{name} cannot be run by OpenVINO: it is not valid ONNX: {first_line(error)}") from None
    opset = max(entry.version for entry in read.opset_import)
    if opset > _LARGEST_OPSET:
        raise CheckpointError(f"{name} cannot be run by OpenVINO: it says that its opset is {opset}; get a fresh copy")


@functools.cache
def _core():
    """OpenVINO's one entry, which keeps what it has learnt of the CPU."""
    import openvino

    return openvino.Core()


def _metadata_of(model, name) -> dict:
    """What a file of this package says of itself; OpenVINO keeps the metadata of the ONNX file in its IR too."""
    if not model.has_rt_info(_METADATA):
        return {}
    try:
        found = model.get_rt_info(_METADATA).value
    except UnicodeDecodeError:
        raise CheckpointError(f"{name} is damaged: its metadata are not UTF-8; get a fresh copy") from None
    facts = read_metadata(found) if isinstance(found, dict) else {}
    # OpenVINO's tools write the weights of an IR in float16 unless they are told not to.
    if facts and any(op.get_type_name() == "Constant" and _type_of(op) == "f16" for op in model.get_ops()):
        facts["precision"] = "float16"
    return facts


def _type_of(port) -> str:
    return port.get_element_type().get_type_name()


def _sizes(port):
    """The shape of an input or output, with None for the axes that are open."""
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic:
        return ()
    return tuple(None if size.is_dynamic else size.get_length() for size in shape)
