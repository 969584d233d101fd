"""The other ranks of a data-parallel run: this one ends soon, with a line that says why, when one of them dies."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from pathlib import Path

import numpy as np

from mindrepvgg.runtime.gathering import accepts, is_alive, scheduler_address

# msrun looks once a second and kills what is left: the shorter this is, the likelier the message comes first.
_WATCH_SECONDS = 0.1
_CONNECT_SECONDS = 10.0
_EXCEPTION_SECONDS = 3.0  # MindSpore's complaint about a lost process may come before ours
_NAME_BYTES = 64
_TOKEN_BYTES = 16

# Of a host that lost its power, nothing comes, not even the end of its connections: the system asks after these seconds
# without a word, in these steps, so often.
_KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}


def _end(message: str):
    """Print a line and end this process: its main thread may be inside a collective that never returns."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(1)


class Watch:
    """Ends this process soon after another rank died: a collective would wait for it for minutes.

    Ranks of this machine are known by their process ids. Where there are several, each keeps a connection to rank 0,
    which ends with its process, and rank 0 tells all others whose has ended.

    Args:
        rank, size: this process's, and the number of all.
        gather: `Ranks.gather`.
    """

    def __init__(self, rank: int, size: int, gather):
        self._rank = rank
        machine = _machine()
        machines = [row.tobytes() for row in gather(np.frombuffer(machine, np.int64))]
        pids = gather(np.int64(os.getpid())).tolist()
        self._names = [
            f"rank {n}{'' if where == machine else ' on ' + _read_text(where)} (process {pid})"
            for n, (where, pid) in enumerate(zip(machines, pids, strict=True))
        ]
        self.peers = {pid: n for n, pid in enumerate(pids) if machines[n] == machine and n != rank}
        self._selector = selectors.DefaultSelector()
        self._connections: list[socket.socket] = []
        self._done = threading.Event()
        if len(set(machines)) > 1:
            self._connect(rank, size, gather)
        threading.Thread(target=self._run, name="mindrepvgg-peers", daemon=True).start()
        self._excepthook, sys.excepthook = sys.excepthook, self._on_exception

    def stop(self):
        """From now on, others may end."""
        # Connections stay open: others may not have come here yet.
        self._done.set()
        sys.excepthook = self._excepthook

    def _connect(self, rank, size, gather):
        """Connect each rank with rank 0."""
        server, where, token = None, "", secrets.token_bytes(_TOKEN_BYTES)
        if rank == 0:
            with contextlib.suppress(OSError):  # the network does not know this machine's name
                family, address = _own_address()
                server = socket.create_server((address, 0), family=family, backlog=size)
                server.settimeout(_CONNECT_SECONDS)
                where = "{} {}".format(*server.getsockname()[:2])
        first = gather(np.frombuffer(_padded(where) + token, np.int64))[0].tobytes()
        where, token = _read_text(first), first[_NAME_BYTES:]
        host, _, port = where.partition(" ")
        met = {rank}
        with contextlib.suppress(OSError):  # a firewall between the machines
            if rank and where:
                connection = socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS)
                connection.sendall(token + rank.to_bytes(4, "big"))
                self._add(connection, 0)
                met.add(0)
            while server is not None and len(met) < size:
                connection, _ = server.accept()
                connection.settimeout(_CONNECT_SECONDS)
                greeting = b""
                with contextlib.suppress(OSError):  # a stranger's, which others must not pay for
                    greeting = connection.recv(_TOKEN_BYTES + 4, socket.MSG_WAITALL)
                other = int.from_bytes(greeting[_TOKEN_BYTES:], "big")
                if greeting[:_TOKEN_BYTES] == token and other < size:
                    self._add(connection, other)
                    met.add(other)
        if server is not None:
            server.close()
        missing = [self._names[n] for n in range(size) if n not in met]
        if rank == 0 and missing:
            place = f"rank 0 at {host}" if host else f"rank 0: {socket.gethostname()} has no address"
            line = f"{', '.join(missing)} could not connect to {place}; the death of one is noticed late"
            print(f"warning: {line}", file=sys.stderr, flush=True)

    def _add(self, connection, rank):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEP_ALIVE.items():
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        connection.setblocking(False)
        self._selector.register(connection, selectors.EVENT_READ, rank)
        self._connections.append(connection)

    def _run(self):
        while not self._done.is_set():
            for key, _ in self._selector.select(_WATCH_SECONDS):
                lost = self._read(key.fileobj, key.data)
                if lost is not None:
                    self._tell_and_end([lost])
            dead = [rank for pid, rank in self.peers.items() if not is_alive(pid)]
            if dead:
                self._tell_and_end(dead)

    def _read(self, connection, rank) -> int | None:
        """The rank that is lost, as a connection that has something to read tells."""
        try:
            told = connection.recv(4)
        except BlockingIOError:
            return None
        except OSError:
            told = b""
        return int.from_bytes(told, "big") if len(told) == 4 else rank

    def _tell_and_end(self, dead):
        if self._done.is_set():
            return
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.send(dead[0].to_bytes(4, "big"))
        names = ", ".join(self._names[rank] for rank in dead)
        self._end_after(names)

    def _end_after(self, names):
        _end(
            f"{names} died, so rank {self._rank} ends too; its own output tells why. Every checkpoint is whole: start "
            f"again with --resume"
        )

    def _on_exception(self, *exception):
        """Give the watch time to find the reason of an exception; a traceback out of MindSpore tells nothing of it."""
        time.sleep(_EXCEPTION_SECONDS)
        address = scheduler_address()
        if address and not accepts(address):
            self._end_after("the scheduler of this run")
        self._excepthook(*exception)


def _machine() -> bytes:
    """The name of this machine, and what tells it from others of its name; process ids are the same all over it."""
    facts = []
    with contextlib.suppress(OSError):
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        facts.append(os.readlink("/proc/self/ns/pid"))  # containers have process ids of their own
    return _padded(socket.gethostname()) + hashlib.sha256("".join(facts).encode()).digest()


def _padded(text: str) -> bytes:
    return text.encode()[:_NAME_BYTES].ljust(_NAME_BYTES, b"\0")


def _read_text(padded: bytes) -> str:
    return padded[:_NAME_BYTES].rstrip(b"\0").decode(errors="replace")


def _own_address() -> tuple[socket.AddressFamily, str]:
    """The address of this machine in the network where the scheduler is."""
    host, port = scheduler_address() or (socket.gethostname(), 9)
    family, _, _, _, scheduler = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(scheduler)  # sends nothing
        return family, probe.getsockname()[0]
