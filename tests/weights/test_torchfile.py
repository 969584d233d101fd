"""`weights.torchfile` against damage, and against files that attack the reader.

Files that no PyTorch would write are put together by `hostile_pickles`. What PyTorch writes is in
test_torchfile_as_torch.py.
"""

import argparse
import io
import os
import pickle
import random
import struct
import sys
import zipfile

import numpy as np
import pytest
from support import assert_same
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
    tensor,
)
from support.memory import peak_of_reading
from support.readers import cheap_outcome, outcome
from support.torch_containers import FORMS, LEGACY_HEAD, SYS_INFO, WRITE, refusal, torch_save, write_legacy, write_zip

from mindrepvgg.errors import CheckpointError
from mindrepvgg.weights.torchfile import is_torch_file, read_torch_file

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
            torch = pytest.importorskip("torch")
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
