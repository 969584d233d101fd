"""`mindrepvgg.weights.pickles`: against pickle itself in every protocol, against damage, and against hostile pickles.

`test_torchfile` sends the same attacks and bombs through the interpreter inside PyTorch's containers.
"""

import argparse
import collections
import functools
import json
import os
import pathlib
import pickle
import random
import struct
import sys
import tracemalloc

import numpy as np
import pytest
from support import BOTH_FORMS, assert_same, readers
from support.dialect_names import VARIANTS, random_arrays, shapes_in
from support.hostile_pickles import BOMBS, Call, Name, Persistent, Raw, attacks, dumps, ops
from support.memory import peak_of_reading
from support.readers import cheap_outcome, outcome

from mindrepvgg.errors import CheckpointError
from mindrepvgg.weights import pickles
from mindrepvgg.weights.containers import read_weights
from mindrepvgg.weights.load import import_weights
from mindrepvgg.weights.pickles import Opaque, is_pickle_file, read_pickle_file
from mindrepvgg.weights.rename import from_ours
from mindrepvgg.weights.torchfile import is_torch_file

PROTOCOLS = pytest.mark.parametrize("protocol", range(6))


@pytest.fixture
def write(tmp_path):
    """Write bytes, or the pickle of a value, and give the path."""

    def write_file(content, protocol=pickle.DEFAULT_PROTOCOL, name="weights.pkl"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
        return path

    return write_file


refusal = functools.partial(readers.refusal, read_pickle_file)


# --------------------------------------------------------------------------------------------------- what is read


@PROTOCOLS
def test_numeric_arrays_are_read_bit_for_bit(write, protocol):
    a = np.random.default_rng(0).integers(0, 256, 24 * 16, np.uint8)
    dtypes = ("?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8", "c16")
    value = {dtype: (a % 2 if dtype == "?" else a).view(dtype).reshape(-1, 4) for dtype in dtypes}
    value |= {
        "F": np.asfortranarray(value["f4"]),
        "strided": value["f4"][::3, 1:],
        "big-endian": value["f8"].astype(">f8"),
    }
    value |= {"0-d": np.array(2.5), "empty": np.empty((3, 0, 2), np.float16), "scalar": np.float32(1.5)}
    expected = {name: np.array(array, array.dtype.newbyteorder("="), order="C") for name, array in value.items()}
    expected["scalar"] = 1.5
    path = write(value, protocol)
    assert is_pickle_file(path)
    assert not is_torch_file(path)
    assert_same(read_pickle_file(path), expected)


@PROTOCOLS
def test_an_array_stored_twice_is_one(write, protocol):
    array = np.arange(3.0)
    got = read_pickle_file(write({"a": array, "b": [array]}, protocol))
    assert got["b"][0] is got["a"]


@PROTOCOLS
@pytest.mark.parametrize("kind", [dict, collections.OrderedDict])
def test_containers_text_and_numbers(write, protocol, kind):
    value = kind(
        state_dict=kind({"a.b": [1, -1, 2**70, 0.1, None, True, False, ()], "é猫": (1, (2, 3)), "": b"\0\xff"}),
        acc1=72.4,
        many=list(range(3000)),
        sets=({1, "a"}, frozenset({2})),
        raw=bytearray(b"ab"),
    )
    path = write(value, protocol)
    assert is_pickle_file(path)
    expected = dict(value, state_dict=dict(value["state_dict"]), raw=b"ab")
    assert_same(read_pickle_file(path), expected)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["Tensor", "Parameter"])
def test_megengine_tensors_are_their_arrays(write, monkeypatch, protocol, kind):
    class Stand:  # pickles as MegEngine 1 does
        def __getnewargs__(self):
            return self.array, np.float32, "xpux"

        def __getstate__(self):
            return {}

    Stand.__module__, Stand.__qualname__ = "megengine.tensor", kind
    monkeypatch.setitem(sys.modules, "megengine", argparse.Namespace())
    monkeypatch.setitem(sys.modules, "megengine.tensor", argparse.Namespace(**{kind: Stand}))
    plain, quantised = Stand(), Stand()
    plain.array = np.arange(6, dtype=np.float32).reshape(2, 3)
    quantised.array = np.arange(6).astype(np.dtype(np.uint8, metadata={"mgb_dtype": {"scale": 0.1}}))
    got = read_pickle_file(write({"a": plain, "b": plain, "q": quantised}, protocol))
    assert_same(got["a"], plain.array)
    assert got["b"] is got["a"]
    assert (type(got["q"]), got["q"].name) == (Opaque, f"megengine.tensor.{kind}")


@PROTOCOLS
def test_arrays_that_are_not_numeric_become_opaque(write, protocol):
    value = {
        "objects": np.array([None, {}], object), "text": np.array(["a", "b"]), "bytes": np.array([b"a"]),
        "dates": np.array(["2021-01-11"], "M8[D]"), "records": np.zeros(2, [("a", "f4"), ("b", "i4")]),
        "void": np.zeros(2, "V3"), "metadata": np.zeros(2, np.dtype("i4", metadata={"a": 1})),
        "scalar": np.datetime64("2021-01-11"), "weight": np.ones(2),
    }  # fmt: skip
    got = read_pickle_file(write(value, protocol))
    assert_same(got.pop("weight"), np.ones(2))
    assert {type(item) for item in got.values()} == {Opaque}


@PROTOCOLS
def test_other_classes_become_opaque(write, protocol):
    value = {"args": argparse.Namespace(lr=0.1), "path": pathlib.PurePosixPath("a/b"), "class": collections.deque}
    got = read_pickle_file(write(value, protocol))
    assert {type(item) for item in got.values()} == {Opaque}
    if protocol >= 2:
        assert (got["args"].name, got["args"].state) == ("argparse.Namespace", {"lr": 0.1})


# ------------------------------------------------------------------------------------- a RepVGG as basecls saves it


@BOTH_FORMS
@pytest.mark.parametrize("kind", [kind for kind, variant in VARIANTS.items() if not variant.aux_heads])
def test_weights_of_basecls_come_back_bit_for_bit(write, kind, deploy):
    variant = VARIANTS[kind]
    raw, averaged = (random_arrays(shapes_in("basecls", variant, deploy, 7), seed) for seed in (0, 1))
    assert any(array.ndim == 5 for array in raw.values()) == (variant.group_size > 1)

    def check(content, weights, wrapper, expected):
        imported = import_weights(write(content, name="best_model"), weights)
        found = imported.recognised
        assert (imported.container, imported.wrapper, imported.weights) == ("pickle", wrapper, weights)
        assert (found.variant.to_dict(), found.deploy, found.num_classes) == (variant.to_dict(), deploy, 7)
        assert_same(from_ours(found.arrays, "basecls", found.variant), expected)

    check({"state_dict": collections.OrderedDict(raw), "acc1": np.float64(72.4)}, "raw", "state_dict", raw)
    check(raw, "raw", "", raw)
    training = {"model": raw, "ema": averaged, "optimizer": {"param_groups": [{"lr": 0.1}]}, "progress": [3, 100]}
    check(training, "raw", "model, ema", raw)
    check(training, "ema", "model, ema", averaged)


def test_a_pickled_network_is_refused_by_name(write):
    content = dumps(Call(Name("basecls.models.repvgg", "RepVGG"), ()))
    with pytest.raises(CheckpointError, match=r"holds a pickled network \(basecls\.models\.repvgg\.RepVGG\)"):
        import_weights(write(content))


# ------------------------------------------------------------------------------------------------ unusable files


def test_missing_empty_folder_and_pipe(tmp_path, write):
    assert refusal(tmp_path / "none.pkl") == "does not exist, expected a checkpoint; check the path"
    assert "is not a pickle" in refusal(write(b""))
    assert refusal(tmp_path) == "is a folder, expected a checkpoint"
    os.mkfifo(tmp_path / "pipe.pkl")
    assert refusal(tmp_path / "pipe.pkl") == "is a pipe, expected a checkpoint"
    assert not any(is_pickle_file(tmp_path / name) for name in ("none.pkl", "weights.pkl", "pipe.pkl", "."))


@pytest.mark.parametrize(
    "content",
    [
        b"<!DOCTYPE html>", b"version https://git-lfs.github.com/spec/v1", b"config: x\nlr: 1\n", b"(a)", b"PK\x03\x04",
        b"\x0a\x1c\x0a\x0bconv.weight", b"\x89HDF\r\n\x1a\n", bytes(64), b"\x80\x7f}.",
    ],
)  # fmt: skip
def test_other_content_is_no_pickle(write, content):
    assert not is_pickle_file(write(content))
    assert "is not a pickle" in refusal(write(content))


@pytest.mark.parametrize("length", [0x0280, 0x0580, 0x7D0280, 0x717D, 0x287D, 0x6428])
def test_a_safetensors_header_whose_length_spells_a_pickle_is_none(write, length):
    """The file begins with its header's length: 0x717D reads as the operations EMPTY_DICT, BINPUT 0."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}).encode().ljust(length)
    path = write(struct.pack("<Q", length) + header + bytes(12))
    assert not is_pickle_file(path)
    assert_same(read_weights(path).arrays, {"w": np.zeros(3, np.float32)})


def test_bytes_behind_the_pickle_are_refused(write):
    content = pickle.dumps({"a": 1})
    assert "goes on after its pickle" in refusal(write(content + b"\0"))
    assert "goes on after its pickle" in refusal(write(content * 2))


@pytest.fixture(scope="module")
def content():
    """The bytes of a small file of weights."""
    rng = np.random.default_rng(0)
    weights = {f"stage{i}.weight": rng.normal(size=(4, 3)).astype(np.float32) for i in range(4)}
    return pickle.dumps({"state_dict": collections.OrderedDict(weights), "acc1": np.float64(72.4)}, 4)


def test_a_truncated_file_is_refused_wherever_it_ends(write, content):
    for end in range(len(content)):
        refusal(write(content[:end]))


def test_flipped_bytes_are_refused_or_give_plain_values(write, content):
    generator, refused = random.Random(0), 0
    for _ in range(500):
        altered = bytearray(content)
        altered[generator.randrange(len(content))] ^= generator.randrange(1, 256)
        got = outcome(read_pickle_file, write(bytes(altered)))
        if isinstance(got, CheckpointError):
            refused += 1
            assert "\n" not in str(got)
    assert refused > 100


@pytest.mark.parametrize(
    ("shape", "raw"),
    [((2,), bytes(4)), ((2,), bytes(12)), ((-2,), bytes(8)), ((2**62, 4), b""), ((0, 2**62, 2**62), b""),
     ([2], bytes(8)), ((True,), bytes(4)), ((1,) * 70, bytes(4)), ((2,), 8), ((2**8_000_000,), bytes(8)),
     (None, bytes(4))],
)  # fmt: skip
def test_an_array_whose_bytes_do_not_fit_its_shape_is_refused(write, shape, raw):
    dtype = ops(Call(Name("numpy", "dtype"), ("f4", False, True))) + ops((3, "<", None, None, None, -1, -1, 0)) + b"b"
    array = Call(Name("numpy.core.numeric", "_frombuffer"), (raw, Raw(dtype), shape, "C"))
    assert "damaged" in refusal(write(dumps({"w": array})))


# ------------------------------------------------------------------------------------------------- hostile files


@pytest.mark.parametrize("name", list(attacks("x")))
def test_an_attack_has_no_effect(tmp_path, write, name):
    marker = tmp_path / "marker"
    value, live = attacks(marker)[name]
    if live:  # the attack is a real one
        pickle.loads(dumps(value))
        assert marker.exists()
        marker.unlink()
    before = set(sys.modules)
    for attack in (value, {"state_dict": {"a.weight": value}}, [value, value]):
        path = write(dumps(attack))
        assert "\n" not in str(outcome(read_pickle_file, path))
        assert "\n" not in str(outcome(import_weights, path))
    assert not marker.exists()
    assert all(module.startswith("encodings.") for module in set(sys.modules) - before)


def test_what_an_attack_reads_as(write):
    got = read_pickle_file(write(dumps({"a": Call(Name("os", "system"), ("ls",)), "b": 1})))
    assert got["b"] == 1
    assert (got["a"].name, got["a"].args) == ("os.system", ("ls",))
    assert "EXT1" in refusal(write(dumps(Raw(b"\x82\x01"))))
    assert "outside of the pickle" in refusal(write(dumps(Persistent("0"))))


# Read without a refusal: what is only a name with arguments, or a memo's number.
INERT = {
    "LONG_BINPUT", "PUT", "deep opaque", "deep rebuild", "zeros by bytearray", "zeros by numpy", "vast range",
}  # fmt: skip


@pytest.mark.parametrize("name", list(BOMBS))
def test_a_bomb_costs_neither_memory_nor_time(write, name):
    path = write(dumps({"w": BOMBS[name]}))
    got = cheap_outcome(read_pickle_file, path)
    assert isinstance(got, CheckpointError) == (name not in INERT)


def test_one_array_s_bytes_cannot_be_multiplied(write):
    """A memo lets few operations ask for the same large array again and again."""
    frombuffer = ops(Name("numpy.core.numeric", "_frombuffer"))
    dtype = ops(Call(Name("numpy", "dtype"), ("f8", False, True))) + ops((3, "<", None, None, None, -1, -1, 0)) + b"b"
    again = frombuffer + b"(h\xf0h\xf1" + ops((1 << 20,)) + ops("C") + b"tR"
    start = ops(bytes(8 << 20)) + b"q\xf00" + dtype + b"q\xf10"
    tracemalloc.start()
    text = refusal(write(b"\x80\x04" + start + b"(" + again * 40 + b"l."))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "more memory than 20 times its size" in text
    assert peak < 300 << 20


def test_the_number_of_operations_is_bounded(write, monkeypatch):
    monkeypatch.setattr(pickles, "_MAX_OPERATIONS", 1000)
    assert "operations" in refusal(write(dumps(Raw(b"}" * 2000))))


# --------------------------------------------------------------------------------------------------------- memory


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc to see the peak of memory")
@pytest.mark.parametrize(("protocol", "times"), [(2, 3.3), (4, 2.3), (5, 2.3)])
def test_reading_takes_little_more_than_the_file_and_its_arrays(write, protocol, times):
    rng = np.random.default_rng(0)
    arrays = {f"w{i}": rng.random((1 << 16, 20), dtype=np.float32) for i in range(12)}
    size = sum(array.nbytes for array in arrays.values())
    peak, total = peak_of_reading(pickles.read_pickle_file, write(arrays, protocol))
    assert total == size
    assert peak < times * size
