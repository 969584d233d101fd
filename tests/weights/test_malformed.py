"""Damaged files and files that are no checkpoint: one line, status 2, and nothing written.

What cannot be noticed is stated as well: PyTorch's legacy form, pickles, and the .safetensors and .ckpt files of other
writers carry no checksum, so that a flipped bit inside a weight is another weight; that one number and no other.
"""

import io
import os
import pickle
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from support import FROZEN, contents, paired, weights
from support.foreign import theirs, write

from mindrepvgg import load_weights, save_checkpoint
from mindrepvgg.weights.load import import_weights

pytestmark = pytest.mark.usefixtures("pynative_mode")


# Container and writer of a file, and whether a checksum guards its weights.
GUARDED = {
    "zip": True,
    "legacy": False,
    "safetensors": False,
    "ckpt": False,
    "pickle": False,
    "ours.safetensors": True,
    "ours.ckpt": True,
}
KINDS = pytest.mark.parametrize("kind", GUARDED)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The bytes of a small network's file of every kind, and the network's weights."""
    folder = tmp_path_factory.mktemp("files")
    found = {}
    for kind in GUARDED:
        if kind.startswith("ours"):
            save_checkpoint(load_weights(folder / "zip"), folder / kind, epoch=3)
        else:
            dialect = {"safetensors": "timm", "ckpt": "mindcv", "pickle": "basecls"}.get(kind, "official")
            write(folder / kind, theirs(dialect, "plain"), kind)
        found[kind] = (folder / kind).read_bytes()
    return found, weights(load_weights(folder / "zip"))


@pytest.fixture
def convert(call, tmp_path):
    """A function (content, *options) -> weights: converts a file with this content.

    None where it was refused, in one line with status 2, and without a trace in the folder.
    """
    path, out = tmp_path / "given", tmp_path / "out.ckpt"

    def run(content, *options):
        path.write_bytes(content)
        before = contents(tmp_path)
        status, printed, err = call("convert", path, out, *options)
        if status == 0:
            assert err == ""
            found = weights(load_weights(out, allow_nonfinite=True))
            out.unlink()
            return found
        assert status == 2
        assert (err[:7], err.count("\n"), err[-1]) == ("error: ", 1, "\n"), err
        assert str(path) in err
        assert len(err) < 1000
        assert "Traceback" not in printed + err
        assert contents(tmp_path) == before
        return None

    return run


@KINDS
def test_whole_files_are_read(files, convert, kind):
    """Negative control of every test below."""
    found, expected = convert(files[0][kind], "--form", "train"), files[1]
    assert {n: a.tobytes() for n, a in found.items()} == {n: a.tobytes() for n, a in expected.items()}


def test_a_whole_file_is_fused(files, convert):
    assert convert(files[0]["zip"]) is not None


@KINDS
def test_truncated_at_fifty_places(files, convert, kind):
    content = files[0][kind]
    for length in np.linspace(1, len(content) - 1, 50).astype(int):
        assert convert(content[:length]) is None, f"{length} of {len(content)} bytes"


def outside_the_weights(content, expected):
    """The positions of the bytes in a file that belong to no weight: names, shapes, padding, checksums."""
    outside = np.ones(len(content), bool)
    for array in expected.values():
        start = content.find(array.tobytes())
        outside[start : start + array.nbytes] = False
    return np.flatnonzero(outside)


@KINDS
def test_thirty_flipped_bits(files, convert, call, tmp_path, kind):
    """Refused, or without effect (padding between members, say); without a checksum, at most one number differs."""
    content, expected = files[0][kind], files[1]
    rng, refused = np.random.default_rng(0), 0
    anywhere, outside = rng.integers(len(content), size=15), rng.choice(outside_the_weights(content, expected), 15)
    for place, bit in zip([*anywhere, *outside], rng.integers(8, size=30), strict=True):
        flipped = bytearray(content)
        flipped[place] ^= 1 << bit
        path = tmp_path / "flipped"
        path.write_bytes(flipped)
        if call("convert", path, "--inspect", "--allow_nonfinite")[0]:
            assert convert(bytes(flipped), "--allow_nonfinite") is None
            refused += 1
            continue
        imported = import_weights(path, allow_nonfinite=True)
        found = imported.recognised.arrays
        assert found.keys() == expected.keys()
        assert (imported.description and imported.description.epoch) == (3 if kind.startswith("ours") else None)
        changed = sum(np.count_nonzero(found[name].view(np.int32) != a.view(np.int32)) for name, a in expected.items())
        assert changed <= (0 if GUARDED[kind] else 1), f"bit {bit} of byte {place}: {changed} numbers differ"
    assert refused > (25 if kind.startswith("ours") else 7), refused


@pytest.mark.compat
@pytest.mark.parametrize(("kind", "added"), paired(list(GUARDED), [b"\0", b"more", bytes(1000)]))
def test_something_behind_the_end(files, convert, kind, added):
    """Refused, or without effect: torch.load too takes what stands behind the legacy form's storages."""
    found, expected = convert(files[0][kind] + added, "--form", "train"), files[1]
    assert found is None or all(np.array_equal(found[name], array) for name, array in expected.items())


# ------------------------------------------------------------------------------------------------- other contents


def zipped(**members):
    """The bytes of a zip with these members; `__` stands for the slash."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/"), data)
    return content.getvalue()


def tarred():
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        info = tarfile.TarInfo("weights.pth")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    return content.getvalue()


NO_CHECKPOINTS = {
    "empty": (b"", "is empty"),
    "text": (b"not a checkpoint\n", "damaged or no checkpoint"),
    "page": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "damaged or no checkpoint"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "damaged or no checkpoint"),
    "zeros": (bytes(4096), "damaged or no checkpoint"),
    "noise": (np.random.default_rng(0).bytes(4096), "damaged or no checkpoint"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), "damaged or no checkpoint"),
    "tar": (tarred(), "damaged or no checkpoint"),
    "zip of text": (zipped(readme="text"), "damaged or no checkpoint"),
    "empty zip": (zipped(), "damaged or no checkpoint"),
    "zip without its pickle": (zipped(a__data__0=b"", a__version="3"), "damaged or no checkpoint"),
    "two in a zip": (zipped(**{"a/data.pkl": b"\x80\x02N.", "b/data.pkl": b"\x80\x02N."}), "2 members */data.pkl"),
    "nothing in a zip": (zipped(**{"a/data.pkl": b"\x80\x02N."}), "holds a NoneType, expected weights by name"),
    "no dict": (pickle.dumps([1, 2, 3]), "holds a list, expected weights by name"),
    "empty dict": (pickle.dumps({}), "holds no weights by name"),
}  # fmt: skip


@pytest.mark.compat
@pytest.mark.parametrize(("name", "suffix"), paired(list(NO_CHECKPOINTS), ["ckpt", "pth", "safetensors"]))
def test_what_is_no_checkpoint(call, tmp_path, name, suffix):
    """Whatever it is called, and whichever command is given it."""
    content, text = NO_CHECKPOINTS[name]
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(content)
    before = contents(tmp_path)
    for command in (
        ("convert", path, tmp_path / "out.ckpt"),
        ("convert", path, "--inspect"),
        ("validate", "--ckpt_path", path),
        ("validate", "--ckpt_path", path, "--cross_check"),
    ):
        status, out, err = call(*command)
        assert (status, out) == (2, "")
        assert err.startswith(f"error: {path}")
        assert text in err
        assert err.count("\n") == 1
        assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "command",
    [
        "validate net.ckpt --engine onnxruntime", "convert net.onnx out.ckpt", "summary net.onnx",
        "convert net.ckpt --inspect", "predict net.ckpt net.ckpt", "export net.onnx out.mindir",
        "train -c quickstart --pretrained net.onnx --ckpt_save_dir run", "train --resume net.onnx",
    ],
)  # fmt: skip
def test_an_onnx_file_is_told_from_a_checkpoint(call, tmp_path, monkeypatch, command):
    """By every verb, and whatever it is called; by the Python functions as well, which the verbs call."""
    monkeypatch.chdir(tmp_path)
    path = next(word for word in command.split() if word.startswith("net"))
    shutil.copy(FROZEN / "float32.onnx", path)
    status, out, err = call(*command.split())
    assert (status, out) == (2, "")
    assert err == (
        f"error: {path} is an ONNX file, for inference, and no checkpoint: validate, predict and benchmark take it as "
        ".onnx, and in Python mindrepvgg.deployment.engine.OnnxEngine; give the checkpoint that it was exported from, "
        "deploy.ckpt\n"
    )
    assert contents(tmp_path).keys() == {path}


def test_a_zip_that_lacks_a_member(files, convert):
    with zipfile.ZipFile(io.BytesIO(files[0]["zip"])) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (root,) = {name.partition("/")[0] for name in members}
    for missing in ("data.pkl", "data/0", "data/50", "version", "byteorder"):
        rest = {name: content for name, content in members.items() if name != f"{root}/{missing}"}
        assert len(rest) == len(members) - 1
        refused = convert(zipped(**rest), "--form", "train") is None
        assert refused is missing.startswith("data"), missing


@pytest.mark.parametrize(("kind", "value"), paired(list(GUARDED), [np.nan, np.inf]))
def test_numbers_that_are_none(tmp_path, convert, kind, value):
    container = kind.rpartition(".")[2]
    tensors = {name: tensor.clone() for name, tensor in theirs("mindrepvgg", "plain").items()}
    tensors["stage2.0.rbr_dense.conv.weight"][1, 2, 0, 0] = value
    path = write(tmp_path / "weights", tensors, container)
    if kind.startswith("ours"):
        save_checkpoint(load_weights(path, allow_nonfinite=True), tmp_path / kind)
        path = tmp_path / kind
    assert convert(path.read_bytes()) is None
    found = convert(path.read_bytes(), "--form", "train", "--allow_nonfinite")
    assert np.array_equal(found["stage2.0.rbr_dense.conv.weight"][1, 2, 0, 0], value, equal_nan=True)


class Exploit:
    """What PyTorch would run on loading."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("container", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("place", ["beside", "instead"])
def test_nothing_in_a_file_is_run(tmp_path, convert, container, place):
    """Beside the weights it is inert; in place of the weights it is refused."""
    marker = tmp_path / "marker"
    exploit = Exploit(f"touch {marker}")
    state = {name: tensor.numpy() for name, tensor in theirs("official", "plain").items()}
    content = {"state_dict": state, "hook": exploit} if place == "beside" else exploit
    if container == "pickle":
        given = pickle.dumps(content)
    else:
        stream = io.BytesIO()
        torch.save(content, stream, _use_new_zipfile_serialization=container == "zip")
        given = stream.getvalue()
    assert (convert(given, "--form", "train") is None) is (place == "instead")
    assert not marker.exists()
    if container == "pickle":  # Negative control: the file does run something where it is loaded carelessly.
        pickle.loads(given)
        assert marker.exists()
