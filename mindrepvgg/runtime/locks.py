"""Locks on files, which end with the process that holds them."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

from filelock import BaseFileLock, FileLock

from mindrepvgg.files import naming


class NoLocksError(OSError):
    """The file system has no locks."""


def take(path: Path, seconds: float, on_acquired: Callable[[int], None] | None = None) -> BaseFileLock:
    """Lock a file, which is made where it is missing; the folder must exist.

    Args:
        path: the file. It is hidden from the user, so errors name its folder.
        seconds: how long to wait for another process's end; below 0: for ever.
        on_acquired: what to do with the file's descriptor as soon as it is locked.

    Returns:
        The lock; its `release` ends it.

    Raises:
        filelock.Timeout: another process has it still.
        NoLocksError: the file system has none; `strerror` is its answer.
        OSError: the file cannot be made.
    """
    # Without locks, filelock would leave a file behind a killed process that keeps the next one out.
    lock = FileLock(path, timeout=seconds, fallback_to_soft=False, on_acquired=on_acquired)
    try:
        with naming(path.parent, path.name):
            lock.acquire()
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise NoLocksError(error.errno, error.strerror) from error
        raise
    return lock
