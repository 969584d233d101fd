"""Files written by `torch.save`, read with the standard library and NumPy alone, without running anything they hold.

Two forms are read: the zip of PyTorch 1.6 and later, and the legacy form before it (pickles in a row, then raw
storages). The pickles inside are not given to `pickle`: the interpreter below walks their operations and knows how to
build plain containers, numbers, text and tensors. Whatever else a file names (`os.system`, an optimizer, a config
class) is never imported, called or looked up; it becomes an inert `Opaque`. Every size and offset a file declares is
checked before memory is taken or read, so a damaged or hostile file ends in one `CheckpointError`.
"""

from __future__ import annotations

import io
import math
import os
import pickletools
import re
import stat
import zipfile

import numpy as np

from .errors import CheckpointError

# bfloat16 is 'u2' as stored: NumPy has no such type, so `_decode` widens it to float32.
_DTYPES = {
    "float64": "f8", "float32": "f4", "float16": "f2", "bfloat16": "u2", "complex64": "c8", "complex128": "c16",
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

# Pickle operations that push their argument, those that push a fresh value, and how many values the others take off
# the stack (None: all above the last mark).
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_FRESH = {
    "NONE": type(None), "NEWFALSE": bool, "NEWTRUE": lambda: True,
    "EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set,
}  # fmt: skip
_OPERANDS = {
    "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2, "STACK_GLOBAL": 2, "REDUCE": 2, "NEWOBJ": 2,
    "NEWOBJ_EX": 3, "BUILD": 1, "BINPERSID": 1, "POP": 1, "TUPLE": None, "LIST": None, "DICT": None, "FROZENSET": None,
    "APPENDS": None, "SETITEMS": None, "ADDITEMS": None, "INST": None, "OBJ": None, "POP_MARK": None,
}  # fmt: skip

_MAX_OPERATIONS = 3_000_000  # a checkpoint needs about 50 a tensor
_MAX_ITEMS = 5_000_000
_MAX_DEPTH = 100
_CHUNK = 1 << 20
_AGAIN = "download or copy the file again"


class _Refused(Exception):
    """Why a file is not read, and what to do; `read_torch_file` adds the path."""


def _damaged(what):
    return _Refused(f"is damaged: {what}; {_AGAIN}")


class Opaque:
    """An object whose class `read_torch_file` does not build: inert, it only records what the file stores for it.

    name: dotted, as in the file ('argparse.Namespace').
    args: what the class or function was to be called with; None where the file holds the bare name (a class, a dtype).
    state: the object's attributes as stored, usually a dict. items: list elements, or (key, value) pairs, added later.
    """

    __slots__ = ("_memo_index", "args", "items", "name", "state")

    def __init__(self, name, args=None):
        self.name, self.args, self.state, self.items, self._memo_index = name, args, None, [], None

    def __repr__(self):
        return f"Opaque({_shown(self.name)})"


_UNREAD = np.empty(0)  # stands for every storage and tensor in the first pass over a legacy file


def read_torch_file(path):
    """Return what `torch.save` wrote at `path`: dicts, lists, tuples, sets, text, bytes, numbers, None, NumPy arrays.

    Tensors, parameters and bare storages become C-contiguous arrays of the shape and dtype they were saved with, on
    whatever device they were; bfloat16 becomes float32, which is exact. Arrays whose tensors share a storage share
    memory, as in PyTorch. OrderedDict, defaultdict and Counter become dict, torch.Size tuple, bytearray bytes, NumPy
    scalars Python numbers; every other class becomes an `Opaque`.
    Needs about the file's size in memory; as much again for tensors saved non-contiguous (channels_last) or bfloat16.
    A zip is verified by its CRC-32 checksums. The legacy form has none: a flipped bit inside its raw tensor data is
    not noticed.
    Raises CheckpointError, in one line with the path, for a file that is missing, empty, text, truncated, damaged or
    hostile, for TorchScript, and for quantised, sparse, nested and float8 tensors.
    """
    path = os.fspath(path)
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise _Refused("is not a regular file; give the path of a file that torch.save wrote")
        with open(path, "rb") as file:
            head = file.read(512)
            file.seek(0)
            form = _form(head)
            if form == "zip":
                return _read_zip(file, status.st_size)
            if form == "legacy":
                return _read_legacy(file, status.st_size)
            raise _Refused(_why_unknown(head, form))
    except _Refused as refusal:
        reason, cause = str(refusal), None
    except FileNotFoundError:
        reason, cause = "does not exist; check the path", None
    except OSError as error:
        reason, cause = f"cannot be read ({error.strerror or error}); check its permissions and the disk", error
    except MemoryError as error:
        reason, cause = "needs more memory than is free, or is damaged; free memory, or " + _AGAIN, error
    except Exception as error:
        # On hostile bytes zipfile, zlib, struct, pickletools, NumPy and the interpreter's own stack raise a dozen kinds
        # of error. All mean the same to the user; the cause is chained.
        detail = " ".join(ascii(str(error))[1:-1].split())[:120]
        reason, cause = f"is damaged ({type(error).__name__}: {detail}); {_AGAIN}", error
    raise CheckpointError(f"{path}: {reason}") from cause


def is_torch_file(path):
    """Whether the content at `path` is one of PyTorch's forms, also those which `read_torch_file` refuses by name.

    False for a missing or unreadable file.
    """
    try:
        if not os.path.isfile(path):
            return False
        with open(path, "rb") as file:
            form = _form(file.read(512))
            if form == "zip":
                with zipfile.ZipFile(file) as archive:
                    return any(name.endswith("/data.pkl") for name in archive.namelist())
            return form is not None
    except Exception:  # as in read_torch_file: hostile bytes make zipfile raise many kinds
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
        return f"is empty; {_AGAIN}"
    if re.fullmatch(rb"[\t-\r\x1b -\xff]*", head):
        first = _shown(head.decode("utf-8", "replace").strip()[:40])
        return (
            f"is text, not a PyTorch file (it begins with '{first}'), perhaps an error page or a Git LFS pointer; "
            "download the file itself"
        )
    return f"is not a PyTorch file: neither the zip nor the legacy form; check what it is, or {_AGAIN}"


def _shown(name):
    # Names come from the file: no control characters, and not a page of them, in a message.
    return ascii(name)[1:-1][:80]


class _Allowance:
    """Bytes a file may still make the reader allocate: a small file cannot ask for much by a large number in it."""

    def __init__(self, file_size):
        self.left = 20 * file_size + (64 << 20)  # room for deflated zeros and for expanded views

    def take(self, nbytes):
        self.left -= nbytes
        if self.left < 0:
            raise _damaged("it asks for more memory than 20 times its size")


def _read_zip(file, file_size):
    allowance = _Allowance(file_size)
    storages = {}
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        if len(members) != len(archive.infolist()):
            raise _damaged("a zip with two members of one name")
        roots = [name[: -len("data.pkl")] for name in members if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(roots) != 1:
            raise _Refused(
                f"is a zip with {len(roots)} members */data.pkl, PyTorch's has one; if it was packed, unpack it"
            )
        (root,) = roots
        if f"{root}constants.pkl" in members or any(name.startswith(f"{root}code/") for name in members):
            raise _Refused(
                "is a TorchScript program (torch.jit.save), not weights; torch.save its state_dict() instead"
            )

        def read(name):
            info = members.get(name)
            if info is None:
                raise _damaged(f"it lacks the member {_shown(name)}")
            if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise _Refused(f"holds {_shown(name)} encrypted or in a rare compression; pack it again without")
            allowance.take(info.file_size)
            raw = np.empty(info.file_size, np.uint8)
            filled = 0
            with archive.open(info) as member:
                while chunk := member.read(_CHUNK):  # reading on to the end is what makes zipfile check the CRC-32
                    raw[filled : filled + len(chunk)] = np.frombuffer(chunk, np.uint8)
                    filled += len(chunk)
            if filled != raw.size:
                raise _damaged(f"it ends inside {_shown(name)}")
            return raw

        byteorder = ">" if f"{root}byteorder" in members and read(f"{root}byteorder").tobytes() == b"big" else "<"

        def load_storage(key, dtype, numel):
            if (key, dtype, numel) not in storages:
                name, nbytes = f"{root}data/{key}", numel * np.dtype(_DTYPES[dtype]).itemsize
                if nbytes and name in members and members[name].file_size != nbytes:
                    raise _damaged(f"{_shown(name)} has {members[name].file_size} bytes, not {nbytes}")
                raw = read(name) if nbytes else np.empty(0, np.uint8)
                storages[key, dtype, numel] = _decode(raw, dtype, byteorder, allowance)
            return storages[key, dtype, numel]

        pickled = io.BytesIO(read(f"{root}data.pkl").tobytes())
        return _Unpickler(load_storage, byteorder, allowance).load(pickled)


def _read_legacy(file, file_size):
    # Tensors are built while the object's pickle is read, but their storages follow it: so that pickle is read twice.
    declared, storages = {}, {}
    bounded = _Bounded(file, file_size)

    def declare(key, dtype, numel):
        if declared.setdefault(key, (dtype, numel)) != (dtype, numel):
            raise _damaged(f"it declares storage {_shown(key)} in two ways")
        return _UNREAD

    def unpickle(load_storage):
        return _Unpickler(load_storage, "<", _Allowance(file_size)).load(bounded)

    magic, protocol, _ = unpickle(declare), unpickle(declare), unpickle(declare)
    if (magic, protocol) != (_LEGACY_MAGIC, _LEGACY_PROTOCOL):
        raise _damaged("an unknown version of the legacy form")
    start = file.tell()
    unpickle(declare)
    keys = unpickle(declare)
    if type(keys) is not list or any(type(key) is not str for key in keys) or sorted(keys) != sorted(declared):
        raise _damaged("it lists other storages than its tensors use")
    for key in keys:
        dtype, numel = declared[key]
        nbytes = numel * np.dtype(_DTYPES[dtype]).itemsize
        if int.from_bytes(file.read(8), "little") != numel or nbytes > file_size - file.tell():
            raise _damaged(f"it ends, or is of another size, at storage {_shown(key)}")
        raw = np.empty(nbytes, np.uint8)
        if file.readinto(memoryview(raw)) != nbytes:
            raise _damaged(f"it ends inside storage {_shown(key)}")
        storages[key] = _decode(raw, dtype, "<", _Allowance(file_size))
    file.seek(start)
    return unpickle(lambda key, dtype, numel: storages[key])


class _Bounded:
    """A file for pickletools, that is never asked for more than it has: `read` takes memory before it looks."""

    def __init__(self, file, file_size):
        self.file, self.file_size, self.readline, self.tell = file, file_size, file.readline, file.tell

    def read(self, count):
        return self.file.read(min(count, self.file_size - self.file.tell()))


def _decode(raw, dtype, byteorder, allowance):
    """Read the bytes `raw` as a 1-D array of the torch dtype named; native byte order costs no copy."""
    stored = raw.view(np.dtype(_DTYPES[dtype]).newbyteorder(byteorder))
    if not stored.dtype.isnative:
        allowance.take(raw.size)
    if dtype == "bfloat16":  # the upper half of a float32
        allowance.take(2 * raw.size)
        wide = stored.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    return stored.astype(_DTYPES[dtype], copy=False)


class _Unpickler:
    """A pickle interpreter that can build plain containers and arrays, and can do nothing else.

    `pickle.Unpickler` would not do: BUILD sets attributes on whatever `find_class` returns, PUT takes memory by the
    largest memo index, and hashing a deeply nested key overflows the C stack.
    load_storage(key, dtype, numel) returns a storage as a 1-D array.
    """

    def __init__(self, load_storage, byteorder, allowance):
        self.load_storage, self.byteorder, self.allowance = load_storage, byteorder, allowance
        self.stack, self.marks, self.memo = [], [], {}

    def load(self, file):
        for count, (opcode, arg, _) in enumerate(pickletools.genops(file)):
            if count == _MAX_OPERATIONS:
                raise _Refused(f"holds more than {_MAX_OPERATIONS} pickle operations; save the tensors alone")
            self.step(opcode.name, arg)
        if len(self.stack) != 1 or self.marks:
            raise _damaged("a pickle that ends with a value too many or too few")
        _check_nesting(self.stack[0])
        return self.stack[0]

    def step(self, operation, arg):
        operands = self.pop(_OPERANDS[operation]) if operation in _OPERANDS else None
        stack = self.stack
        match operation:
            case _ if operation in _LITERALS:
                stack.append(bytes(arg) if type(arg) is bytearray else arg)
            case _ if operation in _FRESH:
                stack.append(_FRESH[operation]())
            case "BINPUT" | "LONG_BINPUT" | "PUT" | "MEMOIZE":
                index = len(self.memo) if operation == "MEMOIZE" else arg
                self.memo[index] = stack[-1]
                if type(stack[-1]) is Opaque:
                    stack[-1]._memo_index = index
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(self.memo[arg])
            case "DUP":
                stack.append(stack[-1])
            case "MARK":
                self.marks.append(stack)
                self.stack = []
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(operands))
            case "LIST":
                stack.append(operands)
            case "DICT":
                stack.append(self.mapping(_pairs(operands)))
            case "FROZENSET":
                stack.append(frozenset(map(_key, operands)))
            case "APPEND" | "APPENDS":
                target = stack[-1].items if type(stack[-1]) is Opaque else _exactly(list, stack[-1])
                target.extend(operands)
            case "SETITEM" | "SETITEMS":
                self.set_items(stack[-1], _pairs(operands))
            case "ADDITEMS":
                _exactly(set, stack[-1]).update(map(_key, operands))
            case "GLOBAL":
                stack.append(_global(*arg.split(" ", 1)))
            case "STACK_GLOBAL":
                stack.append(_global(*operands))
            case "REDUCE" | "NEWOBJ":
                stack.append(self.call(*operands))
            case "INST":
                stack.append(self.call(_global(*arg.split(" ", 1)), tuple(operands)))
            case "OBJ" | "NEWOBJ_EX":  # the latter's (args, kwargs) are nothing that `call` builds from, so stay opaque
                stack.append(self.call(operands[0], tuple(operands[1:])))
            case "BUILD":
                stack[-1] = self.build(stack[-1], *operands)
            case "BINPERSID":
                stack.append(self.persistent(*operands))
            case "POP" | "POP_MARK" | "PROTO" | "FRAME" | "STOP":
                pass
            case _:  # extension registry, out-of-band buffers, persistent ids as text: torch.save writes none
                raise _damaged(f"the pickle operation {operation}, which PyTorch does not write")

    def pop(self, count):
        """Take `count` values off the stack; None: all above the last mark."""
        if count is None:
            operands, self.stack = self.stack, self.marks.pop()
            return operands
        if len(self.stack) < count:
            raise _damaged("a pickle operation without its operands")
        operands = self.stack[-count:]
        del self.stack[-count:]
        return operands

    def set_items(self, target, pairs):
        if type(target) is Opaque:
            target.items.extend(pairs)
        else:
            _exactly(dict, target).update((_key(key), value) for key, value in pairs)

    def mapping(self, pairs):
        result = {}
        self.set_items(result, pairs)
        return result

    def persistent(self, reference):
        match reference:
            case ("storage", Opaque(args=None, name=name), str(key), _, int(numel), *_) if numel >= 0:
                module, _, storage_type = name.rpartition(".")
                if storage_type not in _STORAGES or module not in ("torch", "torch.cuda", "torch.storage"):
                    raise _Refused(f"holds a {_shown(name)} (quantised, or unknown); save the tensors dense, as floats")
                storage = self.load_storage(key, _STORAGES[storage_type], numel)
                match reference[5:6]:  # legacy: a storage may be a part of another
                    case () | (None,):
                        return storage
                    case ((_, int(start), int(length)),) if 0 <= start <= start + length <= numel:
                        return storage if storage is _UNREAD else storage[start : start + length]
            case ("module", Opaque(args=None) as cls, *_):  # legacy: a pickled network's class, with its source code
                return cls
        raise _damaged("a reference to a storage is malformed")

    def call(self, function, args):
        """Build the plain value that calling the named function would give, or an `Opaque`; never calls by name."""
        if type(function) is not Opaque or function.args is not None or type(args) is not tuple:
            raise _damaged("it calls something that is not a name")
        name = function.name
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
                kind = f"quantised, sparse, nested or of an unknown kind ({_shown(name)})"
                raise _Refused(f"holds a tensor which is {kind}; save it dense, as floats")
            case "collections.OrderedDict" | "collections.defaultdict" | "collections.Counter", _:
                source = args[-1] if args and type(args[-1]) in (dict, list) else []
                self.allowance.take(100 * len(source))  # few bytes of pickle could copy one container many times
                return self.mapping(source.items() if type(source) is dict else source)
            case "torch.Size" | "builtins.set" | "builtins.frozenset", (list() | tuple() as items,):
                self.allowance.take(100 * len(items))
                if name == "torch.Size":
                    return tuple(items)
                return (set if name == "builtins.set" else frozenset)(map(_key, items))
            case "builtins.complex", (float() | int() as real, float() | int() as imag):
                return complex(real, imag)
            case "builtins.bytes" | "builtins.bytearray", ():
                return b""
            case "builtins.bytearray", (bytes() as raw,):
                return raw
            case "builtins.bytearray" | "_codecs.encode", (str() as text, "latin1" | "latin-1"):
                self.allowance.take(len(text))
                return text.encode("latin-1")
            case "numpy._core.multiarray._reconstruct", _:
                return Opaque("numpy.ndarray", args)  # `build` fills it
            case "numpy._core.numeric._frombuffer", (raw, dtype, shape, order):
                array = self.numpy_array(shape, dtype, raw, order)
                return Opaque(name, args) if array is None else array
            case "numpy._core.multiarray.scalar", (dtype, raw):
                array = self.numpy_array((), dtype, raw, "C")
                return Opaque(name, args) if array is None else array.item()
        return Opaque(name, args)

    def build(self, target, state):
        if type(target) is Opaque:
            target.state = state
            match target.name, state:
                case "numpy.ndarray", (_, shape, dtype, fortran, raw):
                    array = self.numpy_array(shape, dtype, raw, "F" if fortran else "C")
                    if array is not None and target._memo_index is not None:
                        self.memo[target._memo_index] = array
                    return target if array is None else array
        elif type(target) not in (dict, np.ndarray):  # whose state (a state_dict's _metadata, hooks) is not kept
            raise _damaged(f"it sets the state of a {type(target).__name__}")
        return target

    def tensor(self, storage, offset, size, stride, metadata=(), dtype=None):
        """Return the view (offset, size, stride), in elements, of a 1-D storage; copied where it is not contiguous."""
        if dtype is not None and dtype not in _DTYPES:
            raise _Refused(f"holds a tensor of dtype {_shown(dtype)}, which NumPy does not know; save it as float32")
        if storage is _UNREAD:
            return _UNREAD
        counts = _are_counts((offset,)) and _are_counts(size) and _are_counts(stride) and len(size) == len(stride)
        if not (counts and isinstance(storage, np.ndarray) and storage.ndim == 1):
            raise _damaged("a tensor's storage, offset, size or stride is malformed")
        if dtype is not None:
            whole = storage.nbytes - storage.nbytes % np.dtype(_DTYPES[dtype]).itemsize
            storage = _decode(storage.view(np.uint8)[:whole], dtype, self.byteorder, self.allowance)
        if 0 in size:
            return np.empty(size, storage.dtype)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if last >= storage.size:
            raise _damaged(f"a tensor reaches element {last} of a storage of {storage.size}")
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

    def numpy_array(self, shape, dtype, raw, order):
        """Return the array which a pickled NumPy array or scalar describes, or None when its dtype is not numeric."""
        match dtype:
            case Opaque(name="numpy.dtype", args=(str(code), *_), state=(_, "<" | ">" | "|" as byteorder, *_)):
                pass
            case _:
                return None
        if not re.fullmatch(r"b1|[iu][1248]|f[248]|c8|c16", code):
            return None
        raw = raw.encode("latin-1") if type(raw) is str else raw  # as Python 2 wrote them
        stored = np.dtype(code).newbyteorder(byteorder)
        if type(raw) is not bytes or not _are_counts(shape) or math.prod(shape) * stored.itemsize != len(raw):
            raise _damaged("a NumPy array's bytes do not fit its shape")
        self.allowance.take(len(raw))
        return np.ndarray(shape, stored, raw, order=order).astype(code, order="C")


def _global(module, name):
    if type(module) is not str or type(name) is not str or len(module) + len(name) > 1000:
        raise _damaged("a class name that is not text, or endless")
    module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)  # as Python 2 named them
    if module.startswith("numpy.core."):  # as NumPy 1 did
        module = module.replace("core", "_core", 1)
    return Opaque(f"{module}.{name}")


def _pairs(items):
    if len(items) % 2:
        raise _damaged("a dict's key without a value")
    return list(zip(items[::2], items[1::2], strict=True))


def _exactly(kind, value):
    if type(value) is not kind:
        raise _damaged(f"it treats a {type(value).__name__} as a {kind.__name__}")
    return value


def _are_counts(values):
    # Bounded, since a pickle's integers may be megabytes long and their products take for ever.
    return type(values) is tuple and len(values) <= 64 and all(type(n) is int and 0 <= n < 1 << 63 for n in values)


def _key(key):
    # Hashing has no limit in depth or time (nested tuples, endless integers, integers equal modulo 2^61 - 1), so a
    # dict's key or a set's item is a short flat one.
    for part in key if type(key) is tuple and len(key) < 100 else (key,):
        kind = type(part)
        if kind not in (str, bytes, int, float, bool, type(None), Opaque) or (kind is int and abs(part) >= 2**61 - 1):
            raise _Refused(f"has a dict key or set item of a kind that is not read ({kind.__name__}); save it without")
    return key


def _check_nesting(root):
    """Refuse a structure that is endless or huge to walk: pickles may hold cycles, and one list many times over."""
    measured = {}  # id of a container -> how many items a walk over it meets, how many levels deep

    def measure(container, depth):
        if id(container) not in measured:
            items, levels = len(container), 1
            for child in container.values() if type(container) is dict else container:
                if type(child) in (dict, list, tuple) and depth <= _MAX_DEPTH:
                    more, deeper = measure(child, depth + 1)
                    items, levels = items + more, max(levels, deeper + 1)
            if items > _MAX_ITEMS or max(levels, depth) > _MAX_DEPTH:
                raise _Refused(f"nests containers deeper than {_MAX_DEPTH}, or for ever; save the tensors alone")
            measured[id(container)] = items, levels
        return measured[id(container)]

    measure([root], 0)
