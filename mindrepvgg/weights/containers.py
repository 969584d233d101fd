"""Named arrays in files: MindSpore's `.ckpt` and `.safetensors`, read and written safely.

Why the `.ckpt` reader is our own: MindSpore's trusts the sizes in the file, and a damaged file can take the process
down. Here every size is checked before an array is made. What this package writes also carries a SHA-256 of its
content, so that a single altered bit is found, in both containers.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError
from mindspore.train.checkpoint_pb2 import Checkpoint
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from mindrepvgg.errors import CheckpointError
from mindrepvgg.files import MEGABYTE, atomic_write, read_regular
from mindrepvgg.text import printable, quoted
from mindrepvgg.weights import bfloat16

SUFFIXES = (".ckpt", ".safetensors")

# Protobuf and the largest network of the family stay far below.
_MOST_BYTES = 8 << 30

# Files for inference, by how they begin or by their suffix: what they are, and what uses them.
_ONNX_ENGINES = (
    "validate, predict and benchmark take it as .onnx, and in Python mindrepvgg.deployment.engine.OnnxEngine"
)
_INFERENCE = (
    (rb"\x08[\x01-\x20][\x12\x1a\x3a\x42]", ".onnx", "an ONNX file", _ONNX_ENGINES),
    (rb"\x0a.[\d.]+\x12\x09MindSpore", ".mindir", "a MindIR file", "mindspore.load and MindSpore Lite read it"),
    (rb"IMOD", ".om", "a model for Ascend (OM)", "Ascend's runtime runs it"),
    (None, ".air", "a model for Ascend (AIR)", "Ascend's ATC reads it"),
    (rb"\d+\n\S+ \d+ [0-9a-f]{8} ", ".wts", "a .wts file", "TensorRT programs that build RepVGG read it"),
)
# In the ONNX files of `mindrepvgg export`, the entry that names the checkpoint.
_EXPORTED_FROM = re.compile(rb'\x0a\x0acheckpoint\x12.{1,2}?"([\x20-\x7e]{1,200}?)"')

# The entry of a .ckpt that holds the description, as JSON in a uint8 tensor: other tools list it as one more
# parameter that they do not know. A .safetensors file has a place of its own for it.
_DESCRIPTION = "mindrepvgg.description"

# What is left of a description that is not found in its place: its name, or the end of its JSON. One altered bit takes
# one of them at most. Where the search looks, they begin: at the head of the file, or in an array of bytes.
_TRACE = re.compile(rb'mindrepvgg\.description|\\?"sha256\\?": \\?"[0-9a-f]{64}\\?"\}')
_HEAD = MEGABYTE

# NumPy's arrays have 32 axes at most, later ones 64. More are not multiplied.
_MOST_AXES = 64

# MindSpore splits a larger tensor over several entries of one name: a protobuf message must stay below 2 GiB.
_SLICE_BYTES = 512 * 1024 * 1024

# Types as the containers name them; bfloat16 is read only.
_CKPT_NAMES = {
    np.dtype(bool): "Bool",
    **{np.dtype(f"{kind}{bits}".lower()): f"{kind}{bits}" for kind in ("Int", "UInt") for bits in (8, 16, 32, 64)},
    **{np.dtype(f"float{bits}"): f"Float{bits}" for bits in (16, 32, 64)},
}
_CKPT_TYPES = {name: dtype for dtype, name in _CKPT_NAMES.items()} | {"BFloat16": bfloat16.STORED}
_SAFETENSORS_TYPES = {
    "BOOL": "?", "U8": "u1", "U16": "u2", "U32": "u4", "U64": "u8", "I8": "i1", "I16": "i2", "I32": "i4", "I64": "i8",
    "F16": "f2", "F32": "f4", "F64": "f8", "BF16": bfloat16.STORED,
}  # fmt: skip


@dataclass
class WeightFile:
    """What a file holds.

    Attributes:
        container: 'ckpt' or 'safetensors'.
        arrays: by name, in the file's order and of the file's types, but bfloat16 as float32, which is exact.
        description: what the file says of itself; empty when it says nothing.
    """

    container: str
    arrays: dict[str, np.ndarray]
    description: dict = field(default_factory=dict)


def read_weights(path) -> WeightFile:
    """Read a `.ckpt` or `.safetensors` file; which of the two it is, is told by its content.

    Raises:
        CheckpointError: the file is missing, unreadable, damaged, altered, or of neither kind.
    """
    content = read_regular(path, "a checkpoint", CheckpointError, _MOST_BYTES)
    shown = printable(path, 200)
    if not content:
        raise CheckpointError(f"{shown} is empty: it was never written to the end; get a fresh copy")
    try:
        found = _read_safetensors(shown, content) if _looks_like_safetensors(content) else _read_ckpt(shown, content)
        if not found.arrays:
            raise CheckpointError(f"{shown} holds no weights")
    except CheckpointError as error:
        raise _inference_file(shown, Path(path).suffix, content) or error from None
    # What this package describes it has sealed as well, so a description without a digest was altered too.
    if found.description and found.description.pop("sha256", None) != _digest(found):
        raise _altered(shown, "its content does not match its SHA-256")
    if not found.description and _has_trace(content, found.arrays):
        raise _altered(shown, "its description or the name of it is damaged")
    return found


def write_weights(path, arrays, description=None):
    """Write named arrays and a description, atomically.

    Args:
        path: `.ckpt` or `.safetensors`; the suffix says how it is written.
        arrays: name -> NumPy array.
        description: JSON-able; None writes the arrays alone, as other projects' files have them.

    Raises:
        CheckpointError: the suffix is another one.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise CheckpointError(f"{path} must end in {' or '.join(SUFFIXES)}, which says how it is written")
    # Not ascontiguousarray, which makes a scalar a vector of one.
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    text = None if description is None else _sealed(path.suffix[1:], arrays, description)
    with atomic_write(path) as stream:
        if path.suffix == ".safetensors":
            told = {} if text is None else {_DESCRIPTION: text}
            stream.write(save(arrays, metadata={"format": "ms", **told}))
            return
        if text is not None:
            _write_ckpt_entry(stream, _DESCRIPTION, np.frombuffer(text.encode(), np.uint8))
        for name, array in arrays.items():
            _write_ckpt_entry(stream, name, array)


def _sealed(container, arrays, description) -> str:
    """The description as JSON with the digest of everything in it.

    In ASCII, which can hold any name, those of folders that are no valid UTF-8 included.
    """
    # The description as a reader will have it, say with its keys as text: the digest is of that.
    found = WeightFile(container, arrays, json.loads(json.dumps(description)))
    return json.dumps({**found.description, "sha256": _digest(found)})


def _digest(found: WeightFile) -> str:
    """SHA-256 of everything a file says: the description, and each array's name, type, shape and bytes."""
    digest = hashlib.sha256(json.dumps(found.description, sort_keys=True).encode())
    for name in sorted(found.arrays):
        array = found.arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _has_trace(content, arrays) -> bool:
    """Whether a file without a description holds what is left of one; honest files of other programs hold nothing."""
    texts = [content[:_HEAD], *(array.tobytes() for array in arrays.values() if array.dtype == np.uint8)]
    return any(map(_TRACE.search, texts))


def _altered(path, reason):
    return CheckpointError(f"{path} was altered after it was written: {reason}; get a fresh copy")


def _damaged(path, reason):
    return CheckpointError(f"{path} is damaged or no checkpoint: {reason}; get a fresh copy")


def _inference_file(path, suffix, content) -> CheckpointError | None:
    """The error that says what a file for inference is, which may well be whole; None for another file."""
    for opening, usual, what, use in _INFERENCE:
        if suffix == usual or (opening and re.match(opening, content, re.DOTALL)):
            told = _EXPORTED_FROM.search(content)
            origin = f", {printable(told[1].decode())}" if told else ""
            return CheckpointError(
                f"{path} is {what}, for inference, and no checkpoint: {use}; give the checkpoint that it was exported "
                f"from{origin}"
            )
    return None


def _parse_description(path, text) -> dict:
    try:
        description = json.loads(text)
    except (ValueError, RecursionError):
        raise _damaged(path, "its description cannot be read") from None
    if not isinstance(description, dict):
        raise _damaged(path, "its description is not a mapping")
    return description


def _looks_like_safetensors(content) -> bool:
    """A safetensors file opens with the length of a JSON header, and the header's brace."""
    return len(content) > 9 and struct.unpack("<Q", content[:8])[0] < len(content) and content[8:9] == b"{"


def _read_safetensors(path, content) -> WeightFile:
    try:
        tensors = dict(deserialize(content))  # which checks every size, and gives each tensor bytes of its own
        header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    except (SafetensorError, ValueError) as error:
        raise _damaged(path, printable(error, 120)) from None
    text = (header.pop("__metadata__", None) or {}).get(_DESCRIPTION)
    arrays = {}
    for name in header:  # `tensors` has no order
        tensor = tensors.pop(name)
        kind = tensor["dtype"]
        if kind not in _SAFETENSORS_TYPES:
            raise CheckpointError(
                f"{path} holds {printable(name)} as {printable(kind)}, which is not read; save it as F32, F16 or BF16"
            )
        array = _as_array(path, name, tensor["data"], _SAFETENSORS_TYPES[kind], tuple(tensor["shape"]))
        arrays[name] = bfloat16.to_float32(array) if kind == "BF16" else array
    return WeightFile("safetensors", arrays, {} if text is None else _parse_description(path, text))


def _as_array(path, name, content, dtype, shape):
    """The array in these bytes, which are as many as its type and shape say."""
    try:
        return np.frombuffer(content, dtype).reshape(shape)
    except ValueError:  # too many dimensions, or an empty array with sizes beyond any memory
        raise _damaged(path, f"{printable(name)} has the impossible shape {quoted(shape, 80)}") from None


def _write_ckpt_entry(stream, name, array):
    """One tensor as MindSpore writes it: a message an entry, simply one after the other."""
    content = memoryview(array.reshape(-1).view(np.uint8))
    for start in range(0, max(len(content), 1), _SLICE_BYTES):
        message = Checkpoint()
        value = message.value.add()
        value.tag = name
        # A scalar's shape is written as [0].
        value.tensor.dims.extend(array.shape or (0,))
        value.tensor.tensor_type = _CKPT_NAMES[array.dtype]
        value.tensor.tensor_content = bytes(content[start : start + _SLICE_BYTES])
        stream.write(message.SerializeToString())


def _read_ckpt(path, content) -> WeightFile:
    message = Checkpoint()
    try:
        message.ParseFromString(_check_crc(path, content))
    except (DecodeError, ValueError):  # ValueError: of the parser in pure Python, for a name that is not UTF-8
        raise _damaged(path, "it is cut short, or not a MindSpore checkpoint") from None
    parts: dict[str, list] = {}
    for value in message.value:
        if value.WhichOneof("value") == "maptensor":
            raise CheckpointError(f"{path} holds the hash table {printable(value.tag)}, which no RepVGG has")
        parts.setdefault(value.tag, []).append(value.tensor)
    arrays, description = {}, {}
    for name, tensors in parts.items():
        if tensors[0].tensor_type == "str":
            continue  # A note that MindSpore users append (append_dict), not a weight.
        array = _ckpt_array(path, name, tensors)
        if name == _DESCRIPTION:
            description = _parse_description(path, array.tobytes())
        else:
            arrays[name] = array
    return WeightFile("ckpt", arrays, description)


def _check_crc(path, content):
    """The message's bytes, without the checksum that `save_checkpoint(..., crc_check=True)` puts behind them."""
    if content[-17:-10] != b"crc_num":
        return content
    if zlib.crc32(memoryview(content)[:-17]) != int.from_bytes(content[-10:], "big"):
        raise _damaged(path, "its checksum does not match")
    return content[:-17]


def _ckpt_array(path, name, tensors):
    """Join a tensor's slices, after checking that its bytes are as many as its type and shape say."""
    first = tensors[0]
    dtype = _CKPT_TYPES.get(first.tensor_type)
    if dtype is None:
        raise _damaged(path, f"{printable(name)} has the unknown type {quoted(first.tensor_type, 80)}")
    content = first.tensor_content if len(tensors) == 1 else b"".join(t.tensor_content for t in tensors)
    shape = tuple(first.dims)
    if shape == (0,) and len(content) == dtype.itemsize:
        shape = ()
    expected = dtype.itemsize
    for size in shape[:_MOST_AXES]:
        expected *= size
    if len(shape) <= _MOST_AXES and (min(shape, default=0) < 0 or expected != len(content)):
        fault = f"of shape {quoted(shape, 80)} should have {quoted(expected, 80)} bytes and has {len(content)}"
        raise _damaged(path, f"{printable(name)} {fault}")
    array = _as_array(path, name, content, dtype, shape)
    return bfloat16.to_float32(array) if first.tensor_type == "BFloat16" else array
