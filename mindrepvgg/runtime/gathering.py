"""Until the processes of a data-parallel run have met: one ends soon after another of this machine has ended.

MindSpore would wait for a minute, or for the whole time-out. It holds Python's lock all that time, so a process of its
own watches: this file, run as a program, which loads nothing but psutil.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import subprocess
import sys
import time

import psutil

_POLL_SECONDS = 0.2
_SCAN_SECONDS = 2.0  # between two looks at all processes of this machine
_SETTLE_SECONDS = 5.0  # the scheduler is given to end by itself once its workers have
_START_SECONDS = 30.0  # within which all processes of a run are started; msrun takes less than one
_ABSENCE_SECONDS = 20.0  # the scheduler waits so long for a first process on its machine


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for yet does not."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def is_scheduler() -> bool:
    """Whether msrun started this process to serve the workers."""
    return os.environ.get("MS_ROLE") == "MS_SCHED"


def scheduler_address() -> tuple[str, int] | None:
    """Where the scheduler is to be found; None where another launcher than msrun started the run."""
    host, port = os.environ.get("MS_SCHED_HOST"), os.environ.get("MS_SCHED_PORT", "")
    return (host, int(port)) if host and port.isdecimal() else None


def port_in_use() -> str | None:
    """In the scheduler: why it cannot listen where it is to; None when it can.

    MindSpore would try until the time-out, and its workers would talk to the other program as long.
    """
    address = scheduler_address()
    if address is None:
        return None
    with socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_STREAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(address)
            server.listen()
        except (OverflowError, PermissionError):
            return f"no scheduler can listen at port {address[1]}: give msrun one of 1024 to 65535 with --master_port"
        except OSError as error:
            return _taken(address) if error.errno == errno.EADDRINUSE else None
    return None


def _taken(address) -> str:
    return f"port {address[1]} of {address[0]} is in use by another program: give msrun another one with --master_port"


def accepts(address) -> bool:
    """Whether somebody listens at an address."""
    with contextlib.suppress(OSError, OverflowError), socket.create_connection(address, timeout=1):
        return True
    return False


def output_file() -> str | None:
    """The file that this process prints into, as under msrun; None where it prints elsewhere."""
    with contextlib.suppress(OSError):
        path = os.readlink("/proc/self/fd/1")
        return path if os.path.isfile(path) else None
    return None


@contextlib.contextmanager
def watched(processes: int):
    """Run the body, in which the `processes` of a run meet, with a watch over those on this machine."""
    if scheduler_address() is None:
        yield
        return
    command = [sys.executable, __file__, str(os.getpid()), str(processes)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as guard:  # it ends with its input
        yield
        assert guard.stdin is not None
        guard.stdin.close()


class Guard:
    """Looks for the ends of processes, on behalf of one of them.

    Args:
        pid: the process.
        processes: the number of workers of the run.
    """

    def __init__(self, pid: int, processes: int):
        self._own = psutil.Process(pid)
        self._processes = processes
        self._known: dict[int, str] = {}
        self._alone_since = time.monotonic()
        self._scanned = self._alone_since - _SCAN_SECONDS

    def look(self) -> str | None:
        """Why the process cannot go on; None when it can, as far as is known."""
        now = time.monotonic()
        if now - self._scanned >= _SCAN_SECONDS:
            self._known |= self._siblings()
            self._scanned = now
        dead = [pid for pid in self._known if not is_alive(pid)]
        return self._of_scheduler(dead, now) if is_scheduler() else self._of_worker(dead)

    def _of_worker(self, dead) -> str | None:
        if not dead:
            return None
        name, address = self._known[dead[0]], scheduler_address()
        if name == "the scheduler" and accepts(address):
            return _taken(address)
        return (
            f"{name} (process {dead[0]}) ended before the {self._processes} processes of this run met, so this one "
            f"ends too; its own output tells why"
        )

    def _of_scheduler(self, dead, now) -> str | None:
        """It stays inside MindSpore until the run is over, and long after that if a worker did not end well."""
        all_are_here = len(self._known) == self._processes or os.environ["MS_SCHED_HOST"].startswith("127.")
        if len(dead) < len(self._known):
            self._alone_since = now
        if not all_are_here or now - self._alone_since <= (_SETTLE_SECONDS if self._known else _ABSENCE_SECONDS):
            return None
        if self._known:
            return f"this run's {self._processes} processes have ended, not all of them well; their output tells why"
        return (
            f"none of this run's {self._processes} processes is here: they ended before they met, or msrun "
            f"started none because it wants 8 on a machine unless told otherwise: give --worker_num {self._processes} "
            f"--local_worker_num {self._processes}"
        )

    def _siblings(self) -> dict[int, str]:
        """Process ids and names of the other processes of this run that were started on this machine."""
        names, parents = {}, {}
        run = {name: os.environ.get(name) for name in ("MS_SCHED_HOST", "MS_SCHED_PORT", "MS_WORKER_NUM")}
        for process in psutil.process_iter():
            # Another user's, or one that has just ended. The `tail` that shows a worker's log has its environment.
            with contextlib.suppress(psutil.Error, OSError):
                together = abs(process.create_time() - self._own.create_time()) < _START_SECONDS
                if process == self._own or not together or process.exe() != self._own.exe():
                    continue
                found = process.environ()
                role, rank = found.get("MS_ROLE"), found.get("MS_NODE_ID")
                if role in ("MS_SCHED", "MS_WORKER") and all(found.get(name) == value for name, value in run.items()):
                    worker = f"rank {rank}" if rank else "a worker"
                    names[process.pid] = worker if role == "MS_WORKER" else "the scheduler"
                    parents[process.pid] = process.ppid()
        # What these have started, guards among it, has their environment as well.
        return {pid: name for pid, name in names.items() if parents[pid] not in (self._own.pid, *names)}


def main(pid: int, processes: int):
    """Watch on behalf of a process until it closes our input; end it, with a line, when it cannot go on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):  # it was quicker
        guard = Guard(pid, processes)
        while not select.select([0], [], [], _POLL_SECONDS)[0]:
            reason = guard.look()
            if reason:
                print(f"error: {reason}", file=sys.stderr, flush=True)
                os.kill(pid, signal.SIGKILL)
                return


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
