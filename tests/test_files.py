"""Files: regular ones alone are read, and a written one is whole, or as it was before, whatever happens meanwhile."""

import errno
import io
import json
import os
import signal
import socket
import stat
import subprocess
import sys

import pytest

from mindrepvgg.errors import DataError, UserError
from mindrepvgg.files import atomic_write, open_regular, read_regular, remove_leftovers, write_json

pytestmark = pytest.mark.compat

OLD, NEW = b"the old content", b"the new content, somewhat longer"


@pytest.fixture
def path(tmp_path):
    """A file with content, alone in its folder."""
    file = tmp_path / "result.bin"
    file.write_bytes(OLD)
    return file


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def run_python(code, *arguments):
    """Run code in a process of its own and wait for its end."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_new_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "result.bin"
    with atomic_write(path) as stream:
        stream.write(NEW[:5])
        stream.flush()
        assert not path.exists()
        stream.write(NEW[5:])
    assert path.read_bytes() == NEW
    assert names(tmp_path) == ["result.bin"]


def test_an_old_file_is_whole_until_it_is_replaced(path):
    with atomic_write(path) as stream:
        stream.write(NEW)
        stream.flush()
        assert path.read_bytes() == OLD
    assert path.read_bytes() == NEW
    assert names(path.parent) == ["result.bin"]


def test_a_reader_of_the_old_file_keeps_it(path):
    with path.open("rb") as reader:
        with atomic_write(path) as stream:
            stream.write(NEW)
        assert reader.read() == OLD


def test_text_is_utf8(tmp_path):
    with atomic_write(tmp_path / "text", "w") as stream:
        stream.write("Größe × 3\n")
    assert (tmp_path / "text").read_bytes() == "Größe × 3\n".encode()


@pytest.mark.parametrize("name", ["a\0b", "a\0b/c", "a\ud800b"])
def test_a_name_that_no_file_can_have_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="is no possible file name"), atomic_write(tmp_path / name):
        pass
    assert names(tmp_path) == []


def test_write_json(tmp_path):
    write_json(tmp_path / "facts.json", {"Größe": [1, None]})
    text = (tmp_path / "facts.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"Größe": [1, None]}
    assert "Größe" in text
    assert text.endswith("}\n")


def test_missing_folders_are_made(tmp_path):
    with atomic_write(tmp_path / "a/b/c/result.bin") as stream:
        stream.write(NEW)
    assert (tmp_path / "a/b/c/result.bin").read_bytes() == NEW


def fail_half_way(path, error):
    with atomic_write(path) as stream:
        stream.write(NEW)
        raise error


@pytest.mark.parametrize("error", [ValueError("from the body"), KeyboardInterrupt(), SystemExit(3)])
def test_an_exception_leaves_the_old_file_and_nothing_else(path, error):
    with pytest.raises(type(error)):
        fail_half_way(path, error)
    assert path.read_bytes() == OLD
    assert names(path.parent) == ["result.bin"]


def test_an_exception_leaves_no_new_file(tmp_path):
    with pytest.raises(ValueError, match="from the body"):
        fail_half_way(tmp_path / "result.bin", ValueError("from the body"))
    assert names(tmp_path) == []


@pytest.mark.parametrize("failing", ["os.fsync", "os.chmod", "os.replace", "tempfile.mkstemp"])
def test_a_failure_of_a_step_leaves_the_old_file_and_names_it(path, monkeypatch, failing):
    def refuse(*arguments, prefix=None, **_):
        name = f"{path.parent}/{prefix}abcdefgh.partial" if prefix else arguments[0]
        raise OSError(28, "No space left on device", *([name] if isinstance(name, str) else []))

    monkeypatch.setattr(f"mindrepvgg.files.{failing}", refuse)
    with pytest.raises(OSError, match="No space left") as caught, atomic_write(path) as stream:
        stream.write(NEW)
    assert (caught.value.filename, caught.value.filename2) == (str(path), None)
    assert str(caught.value) == f"[Errno 28] No space left on device: '{path}'"
    assert path.read_bytes() == OLD
    assert names(path.parent) == ["result.bin"]


# A file may grow to 4096 bytes only: the write beyond fails as on a full disk, with a part of the bytes written.
FILL_THE_DISK = """
import resource, signal, sys
from mindrepvgg.files import atomic_write
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    with atomic_write(sys.argv[1]) as stream:
        stream.write(bytes(int(sys.argv[2])))
except OSError as error:
    print("refused:", error.strerror, error.filename == sys.argv[1])
else:
    print("written")
"""


def test_a_full_disk_leaves_the_old_file_and_nothing_else(path):
    result = run_python(FILL_THE_DISK, path, 100_000)
    assert (result.stdout, result.returncode) == ("refused: File too large True\n", 0), result.stderr
    assert path.read_bytes() == OLD
    assert names(path.parent) == ["result.bin"]
    # The limit, not something else, was what failed.
    assert run_python(FILL_THE_DISK, path, 4096).stdout == "written\n"
    assert path.read_bytes() == bytes(4096)


@pytest.mark.parametrize("name", ["other.bin", ".other.bin"])
def test_an_error_about_another_file_keeps_its_name(path, name):
    with pytest.raises(FileNotFoundError) as caught, atomic_write(path):
        (path.parent / name).read_bytes()
    assert caught.value.filename == str(path.parent / name)


DIE_WHILE_WRITING = """
import os, signal, sys
from mindrepvgg.files import atomic_write
with atomic_write(sys.argv[1]) as stream:
    stream.write(b"half")
    stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_leaves_the_old_file(path):
    """Nothing can be tidied up after kill -9: one hidden .partial may stay, and no tool takes it for a result."""
    assert run_python(DIE_WHILE_WRITING, path).returncode == -signal.SIGKILL
    assert path.read_bytes() == OLD
    left = [name for name in names(path.parent) if name != "result.bin"]
    assert len(left) == 1
    assert left[0].startswith(".result.bin.")
    assert left[0].endswith(".partial")
    # It is not in the way of the next attempt.
    with atomic_write(path) as stream:
        stream.write(NEW)
    assert path.read_bytes() == NEW
    remove_leftovers(path.parent, lambda name: name == "other.bin")
    assert names(path.parent) == [*left, "result.bin"]
    remove_leftovers(path.parent, lambda name: name == "result.bin")
    assert names(path.parent) == ["result.bin"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_permissions_follow_the_umask(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        with atomic_write(tmp_path / "result.bin") as stream:
            stream.write(NEW)
        assert os.umask(mask) == mask, "the process's mask was changed"
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "result.bin").stat().st_mode) == mode


def test_a_folder_in_the_way_is_refused(tmp_path):
    (tmp_path / "result.bin").mkdir()
    with pytest.raises(IsADirectoryError), atomic_write(tmp_path / "result.bin") as stream:
        stream.write(NEW)
    assert names(tmp_path) == ["result.bin"]


def test_a_folder_that_cannot_be_made_is_refused(path):
    with pytest.raises(NotADirectoryError), atomic_write(path / "below" / "result.bin") as stream:
        stream.write(NEW)
    assert path.read_bytes() == OLD


# ------------------------------------------------------------------------------------------------------------- reading


def refusal(path, most=None):
    """The message with which a file is refused."""
    with pytest.raises(DataError) as caught:
        read_regular(path, "a picture", DataError, most)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    return str(caught.value)


def test_a_regular_file_is_read_through_links_too(path):
    link = path.with_name("link")
    link.symlink_to(path)
    assert read_regular(link, "a picture", DataError, most=len(OLD)) == OLD
    with open_regular(str(path), "a picture") as file:
        assert os.get_blocking(file.fileno())
        assert file.read() == OLD


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe") == f"{tmp_path}/pipe is a pipe, expected a picture"
    descriptor, _ = pair = os.pipe()
    assert "is a pipe" in refusal(f"/dev/fd/{descriptor}")  # as the shell's <(...) gives it
    for end in pair:
        os.close(end)


def test_devices_sockets_and_folders_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        assert refusal("socket") == "socket is a socket, expected a picture"
    assert refusal("/dev/zero") == "/dev/zero is a device, expected a picture"
    assert refusal(".") == ". is a folder, expected a picture"


def test_what_cannot_be_opened_is_named(tmp_path):
    assert "does not exist, expected a picture" in refusal(tmp_path / "none")
    (tmp_path / "loop").symlink_to("loop")
    assert "symbolic links" in refusal(tmp_path / "loop")
    for name in ("a\0b", "\ud800", "x" * 10**6, "é" * 3000):
        assert "expected a picture" in refusal(name) or "file name" in refusal(name).lower()


def test_a_size_that_no_such_file_has_is_refused_before_reading(tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    assert "has 1048576 MiB, more than the 3 bytes that a picture may have" in refusal(tmp_path / "sparse", most=3)


def test_no_more_is_read_than_a_file_has(tmp_path):
    assert read_regular("/proc/self/status", "a picture") == b""  # whose size is given as 0


def test_a_failing_disk_is_named(path, monkeypatch):
    monkeypatch.setattr("mindrepvgg.files.open_regular", lambda *_: FailingDisk(path))
    assert refusal(path) == f"{path} cannot be read: Input/output error"


class FailingDisk(io.FileIO):
    """A file on a disk that fails."""

    def read(self, *_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
