"""Pickles, read without running anything they hold: plain containers, numbers, text, bytes and NumPy arrays.

Why it is our own: `pickle` imports and calls what a file names, and its hook `find_class` does not stop a hostile file
from taking all memory. `torch.load(weights_only=True)` needs PyTorch, reads no MegEngine file and refuses training
checkpoints with other classes in them. The interpreter below builds plain values and nothing else. Whatever else a file
names (`os.system`, an optimizer, a config class) is never imported, called or looked up; it becomes an inert `Opaque`.
Every size in a file is checked before memory is taken or read: a damaged file ends in one `CheckpointError`.
"""

from __future__ import annotations

import math
import os
import pickletools
import re
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import numpy as np

from mindrepvgg.errors import CheckpointError
from mindrepvgg.files import open_regular
from mindrepvgg.text import printable

# Pickle operations that push their argument, those that push a fresh value, and how many values the others take off
# the stack (None: all above the last mark).
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_FRESH: dict[str, Callable] = {
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
AGAIN = "download or copy the file again"

# The protocols' number, from 2 on; before it, a dict, or the name of an object's class.
_OPENING = re.compile(rb"\x80[\x02-\x05]|\}|\(d|c[\w.]+\n[\w.]+\n")


class Refused(Exception):
    """Why a file is not read, and what to do; `opened` adds the path."""


def damaged(what):
    """The refusal of a file whose content cannot be as it was written."""
    return Refused(f"is damaged: {what}; {AGAIN}")


class Opaque:
    """An object whose class is not built: inert, it only records what the file stores for it.

    Attributes:
        name: dotted, as in the file ('argparse.Namespace').
        args: what the class or function was to be called with; None where the file holds the bare name (a class, a
            dtype).
        state: the object's attributes as stored, usually a dict.
        items: list elements, or (key, value) pairs, added later.
    """

    __slots__ = ("_memo_index", "args", "items", "name", "state")

    def __init__(self, name, args=None):
        self.name, self.args, self.state, self.items, self._memo_index = name, args, None, [], None

    def __repr__(self):
        return f"Opaque({printable(self.name)})"


def read_pickle_file(path):
    """Read what one pickle holds, in the form of MegEngine's files (basecls).

    Needs two to three times the file's size in memory. A pickle has no checksum: a flipped bit inside an array's data
    is not noticed.

    Returns:
        Dicts, lists, tuples, sets, text, bytes, numbers, None, NumPy arrays. Numeric arrays, and MegEngine's tensors
        and parameters, become C-contiguous arrays in native byte order. OrderedDict, defaultdict and Counter become
        dict, bytearray bytes, NumPy scalars Python numbers. Every other class becomes an `Opaque`, as do arrays of
        objects and text, and quantised tensors.

    Raises:
        CheckpointError: in one line with the path; the file is missing, no pickle, truncated, damaged or hostile.
    """
    with opened(path) as (file, file_size):
        if not _opens_a_pickle(file.read(512)):
            raise Refused(f"is not a pickle of weights; check what it is, or {AGAIN}")
        file.seek(0)
        content = Unpickler(Allowance(file_size)).load(Bounded(file, file_size))
        if file.tell() != file_size:
            raise damaged("it goes on after its pickle")
        return content


def is_pickle_file(path):
    """Whether the content at `path` opens as a pickle; PyTorch's legacy form does, too, so ask `is_torch_file` first.

    False for a missing or unreadable file.
    """
    try:
        with opened(path) as (file, _):
            return _opens_a_pickle(file.read(512))
    except CheckpointError:
        return False


def _opens_a_pickle(head):
    # A safetensors file begins with its header's length, eight bytes that may spell anything, and the header's brace.
    return bool(_OPENING.match(head)) and head[8:9] != b"{"


@contextmanager
def opened(path):
    """Open a regular file, as (file, size); whatever then goes wrong becomes one CheckpointError with the path."""
    stream = open_regular(path, "a checkpoint", CheckpointError)
    try:
        with stream:
            yield stream, os.fstat(stream.fileno()).st_size
        return
    except Refused as refusal:
        reason, cause = str(refusal), None  # type: tuple[str, Exception | None]
    except OSError as error:
        reason, cause = f"cannot be read ({error.strerror or error}); check the disk", error
    except MemoryError as error:
        reason, cause = f"needs more memory than is free, or is damaged; free memory, or {AGAIN}", error
    except Exception as error:
        # On hostile bytes zipfile, zlib, struct, pickletools, NumPy and the interpreter's own stack raise a dozen kinds
        # of error. All mean the same to the user; the cause is chained.
        detail = " ".join(ascii(str(error))[1:-1].split())[:120]
        reason, cause = f"is damaged ({type(error).__name__}: {detail}); {AGAIN}", error
    raise CheckpointError(f"{printable(path, 200)}: {reason}") from cause


class Allowance:
    """Bytes a file may still make the reader allocate: a small file cannot ask for much by a large number in it."""

    def __init__(self, file_size):
        self.left = 20 * file_size + (64 << 20)  # room for deflated zeros and for expanded views

    def take(self, nbytes):
        """Count bytes about to be allocated; raises Refused when there were too many."""
        self.left -= nbytes
        if self.left < 0:
            raise damaged("it asks for more memory than 20 times its size")


class Bounded:
    """A file for pickletools, that is never asked for more than it has: `read` takes memory before it looks."""

    def __init__(self, file, file_size):
        self.file, self.file_size, self.readline, self.tell = file, file_size, file.readline, file.tell

    def read(self, count):
        """As the file's own."""
        return self.file.read(min(count, self.file_size - self.file.tell()))


class Unpickler:
    """A pickle interpreter that can build plain containers and arrays, and can do nothing else.

    `pickle.Unpickler` would not do: BUILD sets attributes on whatever `find_class` returns, PUT takes memory by the
    largest memo index, and hashing a deeply nested key overflows the C stack.
    A subclass may know more references (`persistent`) and more names (`construct`).
    """

    def __init__(self, allowance):
        self.allowance = allowance
        self.stack, self.marks, self.memo = [], [], {}

    def load(self, file):
        """Return the value of the pickle at the file's position, which is left behind it; see `read_pickle_file`."""
        for count, (opcode, arg, _) in enumerate(pickletools.genops(file)):
            if count == _MAX_OPERATIONS:
                raise Refused(f"holds more than {_MAX_OPERATIONS} pickle operations; save the tensors alone")
            self._step(opcode.name, arg)
        if len(self.stack) != 1 or self.marks:
            raise damaged("a pickle that ends with a value too many or too few")
        _check_nesting(self.stack[0])
        return self.stack[0]

    def _step(self, operation, arg):
        operands: Any = self._pop(_OPERANDS[operation]) if operation in _OPERANDS else None
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
                stack.append(self._mapping(_pairs(operands)))
            case "FROZENSET":
                stack.append(frozenset(map(_key, operands)))
            case "APPEND" | "APPENDS":
                target = stack[-1].items if type(stack[-1]) is Opaque else _exactly(list, stack[-1])
                target.extend(operands)
            case "SETITEM" | "SETITEMS":
                self._set_items(stack[-1], _pairs(operands))
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
                stack[-1] = self._build(stack[-1], *operands)
            case "BINPERSID":
                stack.append(self.persistent(*operands))
            case "POP" | "POP_MARK" | "PROTO" | "FRAME" | "STOP":
                pass
            case _:  # extension registry, out-of-band buffers, persistent ids as text
                raise damaged(f"the pickle operation {operation}, which no checkpoint needs")

    def _pop(self, count):
        """Take `count` values off the stack; None: all above the last mark."""
        if count is None:
            operands, self.stack = self.stack, self.marks.pop()
            return operands
        if len(self.stack) < count:
            raise damaged("a pickle operation without its operands")
        operands = self.stack[-count:]
        del self.stack[-count:]
        return operands

    def _set_items(self, target, pairs):
        if type(target) is Opaque:
            target.items.extend(pairs)
        else:
            _exactly(dict, target).update((_key(key), value) for key, value in pairs)

    def _mapping(self, pairs):
        result = {}
        self._set_items(result, pairs)
        return result

    def persistent(self, reference):
        """Return what a persistent id stands for, which the pickle alone does not tell."""
        raise damaged("a reference to something outside of the pickle")

    def call(self, function, args):
        """Build the plain value that calling the named function would give, or an `Opaque`; never calls by name."""
        if type(function) is not Opaque or function.args is not None or type(args) is not tuple:
            raise damaged("it calls something that is not a name")
        return self.construct(function.name, args)

    def construct(self, name, args):
        """Build the value of `name(*args)`, for the names known here."""
        match name, args:
            case "collections.OrderedDict" | "collections.defaultdict" | "collections.Counter", _:
                source = args[-1] if args and type(args[-1]) in (dict, list) else []
                self.allowance.take(100 * len(source))  # few bytes of pickle could copy one container many times
                return self._mapping(source.items() if type(source) is dict else source)
            case "builtins.set" | "builtins.frozenset", (list() | tuple() as items,):
                self.allowance.take(100 * len(items))
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
                return Opaque("numpy.ndarray", args)  # `_build` fills it
            case "numpy._core.numeric._frombuffer", (raw, dtype, shape, order):
                array = self._numpy_array(shape, dtype, raw, order)
                return Opaque(name, args) if array is None else array
            case "numpy._core.multiarray.scalar", (dtype, raw):
                array = self._numpy_array((), dtype, raw, "C")
                return Opaque(name, args) if array is None else array.item()
            case "megengine.tensor.Tensor" | "megengine.tensor.Parameter", (np.ndarray() as array, *_):
                return array
        return Opaque(name, args)

    def _build(self, target, state):
        if type(target) is Opaque:
            target.state = state
            match target.name, state:
                case "numpy.ndarray", (_, shape, dtype, fortran, raw):
                    array = self._numpy_array(shape, dtype, raw, "F" if fortran else "C")
                    if array is not None and target._memo_index is not None:
                        self.memo[target._memo_index] = array
                    return target if array is None else array
        elif type(target) not in (dict, np.ndarray):  # whose state (a state_dict's _metadata, hooks) is not kept
            raise damaged(f"it sets the state of a {type(target).__name__}")
        return target

    def _numpy_array(self, shape, dtype, raw, order):
        """Return the array which a pickled NumPy array or scalar describes, or None when its dtype is not numeric."""
        match dtype:
            # A state of version 4 has metadata: MegEngine's mark of quantised values, not to be taken as they are.
            case Opaque(name="numpy.dtype", args=(str(code), *_), state=(3, "<" | ">" | "|" as byteorder, *_)):
                pass
            case _:
                return None
        if not re.fullmatch(r"b1|[iu][1248]|f[248]|c8|c16", code):
            return None
        raw = raw.encode("latin-1") if type(raw) is str else raw  # as Python 2 wrote them
        stored = np.dtype(code).newbyteorder(byteorder)
        if type(raw) is not bytes or not are_counts(shape) or math.prod(shape) * stored.itemsize != len(raw):
            raise damaged("a NumPy array's bytes do not fit its shape")
        self.allowance.take(len(raw))
        return np.ndarray(shape, stored, raw, order=order).astype(code, order="C")


def _global(module, name):
    if type(module) is not str or type(name) is not str or len(module) + len(name) > 1000:
        raise damaged("a class name that is not text, or endless")
    module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)  # as Python 2 named them
    if module.startswith("numpy.core."):  # as NumPy 1 did
        module = module.replace("core", "_core", 1)
    return Opaque(f"{module}.{name}")


def _pairs(items):
    if len(items) % 2:
        raise damaged("a dict's key without a value")
    return list(zip(items[::2], items[1::2], strict=True))


def _exactly(kind, value):
    if type(value) is not kind:
        raise damaged(f"it treats a {type(value).__name__} as a {kind.__name__}")
    return value


def are_counts(values):
    """Whether the values are a tuple of sizes, offsets or strides that can be computed with.

    Bounded, since a pickle's integers may be megabytes long and their products take for ever.
    """
    return type(values) is tuple and len(values) <= 64 and all(type(n) is int and 0 <= n < 1 << 63 for n in values)


def _key(key):
    # Hashing has no limit in depth or time (nested tuples, endless integers, integers equal modulo 2^61 - 1), so a
    # dict's key or a set's item is a short flat one.
    for part in key if type(key) is tuple and len(key) < 100 else (key,):
        kind = type(part)
        if kind not in (str, bytes, int, float, bool, type(None), Opaque) or (kind is int and abs(part) >= 2**61 - 1):
            raise Refused(f"has a dict key or set item of a kind that is not read ({kind.__name__}); save it without")
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
                raise Refused(f"nests containers deeper than {_MAX_DEPTH}, or for ever; save the tensors alone")
            measured[id(container)] = items, levels
        return measured[id(container)]

    measure([root], 0)
