"""Damaged and hostile checkpoints: .ckpt, .safetensors, torch's zip and legacy form, pickles."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from hypothesis import strategies as st
from mindspore.train.checkpoint_pb2 import Checkpoint
from support.hostile_pickles import BOMBS, Build, Call, Name, Persistent, Raw, attacks, dumps, ops, storage, tensor

from fuzz import samples
from fuzz.cases import Case, json_values, mixed, mutated, sizes
from mindrepvgg.cli import verbs
from mindrepvgg.weights.checkpoint import load_checkpoint
from mindrepvgg.weights.load import import_weights

MARKER = "/tmp/mindrepvgg-fuzz-marker-that-nobody-makes"


def _load(path):
    import_weights(path, allow_nonfinite=True).network()


def _sealed(path):
    """What one flipped bit may do to a file of ours: nothing, or it is refused."""
    suffix = path[1:]
    arrays, description = samples.described()
    found = samples.read_weights_of(Path(path).read_bytes(), suffix)
    assert found.description == description, "another description passes"
    assert {n: a.tobytes() for n, a in found.arrays.items()} == {n: a.tobytes() for n, a in arrays.items()}


DOORS = {
    "load": _load,
    "checkpoint": load_checkpoint,
    "sealed": _sealed,
    "inspect": lambda path: verbs.main(["convert", path, "--inspect"]),
    "convert": lambda path: verbs.main(["convert", path, "out.safetensors"]),
    "resume": lambda path: verbs.main(["train", "--resume", path, "--show_config"]),
}


@st.composite
def _flipped(draw):
    """One bit of a file of ours."""
    suffix = draw(st.sampled_from([".ckpt", ".safetensors"]))
    (content,) = samples.checkpoints()[suffix]
    # Names, types, shapes and the description stand at the front; most of the rest are weights.
    place = draw(st.integers(0, min(4000, len(content) - 1)) | st.integers(0, len(content) - 1))
    bit = 1 << draw(st.integers(0, 7))
    return Case(
        "sealed", f"x{suffix}", {f"x{suffix}": content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]}
    )


@st.composite
def _safetensors(draw):
    """A header that lies about names, types, shapes and places."""
    content = draw(st.sampled_from(samples.checkpoints()[".plain.safetensors"]))
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    for name in draw(st.lists(st.sampled_from(list(header)), min_size=1, max_size=3, unique=True)):
        kind = draw(st.sampled_from(["dtype", "shape", "data_offsets", "entry", "metadata"]))
        if kind == "dtype":
            types = ["F16", "F64", "I8", "BOOL", "BF16", "F8_E4M3", "C64", "", "f32", 3, None]
            header[name][kind] = draw(st.sampled_from(types))
        elif kind in header[name]:
            header[name][kind] = draw(st.lists(sizes(), max_size=5) | json_values())
        elif kind == "entry":
            header[draw(st.text(max_size=200))] = draw(json_values())
        else:
            header["__metadata__"] = draw(json_values() | st.dictionaries(st.just("mindrepvgg.description"), st.text()))
    text = json.dumps(header).encode()
    size = len(text) if draw(st.booleans()) else draw(sizes()) % 2**64
    return struct.pack("<Q", size) + text + content[8 + length :]


@st.composite
def _protobuf(draw):
    """A .ckpt whose messages lie about names, types, shapes and pieces."""
    message = Checkpoint()
    message.ParseFromString(draw(st.sampled_from(samples.checkpoints()[".plain.ckpt"])))
    for _ in range(draw(st.integers(1, 3))):
        value = message.value[draw(st.integers(0, len(message.value) - 1))]
        kind = draw(st.sampled_from(["dims", "type", "tag", "content", "twice", "bare", "description"]))
        if kind == "dims":
            value.tensor.dims[:] = draw(st.lists(sizes().map(lambda n: min(n, 2**63 - 1)), max_size=70))
        elif kind == "type":
            types = ["Float16", "Bool", "BFloat16", "Int64", "str", "", "float32", "QInt4x2", "x" * 5000]
            value.tensor.tensor_type = draw(st.sampled_from(types))
        elif kind == "tag":
            value.tag = draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=300) | st.just("y" * 10**6))
        elif kind == "content":
            value.tensor.tensor_content = draw(st.binary(max_size=64))
        elif kind == "twice":
            message.value.add().CopyFrom(value)
        elif kind == "bare":
            message.value.add().tag = value.tag
        else:
            value.tag = "mindrepvgg.description"
            value.tensor.tensor_type = "UInt8"
            text = draw(json_values().map(json.dumps) | st.sampled_from(["[" * 10**5, "{", '{"a":' * 3000, "9" * 5000]))
            value.tensor.tensor_content = text.encode()
            value.tensor.dims[:] = [len(text.encode())]
    return message.SerializePartialToString()  # required fields may be missing


def _programs():
    """Pickles that no program would write, bombs and attacks among them."""
    names = st.sampled_from([
        *("os system", "builtins eval", "builtins getattr", "builtins type", "torch.nn Module"),
        *("collections OrderedDict", "copyreg _reconstructor", "builtins set", "builtins bytearray"),
        *("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "torch FloatStorage", "torch Size"),
        *("torch._tensor _rebuild_from_type_v2", "numpy dtype", "numpy ndarray", "numpy.core.multiarray _reconstruct"),
        *("numpy.core.multiarray scalar", "_codecs encode"),
    ]).map(lambda name: Name(*name.split()))  # fmt: skip
    whole = st.builds(tensor, st.sampled_from(["0", "1", "x"]), sizes(), st.lists(sizes(), max_size=4).map(tuple),
                      st.lists(sizes(), max_size=4).map(tuple), sizes())  # fmt: skip
    bombs = [*BOMBS.values(), *(value for value, _ in attacks(MARKER).values())]
    leaves = st.one_of(st.none(), st.booleans(), st.integers(), sizes(), st.text(max_size=10), st.binary(max_size=10),
                       names, whole, st.builds(storage, st.text("01x", max_size=2), sizes()), st.sampled_from(bombs),
                       st.binary(max_size=12).map(Raw))  # fmt: skip

    def inner(value):
        key = st.text(max_size=8) | st.sampled_from(["state_dict", "model", "stage0.rbr_dense.conv.weight"]) | value
        pairs = st.lists(st.tuples(key, value), max_size=4)
        mappings = pairs.map(lambda found: Raw(b"}(" + b"".join(ops(k) + ops(v) for k, v in found) + b"u"))
        many = st.lists(value, max_size=4)
        calls = st.builds(Call, names | value, many.map(tuple) | value)
        return mappings | many | many.map(tuple) | calls | st.builds(Build, value, value) | st.builds(Persistent, value)

    return st.recursive(leaves, inner, max_leaves=10).map(dumps)


def cases():
    """Mutations of whole files, lies in their headers, and pickles made up."""
    storages = [bytes(24), bytes(range(24))]
    programs = st.one_of(
        _programs(), _programs().map(lambda data: samples.zipped(data, storages)),
        _programs().map(lambda data: samples.legacy(data, storages)),
    )  # fmt: skip
    kinds = st.sampled_from(list(samples.checkpoints()))
    broken = kinds.flatmap(lambda kind: mutated(samples.checkpoints()[kind]))
    content = mixed((3, broken), (1, _safetensors()), (1, _protobuf()), (2, programs))
    door = st.sampled_from(["load", "load", "load", "checkpoint", "inspect", "resume", "convert"])
    file = st.builds(lambda door, data: Case(door, "x.ckpt", {"x.ckpt": data}), door, content)
    return mixed((4, file), (1, _flipped()))
