"""Pickles that no program would write: an assembler of operations, and with it attacks and bombs."""

import collections
import struct


class Name(collections.namedtuple("Name", "module name")):
    """A class or function by name (GLOBAL)."""


class Call(collections.namedtuple("Call", "function args")):
    """`function(*args)` as REDUCE."""


class Build(collections.namedtuple("Build", "target state")):
    """`target.__setstate__(state)`, as BUILD."""


class Persistent(collections.namedtuple("Persistent", "reference")):
    """A persistent id (BINPERSID)."""


class Raw(bytes):
    """Opcodes as they are."""


def ops(value):
    """Return the opcodes that push `value`."""
    match value:
        case Raw():
            return bytes(value)
        case Name(module, name):
            return f"c{module}\n{name}\n".encode()
        case Call(function, args):
            return ops(function) + ops(args) + b"R"
        case Build(target, state):
            return ops(target) + ops(state) + b"b"
        case Persistent(reference):
            return ops(reference) + b"Q"
        case None | bool():
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case int():
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8b" + struct.pack("<i", len(data)) + data
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case bytes():
            return b"B" + struct.pack("<I", len(value)) + value
        case tuple():
            return b"(" + b"".join(map(ops, value)) + b"t"
        case list():
            return b"](" + b"".join(map(ops, value)) + b"e"
        case dict():
            return b"}(" + b"".join(ops(key) + ops(item) for key, item in value.items()) + b"u"
    raise TypeError(value)


def dumps(value):
    return b"\x80\x04" + ops(value) + b"."


FLOAT32 = Name("torch", "FloatStorage")
REBUILD = Name("torch._utils", "_rebuild_tensor_v2")


def storage(key, numel, kind="FloatStorage", module="torch"):
    return Persistent(("storage", Name(module, kind), key, "cpu", numel))


def tensor(key, numel, size, stride, offset=0, kind="FloatStorage"):
    return Call(REBUILD, (storage(key, numel, kind), offset, size, stride, False, {}))


SOUND = tensor("0", 6, (6,), (1,))  # needs a storage "0" of 24 bytes


def attacks(marker):
    """Return name -> (value whose pickle would create the file `marker`, whether plain `pickle` falls for it)."""
    touch, create = f"touch {marker}", f"open({str(marker)!r}, 'w')"
    system, getattr_ = Name("os", "system"), Name("builtins", "getattr")
    os_module = Call(Name("importlib", "import_module"), ("os",))
    made = Call(Name("builtins", "type"), ("X", (), {"__setstate__": system}))
    ndarray = Call(Name("numpy.core.multiarray", "_reconstruct"), (Name("numpy", "ndarray"), (0,), b"b"))
    objects = Build(Call(Name("numpy", "dtype"), ("O8", False, True)), (3, "|", None, None, None, -1, -1, 63))
    text = ops(touch)
    return {
        "posix.system": (Call(Name("posix", "system"), (touch,)), True),
        "os.system": (Call(system, (touch,)), True),
        "os.system, textual pickle": (Raw(f"cos\nsystem\n(V{touch}\ntR".encode()), True),
        "os.system by STACK_GLOBAL": (Raw(ops("os") + ops("system") + b"\x93" + text + b"\x85R"), True),
        "dotted STACK_GLOBAL": (Raw(ops("pathlib") + ops("os.system") + b"\x93" + text + b"\x85R"), True),
        "INST": (Raw(b"(" + text + b"ios\nsystem\n"), True),
        "OBJ": (Raw(b"(" + ops(system) + text + b"o"), True),
        "eval": (Call(Name("builtins", "eval"), (create,)), True),
        "exec, Python 2 name": (Call(Name("__builtin__", "exec"), (create,)), False),
        "Popen": (Call(Name("subprocess", "check_call"), (["touch", str(marker)],)), True),
        "getattr chain": (Call(Call(getattr_, (os_module, "system")), (touch,)), True),
        "list of map": (Call(Name("builtins", "list"), (Call(Name("builtins", "map"), (system, [touch])),)), True),
        "__setstate__": (Build(Call(made, ()), touch), True),
        "partial": (Call(Call(Name("functools", "partial"), (system, touch)), ()), True),
        "pickle in pickle": (Call(Name("_pickle", "loads"), (dumps(Call(system, (touch,))),)), True),
        "as a dict's value": ({"w": {"x": [Call(system, (touch,))]}}, True),
        "in OrderedDict's items": (Call(Name("collections", "OrderedDict"), ([["a", Call(system, (touch,))]],)), True),
        "as defaultdict's factory": (Call(Name("collections", "defaultdict"), (system,)), False),
        "as _codecs.encode's codec": (Call(Name("_codecs", "encode"), ("x", "rot13")), False),
        "NEWOBJ": (Raw(ops(Name("subprocess", "Popen")) + ops((touch,)) + b"\x81"), False),
        "NEWOBJ_EX": (Raw(ops(Name("subprocess", "Popen")) + ops((touch,)) + ops({"shell": True}) + b"\x92"), False),
        "copyreg": (Call(Name("copy_reg", "__newobj__"), (Name("subprocess", "Popen"), touch)), False),
        "extension registry": (Raw(b"\x82\x01" + text + b"\x85R"), False),
        "state of a tensor": (Build(tensor("0", 6, (6,), (1,)), {"__class__": system}), False),
        "state of our function": (
            Build(Name("mindrepvgg.weights.torchfile", "is_torch_file"), (None, {"__defaults__": (1,)})), False),
        "state of the rebuild function": (Build(REBUILD, (None, {"__code__": system})), False),
        "rebuild of a type": (
            Call(Name("torch._tensor", "_rebuild_from_type_v2"), (system, system, (touch,), {})), False),
        "rebuild of a storage": (Call(REBUILD, (Call(system, (touch,)), 0, (1,), (1,), False, {})), False),
        "hooks": (Call(REBUILD, (storage("0", 6), 0, (6,), (1,), True, {0: system})), False),
        "module source": (Persistent(("module", system, "x.py", create)), False),
        "storage type": (Persistent(("storage", system, "0", "cpu", 6)), False),
        "object array": (Build(ndarray, (1, (1,), objects, False, [Call(system, (touch,))])), True),
        "torch.load in it": (Call(Name("torch.storage", "_load_from_bytes"), (dumps(Call(system, (touch,))),)), False),
    }  # fmt: skip


def doubled(seed, times, memo=b"q\0"):
    """Return opcodes of `seed` paired with itself `times` times over: 2^times leaves, built from a few bytes."""
    return Raw(ops(seed) + b"".join(memo + b"h\0\x86" for _ in range(times)))


REBUILD_TYPE = ops(Name("torch._tensor", "_rebuild_from_type_v2"))
BOMBS = {
    "LONG_BINPUT": Raw(b"Nr\xff\xff\xff\xff"),
    "PUT": Raw(b"Np999999999999999999\n"),
    "BINBYTES8": Raw(b"\x8e" + struct.pack("<Q", 1 << 40)),
    "BINBYTES8, 63 bits": Raw(b"\x8e" + struct.pack("<Q", (1 << 63) - 1)),
    "BINUNICODE8": Raw(b"\x8d" + struct.pack("<Q", 1 << 35)),
    "BYTEARRAY8": Raw(b"\x96" + struct.pack("<Q", 1 << 40)),
    "BINBYTES": Raw(b"B\xff\xff\xff\xff"),
    "LONG4": Raw(b"\x8b\xff\xff\xff\x7f"),
    "LONG4, negative": Raw(b"\x8b\xff\xff\xff\xff"),
    "FRAME": Raw(b"\x95" + struct.pack("<Q", 1 << 62) + b"\x8e" + struct.pack("<Q", 1 << 62)),
    "LONG, textual": Raw(b"L" + b"9" * 1_000_000 + b"L\n"),
    "deep lists": Raw(b"]" * 10_000 + b"a" * 9_999),
    "deep tuples": Raw(b")" + b"\x85" * 10_000),
    "deep tuple as a key": Raw(b"})" + b"\x85" * 10_000 + b"Ns"),
    "deep tuple in a set": Raw(b"\x8f()" + b"\x85" * 10_000 + b"\x90"),
    "deep opaque": Raw(b"cos\nsystem\n" * 5_000 + b")R" + b"\x85R" * 4_999),
    "deep marks": Raw(b"(" * 10_000),
    "deep rebuild": Raw(REBUILD_TYPE + (b"(" + REBUILD_TYPE + b"N") * 2_000 + b")" + b"Nt" * 2_000 + b"R"),
    "doubled tuples": doubled((), 60),
    "doubled tuple as a key": Raw(b"}" + doubled((), 60) + b"Ns"),
    "a list in itself": Raw(b"]q\0h\0a"),
    "a dict in itself": Raw(b"}q\0Nh\0s"),
    "copies of one set": Raw(ops(list(range(20_000))) + b"q\0" + b"(" + (
        ops(Name("builtins", "set")) + b"h\0\x85R") * 100 + b"l"),
    "copies of one string": Raw(ops(Name("_codecs", "encode")) + ops(("x" * 1_000_000, "latin1")) + b"q\0R" + (
        ops(Name("_codecs", "encode")) + b"h\0R") * 500 + b"\x86"),
    "colliding keys": Raw(b"}(" + b"".join(ops(i * (2**61 - 1)) + b"N" for i in range(2_000)) + b"u"),
    "endless integers as a shape": tensor("0", 6, Raw(ops((2**8_000_000,) * 3)), (1, 1, 1)),
    "expanded tensor": tensor("0", 6, (10**12,), (0,)),
    "expanded tensors": Raw(b"".join(ops(tensor("0", 6, (10**6, 6), (0, 1))) for _ in range(20)) + b"\x87"),
    "empty but vast": tensor("0", 6, (0, 2**62, 2**62), (1, 1, 1)),
    "vast storage": storage("0", 10**12),
    "zeros by bytearray": Call(Name("builtins", "bytearray"), (10**12,)),
    "zeros by numpy": Call(Name("numpy", "zeros"), (10**12,)),
    "vast range": Call(Name("builtins", "tuple"), (Call(Name("builtins", "range"), (10**12,)),)),
}  # fmt: skip
