"""Files written by `torch.save`, read with the standard library and NumPy alone, without running anything they hold.

Two forms are read: the zip of PyTorch 1.6 and later, and the legacy form before it (pickles in a row, then raw
storages). The pickles inside are interpreted by `pickles`, which this module teaches storages and tensors. Every
size and offset a file declares is checked before memory is taken or read, so a damaged or hostile file ends in one
`CheckpointError`.
"""

from __future__ import annotations

import io
import re
import zipfile
from typing import Any

import numpy as np

from mindrepvgg.errors import CheckpointError
from mindrepvgg.text import printable
from mindrepvgg.weights import bfloat16
from mindrepvgg.weights.pickles import (
    AGAIN,
    Allowance,
    Bounded,
    Opaque,
    Refused,
    Unpickler,
    are_counts,
    damaged,
    opened,
)

# As stored; `_decode` widens bfloat16.
_DTYPES: dict[str, Any] = {
    "float64": "f8", "float32": "f4", "float16": "f2", "bfloat16": bfloat16.STORED,
    "complex64": "c8", "complex128": "c16",
    "int64": "i8", "int32": "i4", "int16": "i2", "int8": "i1", "bool": "?",
    "uint64": "u8", "uint32": "u4", "uint16": "u2", "uint8": "u1",
}  # fmt: skip
_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "ComplexDoubleStorage": "complex128", "ComplexFloatStorage": "complex64", "LongStorage": "int64",
    "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8",
    "BoolStorage": "bool", "UntypedStorage": "uint8", "_UntypedStorage": "uint8",
}  # fmt: skip
# Functions whose first argument is the tensor, and those that rebuild a tensor of a subclass.
_WRAPPERS = {
    "torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state",
    "torch._utils._rebuild_device_tensor_from_numpy", "torch._utils._rebuild_device_tensor_from_cpu_tensor",
}  # fmt: skip
_TYPED = {
    "torch._tensor._rebuild_from_type_v2", "torch._tensor._rebuild_from_type", "torch.tensor._rebuild_from_type",
}  # fmt: skip

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_LEGACY_HEADS = (b"\x8a\x0a" + _LEGACY_MAGIC.to_bytes(10, "little"), b"L%dL\n" % _LEGACY_MAGIC)  # binary, text pickle

_CHUNK = 1 << 20
_UNREAD = np.empty(0)  # stands for every storage and tensor in the first pass over a legacy file


def read_torch_file(path):
    """Read what `torch.save` wrote at `path`.

    Needs about the file's size in memory; as much again for tensors saved non-contiguous (channels_last) or bfloat16.
    A zip is verified by its CRC-32 checksums. The legacy form has none: a flipped bit inside its raw tensor data is not
    noticed.

    Returns:
        Dicts, lists, tuples, sets, text, bytes, numbers, None, NumPy arrays. Tensors, parameters and bare storages
        become C-contiguous arrays of the shape and dtype they were saved with, on whatever device they were; bfloat16
        becomes float32, which is exact. Arrays whose tensors share a storage share memory, as in PyTorch. OrderedDict,
        defaultdict and Counter become dict, torch.Size tuple, bytearray bytes, NumPy scalars Python numbers. Every
        other class becomes an `Opaque`.

    Raises:
        CheckpointError: in one line with the path; the file is missing, empty, text, truncated, damaged or hostile, is
            TorchScript, or holds quantised, sparse, nested or float8 tensors.
    """
    with opened(path) as (file, file_size):
        head = file.read(512)
        file.seek(0)
        form = _form(head)
        if form == "zip":
            return _read_zip(file, file_size)
        if form == "legacy":
            return _read_legacy(file, file_size)
        raise Refused(_why_unknown(head, form))


def is_torch_file(path):
    """Whether the content at `path` is one of PyTorch's forms, also those which `read_torch_file` refuses by name.

    False for a missing or unreadable file.
    """
    try:
        with opened(path) as (file, _):
            form = _form(file.read(512))
            if form == "zip":
                with zipfile.ZipFile(file) as archive:
                    return any(name.endswith("/data.pkl") for name in archive.namelist())
            return form is not None
    except CheckpointError:
        return False


def _form(head):
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if _LEGACY_HEADS[0] in head[:32] or head.startswith(_LEGACY_HEADS[1]):
        return "legacy"
    if head[257:262] == b"ustar" and head[:100].rstrip(b"\0") in (b"sys_info", b"pickle", b"tensors", b"storages"):
        return "tar"
    return None


def _why_unknown(head, form):
    if form == "tar":
        return "has the tar form of the first PyTorch releases, which is not read; open it in PyTorch and save it again"
    if not head:
        return f"is empty; {AGAIN}"
    if re.fullmatch(rb"[\t-\r\x1b -\xff]*", head):
        first = printable(head.decode("utf-8", "replace").strip()[:40])
        return (
            f"is text, not a PyTorch file (it begins with '{first}'), perhaps an error page or a Git LFS pointer; "
            "download the file itself"
        )
    return f"is not a PyTorch file: neither the zip nor the legacy form; check what it is, or {AGAIN}"


def _read_zip(file, file_size):
    allowance = Allowance(file_size)
    storages = {}
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        if len(members) != len(archive.infolist()):
            raise damaged("a zip with two members of one name")
        roots = [name[: -len("data.pkl")] for name in members if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(roots) != 1:
            raise Refused(
                f"is a zip with {len(roots)} members */data.pkl, PyTorch's has one; if it was packed, unpack it"
            )
        (root,) = roots
        if f"{root}constants.pkl" in members or any(name.startswith(f"{root}code/") for name in members):
            raise Refused("is a TorchScript program (torch.jit.save), not weights; torch.save its state_dict() instead")

        def read(name):
            info = members.get(name)
            if info is None:
                raise damaged(f"it lacks the member {printable(name)}")
            if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise Refused(f"holds {printable(name)} encrypted or in a rare compression; pack it again without")
            allowance.take(info.file_size)
            raw = np.empty(info.file_size, np.uint8)
            filled = 0
            with archive.open(info) as member:
                while chunk := member.read(_CHUNK):  # reading on to the end is what makes zipfile check the CRC-32
                    raw[filled : filled + len(chunk)] = np.frombuffer(chunk, np.uint8)
                    filled += len(chunk)
            if filled != raw.size:
                raise damaged(f"it ends inside {printable(name)}")
            return raw

        byteorder = ">" if f"{root}byteorder" in members and read(f"{root}byteorder").tobytes() == b"big" else "<"

        def load_storage(key, dtype, numel):
            if (key, dtype, numel) not in storages:
                name, nbytes = f"{root}data/{key}", numel * np.dtype(_DTYPES[dtype]).itemsize
                if nbytes and name in members and members[name].file_size != nbytes:
                    raise damaged(f"{printable(name)} has {members[name].file_size} bytes, not {nbytes}")
                raw = read(name) if nbytes else np.empty(0, np.uint8)
                storages[key, dtype, numel] = _decode(raw, dtype, byteorder, allowance)
            return storages[key, dtype, numel]

        pickled = io.BytesIO(read(f"{root}data.pkl").tobytes())
        return _Unpickler(load_storage, byteorder, allowance).load(pickled)


def _read_legacy(file, file_size):
    # Tensors are built while the object's pickle is read, but their storages follow it: so that pickle is read twice.
    declared, storages = {}, {}
    bounded = Bounded(file, file_size)

    def declare(key, dtype, numel):
        if declared.setdefault(key, (dtype, numel)) != (dtype, numel):
            raise damaged(f"it declares storage {printable(key)} in two ways")
        return _UNREAD

    def unpickle(load_storage):
        return _Unpickler(load_storage, "<", Allowance(file_size)).load(bounded)

    magic, protocol, _ = unpickle(declare), unpickle(declare), unpickle(declare)
    if (magic, protocol) != (_LEGACY_MAGIC, _LEGACY_PROTOCOL):
        raise damaged("an unknown version of the legacy form")
    start = file.tell()
    unpickle(declare)
    keys = unpickle(declare)
    if type(keys) is not list or any(type(key) is not str for key in keys) or sorted(keys) != sorted(declared):
        raise damaged("it lists other storages than its tensors use")
    for key in keys:
        dtype, numel = declared[key]
        nbytes = numel * np.dtype(_DTYPES[dtype]).itemsize
        if int.from_bytes(file.read(8), "little") != numel or nbytes > file_size - file.tell():
            raise damaged(f"it ends, or is of another size, at storage {printable(key)}")
        raw = np.empty(nbytes, np.uint8)
        if file.readinto(memoryview(raw)) != nbytes:
            raise damaged(f"it ends inside storage {printable(key)}")
        storages[key] = _decode(raw, dtype, "<", Allowance(file_size))
    file.seek(start)
    return unpickle(lambda key, dtype, numel: storages[key])


def _decode(raw, dtype, byteorder, allowance):
    """Read the bytes `raw` as a 1-D array of the torch dtype named; native byte order costs no copy."""
    stored = raw.view(np.dtype(_DTYPES[dtype]).newbyteorder(byteorder))
    if not stored.dtype.isnative:
        allowance.take(raw.size)
    if dtype == "bfloat16":
        allowance.take(2 * raw.size)
        return bfloat16.to_float32(stored)
    return stored.astype(_DTYPES[dtype], copy=False)


class _Unpickler(Unpickler):
    """Knows PyTorch's storages and the functions that make tensors of them.

    load_storage(key, dtype, numel) returns a storage as a 1-D array.
    """

    def __init__(self, load_storage, byteorder, allowance):
        super().__init__(allowance)
        self.load_storage, self.byteorder = load_storage, byteorder

    def persistent(self, reference):
        match reference:
            case ("storage", Opaque(args=None, name=name), str(key), _, int(numel), *_) if numel >= 0:
                module, _, storage_type = name.rpartition(".")
                if storage_type not in _STORAGES or module not in ("torch", "torch.cuda", "torch.storage"):
                    kind = f"{printable(name)} (quantised, or unknown)"
                    raise Refused(f"holds a {kind}; save the tensors dense, as floats")
                storage = self.load_storage(key, _STORAGES[storage_type], numel)
                match reference[5:6]:  # legacy: a storage may be a part of another
                    case () | (None,):
                        return storage
                    case ((_, int(start), int(length)),) if 0 <= start <= start + length <= numel:
                        return storage if storage is _UNREAD else storage[start : start + length]
            case ("module", Opaque(args=None) as cls, *_):  # legacy: a pickled network's class, with its source code
                return cls
        raise damaged("a reference to a storage is malformed")

    def construct(self, name, args):
        match name, args:
            case "torch._utils._rebuild_tensor", (storage, offset, size, stride):
                return self.tensor(storage, offset, size, stride)
            case "torch._utils._rebuild_tensor_v2", (storage, offset, size, stride, _, _, *_):
                return self.tensor(storage, offset, size, stride, args[6:7])
            case "torch._utils._rebuild_tensor_v3", (storage, offset, size, stride, _, _, Opaque() as dtype, *_):
                return self.tensor(storage, offset, size, stride, args[7:8], dtype.name.removeprefix("torch."))
            case _ if name in _WRAPPERS and args:
                return args[0]
            case _ if name in _TYPED and len(args) == 4:  # (rebuild function, class, its arguments, attributes)
                return self.call(args[0], args[2])
            case _ if name.startswith("torch") and "._rebuild_" in name:
                kind = f"quantised, sparse, nested or of an unknown kind ({printable(name)})"
                raise Refused(f"holds a tensor which is {kind}; save it dense, as floats")
            case "torch.Size", (list() | tuple() as items,):
                self.allowance.take(100 * len(items))
                return tuple(items)
        return super().construct(name, args)

    def tensor(self, storage, offset, size, stride, metadata=(), dtype=None):
        """Return the view (offset, size, stride), in elements, of a 1-D storage; copied where it is not contiguous."""
        if dtype is not None and dtype not in _DTYPES:
            raise Refused(f"holds a tensor of dtype {printable(dtype)}, which NumPy does not know; save it as float32")
        if storage is _UNREAD:
            return _UNREAD
        counts = are_counts((offset,)) and are_counts(size) and are_counts(stride) and len(size) == len(stride)
        if not (counts and isinstance(storage, np.ndarray) and storage.ndim == 1):
            raise damaged("a tensor's storage, offset, size or stride is malformed")
        if dtype is not None:
            whole = storage.nbytes - storage.nbytes % np.dtype(_DTYPES[dtype]).itemsize
            storage = _decode(storage.view(np.uint8)[:whole], dtype, self.byteorder, self.allowance)
        if 0 in size:
            return np.empty(size, storage.dtype)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if last >= storage.size:
            raise damaged(f"a tensor reaches element {last} of a storage of {storage.size}")
        itemsize = storage.itemsize
        strides = [step * itemsize if n > 1 else 0 for n, step in zip(size, stride, strict=True)]
        array = np.ndarray(size, storage.dtype, storage, offset * itemsize, strides)
        if not array.flags.c_contiguous:
            self.allowance.take(array.nbytes)
            array = array.copy()
        flags = metadata[0] if metadata and type(metadata[0]) is dict else {}
        for flag, apply in (("conj", np.conjugate), ("neg", np.negative)):  # PyTorch stores these lazily, as a bit
            if flags.get(flag):
                self.allowance.take(array.nbytes)
                array = np.asarray(apply(array))
        return array
