"""Weights by name and address: what is downloaded when, what is checked, what is kept, and what is said."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support import randomise_bn
from support.http_server import Served

import mindrepvgg
from mindrepvgg.errors import CheckpointError, UserError
from mindrepvgg.models.parameters import network_arrays
from mindrepvgg.weights import cache, download, load, released
from mindrepvgg.weights.containers import write_weights
from mindrepvgg.weights.rename import from_ours

NAME = "repvgg_nano"
FILES = {"mmpretrain": "nano.pth", "timm": "nano.safetensors", "mindcv": "nano-6e71139d.ckpt"}
PLACES = {
    "mmpretrain": "/mm/repvgg/nano.pth",
    "timm": f"/timm/{NAME}.rvgg_in1k/resolve/main/model.safetensors",
    "mindcv": "/toolkits/nano-6e71139d.ckpt",
}
CONTENT = {name: name.encode() * 10_000 for name in PLACES}  # where nothing reads it
DIGEST = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}


def lists(digest):
    """The lists of the three sources, each with the small network."""
    return [
        released.Released(
            *(NAME, "mmpretrain", f"https://a.invalid{PLACES['mmpretrain']}", FILES["mmpretrain"], 70, 224, digest)
        ),
        released.Released(NAME, "timm", f"https://huggingface.co{PLACES['timm']}", FILES["timm"], 71, 320),
        released.Released(NAME, "mindcv", f"https://b.invalid{PLACES['mindcv']}", FILES["mindcv"], 72),
    ]


@pytest.fixture
def mirror(server, folder, monkeypatch):
    """The server as a mirror of all three; the cache's folder is empty."""
    monkeypatch.setattr(released, "RELEASED", lists(DIGEST["mmpretrain"][:8]))
    monkeypatch.setenv(released.MIRROR, server.address)
    monkeypatch.setattr(download, "PAUSES", (0,))
    server.files.update({PLACES[name]: Served(content) for name, content in CONTENT.items()})
    return server


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A network's arrays, and source -> its bytes under the names of that project."""
    folder = tmp_path_factory.mktemp("trained")
    net = randomise_bn(mindrepvgg.create_model(NAME, 10))
    arrays = {name: array.copy() for name, array in network_arrays(net).items()}
    contents = {}
    for name in PLACES:
        write_weights(folder / "made.safetensors", from_ours(arrays, name, net.variant))
        contents[name] = (folder / "made.safetensors").read_bytes()
    return arrays, contents


@pytest.fixture
def networks(mirror, trained, monkeypatch):
    """The mirror with files that hold a network."""
    arrays, contents = trained
    digest = hashlib.sha256(contents["mmpretrain"]).hexdigest()[:8]
    monkeypatch.setattr(released, "RELEASED", lists(digest))
    mirror.files.update({PLACES[name]: Served(content) for name, content in contents.items()})
    return arrays


def copied(spec):
    """The bytes that a name or address gives, where sealing is no more than copying."""
    file, weights = cache.local_file(spec, "raw", lambda wanted: shutil.copy(wanted.source, wanted.destination))
    assert weights == "raw"
    return file.read_bytes()


def refused(spec, function=copied):
    with pytest.raises((CheckpointError, UserError)) as caught:
        function(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def left(folder):
    """What the cache holds, locks aside."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return sorted(str(path.relative_to(folder)) for path in files)


def same(net, arrays):
    found = network_arrays(net)
    return found.keys() == arrays.keys() and all(np.array_equal(found[name], arrays[name]) for name in arrays)


@pytest.mark.parametrize(
    ("spec", "source"),
    [
        (NAME, "mmpretrain"),
        ("RepVGG-nano", "mmpretrain"),
        (f"timm/{NAME}", "timm"),
        (f"timm/{NAME}.rvgg_in1k", "timm"),
        ("mindcv/RepVGG-nano", "mindcv"),
    ],
)
def test_a_name_is_downloaded_once(mirror, folder, spec, source):
    assert copied(spec) == CONTENT[source]
    mirror.files.clear()
    assert copied(spec) == CONTENT[source]
    assert mirror.requests == [(PLACES[source], None)]
    file = FILES[source]
    assert left(folder) == sorted([f"{source}/{file}.sha256", f"{source}/{Path(file).stem}.sealed.ckpt"])
    assert (folder / source / f"{file}.sha256").read_text() == f"{DIGEST[source]}  {file}\n"


def test_a_network_starts_from_weights_by_name(mirror, networks):
    assert same(mindrepvgg.create_model(NAME, 10, pretrained=True), networks)
    assert mirror.requests == [(PLACES["mmpretrain"], None)]
    net = mindrepvgg.load_weights(f"timm/{NAME}")
    assert same(net, networks)
    assert net.metadata["image_size"] == [320, 320]
    assert net.metadata["converted_from"] == FILES["timm"]
    assert net.metadata["released"] == {
        "address": f"https://huggingface.co{PLACES['timm']}",
        "sha256": hashlib.sha256(mirror.files[PLACES["timm"]].content).hexdigest(),
        "name": f"timm/{NAME}",
        "top1": 71,
    }


def test_the_command_takes_an_address(server, folder, trained, tmp_path, call):
    server.files["/a/model.safetensors?download=true"] = Served(trained[1]["timm"])
    address = f"{server.address}/a/model.safetensors?download=true"
    status, _, err = call("convert", address, tmp_path / "out.ckpt", "--form", "train")
    assert status == 0, err
    assert same(mindrepvgg.load_checkpoint(tmp_path / "out.ckpt"), trained[0])
    number = hashlib.sha256(address.encode()).hexdigest()[:12]
    assert f"addresses/{number}-model.sealed.ckpt" in left(folder)


@pytest.mark.parametrize(
    ("pretrained", "name"),
    [
        (True, "repvgg_a1"),
        ("timm", "timm/repvgg_a1"),
        ("mindcv/repvgg_a1", "mindcv/repvgg_a1"),
        ("http://x/y", "http://x/y"),
    ],
)
def test_what_the_argument_pretrained_means(pretrained, name):
    assert cache.name_of(pretrained, "repvgg_a1") == name


def test_both_arguments_at_once_and_impossible_ones_are_refused():
    with pytest.raises(UserError, match=r"got both weights \(='x.ckpt'\) and pretrained; give one of them"):
        mindrepvgg.create_model(NAME, weights="x.ckpt", pretrained=True)
    with pytest.raises(UserError, match=r"pretrained \(=3\) must be True, False, a name, an address or a file"):
        mindrepvgg.create_model(NAME, pretrained=3)


def test_a_file_in_the_current_folder_goes_before_a_name_and_a_folder_does_not(mirror, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir()
    assert copied(NAME) == CONTENT["mmpretrain"]
    (tmp_path / NAME).rmdir()
    (tmp_path / NAME).write_bytes(b"text")
    assert copied(NAME) == b"text"


@pytest.mark.parametrize("source", ["mmpretrain", "timm"])
def test_a_file_of_another_digest_is_refused_and_not_kept(mirror, folder, source):
    """By the digest in the name, and by the one that the hub tells."""
    headers = {"X-Linked-Etag": f'"{DIGEST["timm"]}"'} if source == "timm" else {}
    mirror.files[PLACES[source]] = Served(CONTENT["mindcv"], headers=headers)
    by = {"mmpretrain": f"{DIGEST[source][:8]} by its name", "timm": f"{DIGEST[source][:16]} by its server"}[source]
    assert refused(f"{source}/{NAME}") == (
        f"{mirror.address}{PLACES[source]} is not the file it should be: its SHA-256 begins {DIGEST['mindcv'][:16]}, "
        f"expected {by}; try again, or take another source (mindrepvgg weights lists them)"
    )
    assert left(folder) == []


def test_a_file_that_changed_since_its_first_download_is_refused(mirror, folder):
    copied(f"mindcv/{NAME}")
    (folder / "mindcv/nano-6e71139d.sealed.ckpt").unlink()
    mirror.files[PLACES["mindcv"]] = Served(CONTENT["timm"])
    record = folder / "mindcv/nano-6e71139d.ckpt.sha256"
    text = refused(f"mindcv/{NAME}")
    assert text.endswith(f"by {record}, which remembers the first download; remove that to take this one")
    assert left(folder) == ["mindcv/nano-6e71139d.ckpt.sha256"]
    record.unlink()
    assert copied(f"mindcv/{NAME}") == CONTENT["timm"]


def test_a_cut_download_is_taken_up_by_the_next_call(mirror, folder):
    mirror.files[PLACES["mindcv"]].cuts = [100, 100]
    assert "the connection was cut" in refused(f"mindcv/{NAME}")
    assert left(folder) == ["mindcv/nano-6e71139d.ckpt.part", "mindcv/nano-6e71139d.ckpt.part.from"]
    assert copied(f"mindcv/{NAME}") == CONTENT["mindcv"]
    assert mirror.requests[-1] == (PLACES["mindcv"], "bytes=100-")


def test_without_a_network_one_line_says_which_file_to_put_where(mirror, folder, monkeypatch):
    monkeypatch.setenv(released.MIRROR, "http://127.0.0.1:9")
    place = folder / "mindcv/nano-6e71139d.ckpt"
    assert refused(f"mindcv/{NAME}") == (
        f"http://127.0.0.1:9{PLACES['mindcv']} cannot be reached: Connection refused; to do without: put the file at "
        f"{place}, or name a mirror with MINDREPVGG_MIRROR=ADDRESS; other weights of this network: "
        f"mmpretrain/{NAME}, timm/{NAME}"
    )
    place.write_bytes(b"mine")
    assert copied(f"mindcv/{NAME}") == b"mine"
    assert place.exists()
    place.with_name("nano-6e71139d.sealed.ckpt").unlink()
    place.write_bytes(b"another")
    assert refused(f"mindcv/{NAME}").startswith(f"{place} is not the file it should be")


def test_what_is_no_checkpoint_is_not_kept(mirror, folder):
    """A page of a portal that one has to log in to."""
    mirror.files[PLACES["mindcv"]] = Served(b"<html>log in</html>")
    text = refused(f"mindcv/{NAME}", load.load_weights)
    assert text.startswith(f"{mirror.address}{PLACES['mindcv']} is damaged or no checkpoint")
    assert left(folder) == []


def test_another_network_than_the_name_says_is_refused(mirror, networks, monkeypatch):
    item = released.Released("repvgg_a0", "mindcv", released.RELEASED[2].address, "a0.ckpt", 70)
    monkeypatch.setattr(released, "RELEASED", [item])
    text = refused("mindcv/repvgg_a0", load.load_weights)
    assert text == f"{mirror.address}{PLACES['mindcv']} holds a repvgg_nano, expected a repvgg_a0"


def test_the_hubs_own_variable_names_its_mirror(mirror, monkeypatch):
    monkeypatch.delenv(released.MIRROR)
    monkeypatch.setenv("HF_ENDPOINT", f"{mirror.address}/")
    assert copied(f"timm/{NAME}") == CONTENT["timm"]
    assert released.RELEASED[2].mirrored() == released.RELEASED[2].address
    monkeypatch.setenv(released.MIRROR, "/folder")
    assert refused(f"mindcv/{NAME}") == (
        "MINDREPVGG_MIRROR (='/folder') must be an address that begins with https:// or http://"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a folder that nobody may write to")
def test_a_cache_that_cannot_be_written_is_named(mirror, monkeypatch):
    monkeypatch.setenv(cache.CACHE, "/proc/nowhere")
    with pytest.raises(OSError, match="/proc/nowhere"):
        copied(NAME)


# A process that downloads without loading MindSpore.
_PROCESS = """
import shutil, sys
from mindrepvgg.weights import cache
print(cache.local_file(sys.argv[1], "raw", lambda wanted: shutil.copy(wanted.source, wanted.destination))[0])
assert "mindspore" not in sys.modules
"""


def process(address):
    command = [sys.executable, "-c", _PROCESS, address]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_at_once_download_once(server, folder):
    server.files["/file"] = Served(bytes(1 << 20), silence=1)
    both = [process(f"{server.address}/file") for _ in range(2)]
    results = [one.communicate(timeout=60) for one in both]
    assert [one.returncode for one in both] == [0, 0], results
    assert len({out for out, _ in results}) == 1
    assert server.requests == [("/file", None)]
    assert sum("another process is downloading" in err for _, err in results) <= 1


def test_a_killed_process_leaves_its_part_to_the_next(server, folder):
    content = bytes(8 << 20)
    server.files["/file"] = Served(content, pause=0.02)
    first = process(f"{server.address}/file")
    until = time.monotonic() + 30
    while not any(part.stat().st_size for part in folder.rglob("*.part")) and time.monotonic() < until:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=30)
    server.files["/file"].pause = 0
    assert copied(f"{server.address}/file") == content
    assert server.requests[1][1] not in (None, "bytes=0-")
