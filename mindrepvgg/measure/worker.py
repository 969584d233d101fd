"""A process that answers requests, and what it holds in memory."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from mindrepvgg.errors import UserError

_LONGEST_REASON = 200  # characters


class BrokenDown(Exception):
    """A worker cannot go on; the message says why."""


class Worker:
    """A process of its own that answers requests; what it prints goes nowhere.

    Args:
        serve: a generator function of a module. It is called in the process and yields its first answer when it is
            ready; each further `yield` receives a request and gives the answer to it.
        arguments: of `serve`; they are pickled.
    """

    def __init__(self, serve: Callable[..., Generator[Any, Any, None]], *arguments):
        # Not forked: a framework's threads do not survive that, and its memory would count as the child's.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, serve, arguments), daemon=True)
        self._process.start()
        theirs.close()

    def answer(self):
        """Wait for the next answer.

        Raises:
            BrokenDown: the process gave up, or died; the message says why.
        """
        try:
            found = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            status = self._process.exitcode or 0
            killed = f"was killed by signal {-status}, for want of memory perhaps"
            raise BrokenDown(f"its process {killed if status < 0 else f'ended with {status}'}") from None
        if isinstance(found, BrokenDown):
            raise found
        return found

    def ask(self, request=None):
        """Send a request and wait for the answer to it; see `answer`."""
        with contextlib.suppress(ConnectionError):  # `answer` reports that the process has ended
            self._connection.send(request)
        return self.answer()

    def close(self):
        """End the process, which stops when nobody can ask any more."""
        self._connection.close()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _serve(connection, serve, arguments):
    """Answer requests until the other side closes the connection."""
    with open(os.devnull, "w") as nowhere:  # what frameworks print would mix with the results
        for descriptor in (1, 2):
            os.dup2(nowhere.fileno(), descriptor)
    try:
        answers = serve(*arguments)
        answer = next(answers)
        while True:
            connection.send(answer)
            answer = answers.send(connection.recv())
    except EOFError:
        return
    except Exception as error:  # a framework may fail in any way; what it says belongs into the report
        reason = next((line.strip() for line in str(error).splitlines() if line.strip(" -")), "no message")
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        connection.send(BrokenDown(f"{kind}{reason[:_LONGEST_REASON]}"))


def status_bytes(key: str) -> int | None:
    """Return a size of this process in bytes as Linux tells it: 'VmRSS' now, 'VmHWM' at most; None elsewhere.

    psutil tells no peak on Linux, and getrusage's maximum is inherited from the process that started this one.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), None)


def host_memory() -> Callable[[], int | None]:
    """Make a function that tells the most bytes this process has held beyond those it holds now."""
    held = status_bytes("VmRSS")
    return lambda: None if held is None else max((status_bytes("VmHWM") or 0) - held, 0)
