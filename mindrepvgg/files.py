"""Files: read only where they are regular files of a possible size, and written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from mindrepvgg.errors import UserError
from mindrepvgg.text import counted, printable

MEGABYTE = 1 << 20

# How the temporary files of `atomic_path` end.
_PARTIAL = ".partial"


def open_regular(path, what: str, error: type[UserError] = UserError, most: int | None = None) -> BinaryIO:
    """Open a file that a user named, to read its bytes.

    It must be a regular file: a pipe would be waited for, and a device such as /dev/zero has no end.

    Args:
        path: the file.
        what: what is expected there, for the message: "a recipe".
        error: the kind of error that is raised.
        most: bytes it may have; None: any number.

    Returns:
        The file, opened; `os.fstat` of it gives its size. Reading may still raise OSError.

    Raises:
        error: in one line with the path: it is missing, no regular file, too large, or the system refuses.
    """
    descriptor = None
    try:
        # The opening must not wait either, as that of a pipe does until somebody writes.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode) and (most is None or status.st_size <= most):
            os.set_blocking(descriptor, True)
            return open(descriptor, "rb")
    except (OSError, ValueError) as cause:  # ValueError: a character that no file name can have
        raise error(f"{printable(path, 200)} {_refusal(path, what, cause)}") from cause
    os.close(descriptor)
    if stat.S_ISREG(status.st_mode):
        reason = f"has {_size(status.st_size)}, more than the {_size(most)} that {what} may have; check what it is"
    else:
        reason = f"is a {_kind(status.st_mode)}, expected {what}"
    raise error(f"{printable(path, 200)} {reason}")


def read_regular(path, what: str, error: type[UserError] = UserError, most: int | None = None) -> bytes:
    """Read a whole file that a user named; see `open_regular`."""
    with open_regular(path, what, error, most) as file:
        try:
            # No more than its size: files of /proc may grow for ever, or wait for what comes.
            return file.read(os.fstat(file.fileno()).st_size)
        except OSError as cause:
            raise error(f"{printable(path, 200)} cannot be read: {cause.strerror}") from cause
        except MemoryError as cause:
            raise error(f"{printable(path, 200)} needs more memory than is free; check what it is") from cause


def _refusal(path, what, cause):
    """Why a file could not be opened, in words that follow its path."""
    if isinstance(cause, FileNotFoundError):
        return f"does not exist, expected {what}; check the path"
    if isinstance(cause, OSError):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.stat(path).st_mode):  # the one kind that cannot be opened at all
                return f"is a socket, expected {what}"
        return f"cannot be read: {cause.strerror}"
    return "is no possible file name"


def _kind(mode):
    """What something is that is no regular file."""
    return "folder" if stat.S_ISDIR(mode) else "pipe" if stat.S_ISFIFO(mode) else "device"


def _size(count):
    """Bytes in words."""
    return counted(count, "byte") if count < MEGABYTE else f"{count / MEGABYTE:.0f} MiB"


@contextlib.contextmanager
def atomic_path(path):
    """Yield the path of a temporary file, which appears under `path` only once it is complete and on disk.

    When the body raises, the disk fills or the process dies, a file that was at `path` stays as it was. The temporary
    file lies in the same folder; a missing folder is created.

    Args:
        path: where the file is to appear.

    Raises:
        UserError: no file can have this name.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            os.lstat(path)
    except ValueError as cause:  # a character that no file name can have
        raise UserError(f"{printable(path, 200)} is no possible file name") from cause
    prefix = f".{path.name}."
    with naming(path, prefix):
        handle, temporary = tempfile.mkstemp(prefix=prefix, suffix=_PARTIAL, dir=path.parent)
        os.close(handle)
        try:
            yield Path(temporary)
            with open(temporary, "rb") as stream:
                os.fsync(stream.fileno())
            # mkstemp's files are the owner's alone; a result is as readable as any file the user makes.
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


@contextlib.contextmanager
def naming(path, hidden: str | None = None):
    """Let an OSError of the body name `path` where it names no file, as when a disk is full, or a hidden one.

    Args:
        path: what the user knows.
        hidden: how the names of the files begin that the user does not know.
    """
    try:
        yield
    except OSError as error:
        is_hidden = hidden is not None and Path(str(error.filename)).name.startswith(hidden)
        if error.errno is None or (error.filename is not None and not is_hidden):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def remove_leftovers(folder, is_own: Callable[[str], bool]):
    """Remove the temporary files in `folder` that `atomic_path` left behind in processes that were killed.

    Args:
        folder: the folder.
        is_own: whether the files of this name are those to tidy up; nobody may be writing them.
    """
    for path in Path(folder).glob(f".*{_PARTIAL}"):
        # mkstemp puts a dot and eight characters behind the name.
        if is_own(path.name[1 : -len(_PARTIAL) - 9]):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_write(path, mode="wb"):
    """Open a file that appears under `path` only once it is complete and on disk.

    Args:
        path: see `atomic_path`.
        mode: 'wb' or 'w' (UTF-8).
    """
    with atomic_path(path) as temporary, temporary.open(mode, encoding=None if "b" in mode else "utf-8") as stream:
        yield stream


def write_json(path, value):
    """Write `value` as indented JSON, atomically."""
    with atomic_write(path, "w") as stream:
        json.dump(value, stream, indent=2, ensure_ascii=False)
        stream.write("\n")


def json_types(value):
    """A value with NaN and infinity as text, because JSON has no such number; tuples become lists."""
    return json.loads(json.dumps(value), parse_constant=str)


def _umask() -> int:
    """The process's mask of file permissions, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
