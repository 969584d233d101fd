"""The watch over ranks of other hosts, which two threads of this process play."""

import socket
import struct
import threading
import time

import numpy as np
import pytest

from mindrepvgg.runtime import peers

pytestmark = pytest.mark.compat


class Cluster:
    """Two watches that met, each on a host of its own, and what they have said at their end."""

    def __init__(self, monkeypatch):
        barrier, rows, self.said, self.watches = threading.Barrier(2), [None, None], {}, [None, None]

        def gather_of(rank):
            def gather(array):
                rows[rank] = np.asarray(array)
                barrier.wait(20)
                stacked = np.stack(rows)
                barrier.wait(20)
                return stacked

            return gather

        def end(message):
            self.said[threading.current_thread()] = message
            raise SystemExit  # of the watching thread

        def meet(rank):
            self.watches[rank] = peers.Watch(rank, 2, gather_of(rank))

        monkeypatch.setenv("MS_SCHED_HOST", "127.0.0.1")
        monkeypatch.setenv("MS_SCHED_PORT", "9")
        monkeypatch.setattr(peers, "_machine", lambda: peers._padded(threading.current_thread().name) + bytes(32))
        monkeypatch.setattr(peers, "_end", end)
        monkeypatch.setattr(threading, "excepthook", lambda _: None)
        threads = [threading.Thread(target=meet, args=(rank,), name=f"host{rank}") for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)

    def hang_up(self, rank):
        """As the system does when a process has ended."""
        for key in list(self.watches[rank]._selector.get_map().values()):
            self.watches[rank]._selector.unregister(key.fileobj)
            key.fileobj.close()

    def wait(self):
        end = time.monotonic() + 10
        while not self.said and time.monotonic() < end:
            time.sleep(0.01)
        return list(self.said.values())


@pytest.fixture
def cluster(monkeypatch):
    found = Cluster(monkeypatch)
    yield found
    for watch in found.watches:
        watch.stop()


@pytest.mark.parametrize("victim", [0, 1])
def test_the_other_host_is_named(cluster, victim):
    assert [watch.peers for watch in cluster.watches] == [{}, {}]
    cluster.hang_up(victim)
    (line,) = cluster.wait()
    assert line.startswith(f"rank {victim} on host{victim} (process ")
    assert f" died, so rank {1 - victim} ends too; its own output tells why. Every checkpoint is whole: start " in line


def test_a_stranger_who_hangs_up_at_once(monkeypatch):
    """As what looks for open ports does."""
    connect, closes_with_an_error = socket.create_connection, struct.pack("ii", 1, 0)

    def after_a_stranger(address, timeout):
        with connect(address) as stranger:
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, closes_with_an_error)
        return connect(address, timeout)

    monkeypatch.setattr(peers.socket, "create_connection", after_a_stranger)
    cluster = Cluster(monkeypatch)
    time.sleep(0.3)
    assert not cluster.said
    assert [len(watch._connections) for watch in cluster.watches] == [1, 1]
    for watch in cluster.watches:
        watch.stop()


def test_a_machine_whose_name_has_no_address(monkeypatch, capsys):
    """As under mpirun and with a rank table, where no scheduler is there to be asked the way."""

    def refuse(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(peers.socket, "getaddrinfo", refuse)
    cluster = Cluster(monkeypatch)
    assert [watch._connections for watch in cluster.watches] == [[], []]
    line = f"could not connect to rank 0: {socket.gethostname()} has no address; the death of one is noticed late\n"
    assert capsys.readouterr().err.endswith(line)
    for watch in cluster.watches:
        watch.stop()


def test_the_first_rank_tells_whose_end_it_saw(cluster):
    cluster.watches[0]._names.append("rank 2 on host2 (process 5)")
    cluster.watches[1]._names.append("rank 2 on host2 (process 5)")
    with pytest.raises(SystemExit):
        cluster.watches[0]._tell_and_end([2])
    time.sleep(0.5)
    assert {line.partition(";")[0] for line in cluster.said.values()} == {
        f"rank 2 on host2 (process 5) died, so rank {rank} ends too" for rank in range(2)
    }


def test_an_exception_because_the_scheduler_is_gone(cluster, monkeypatch):
    """MindSpore raises it after some seconds, in the midst of a step."""
    hooked = []
    monkeypatch.setattr(peers, "_EXCEPTION_SECONDS", 0)
    watch, exception = cluster.watches[1], (RuntimeError, RuntimeError("TCP connection"), None)
    monkeypatch.setattr(watch, "_excepthook", lambda *found: hooked.append(found))
    with socket.create_server(("127.0.0.1", 0)) as scheduler:
        monkeypatch.setenv("MS_SCHED_PORT", str(scheduler.getsockname()[1]))
        watch._on_exception(*exception)
    assert (hooked, cluster.said) == ([exception], {})
    with pytest.raises(SystemExit):
        watch._on_exception(*exception)
    (line,) = cluster.said.values()
    assert line.startswith("the scheduler of this run died, so rank 1 ends too; its own output tells why. Every check")
    assert len(hooked) == 1


def test_a_run_that_has_come_to_its_end(cluster):
    for watch in cluster.watches:
        watch.stop()
    cluster.hang_up(0)
    time.sleep(0.3)
    assert not cluster.said
