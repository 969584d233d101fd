"""The watch until the processes of a run have met; whole runs in which one is killed are in test_distributed.py."""

import errno
import os
import socket
import subprocess
import sys
import time

import psutil
import pytest

from mindrepvgg.runtime import gathering
from mindrepvgg.runtime.gathering import Guard, is_alive

pytestmark = pytest.mark.compat


@pytest.fixture
def run(monkeypatch):
    """Sets up this process's part in a run, which other processes there are, and a clock; returns a way to turn it."""
    clock = [0.0]
    monkeypatch.setattr(gathering.time, "monotonic", lambda: clock[0])

    def set_up(role, siblings, alive, host="127.0.0.1", port=1):
        values = {"MS_ROLE": role, "MS_WORKER_NUM": "2", "MS_SCHED_HOST": host, "MS_SCHED_PORT": str(port)}
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(Guard, "_siblings", lambda _: siblings)
        monkeypatch.setattr(gathering, "is_alive", lambda pid: pid in alive)

        def look_at(guard, seconds):
            clock[0] = seconds
            return guard.look()

        return look_at

    return set_up


class TestAWorker:
    def test_it_goes_on_while_all_live(self, run):
        look_at = run("MS_WORKER", {7: "rank 1", 8: "the scheduler"}, {7, 8})
        assert look_at(Guard(os.getpid(), 2), 100) is None

    def test_another_that_ended_is_named(self, run):
        look_at = run("MS_WORKER", {7: "rank 1", 8: "the scheduler"}, {8})
        assert look_at(Guard(os.getpid(), 2), 3) == (
            "rank 1 (process 7) ended before the 2 processes of this run met, so this one ends too; its own output "
            "tells why"
        )

    def test_a_scheduler_whose_port_another_has(self, run):
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            look_at = run("MS_WORKER", {8: "the scheduler"}, (), port=port)
            reason = look_at(Guard(os.getpid(), 2), 3)
        assert reason == (
            f"port {port} of 127.0.0.1 is in use by another program: give msrun another one with --master_port"
        )
        assert look_at(Guard(os.getpid(), 2), 3).startswith("the scheduler (process 8) ended before the 2 processes")


class TestTheScheduler:
    def test_it_ends_soon_after_all_workers(self, run):
        alive = {7, 8}
        look_at = run("MS_SCHED", {7: "rank 0", 8: "rank 1"}, alive, host="10.0.0.1")
        guard = Guard(os.getpid(), 2)
        assert look_at(guard, 100) is None
        alive.remove(7)
        assert look_at(guard, 200) is None, "rank 1 may have work of its own"
        alive.remove(8)
        assert look_at(guard, 204) is None, "the scheduler may end by itself"
        assert look_at(guard, 206).startswith("this run's 2 processes have ended, not all of them well")

    def test_workers_of_other_hosts_may_live(self, run):
        look_at = run("MS_SCHED", {7: "rank 0"}, (), host="10.0.0.1")
        assert look_at(Guard(os.getpid(), 2), 1000) is None

    def test_workers_that_msrun_did_not_start(self, run):
        """As with --worker_num 2 alone: msrun ends with an error after it has started its scheduler."""
        look_at = run("MS_SCHED", {}, ())
        guard = Guard(os.getpid(), 2)
        assert look_at(guard, 19) is None
        assert look_at(guard, 21).endswith("give --worker_num 2 --local_worker_num 2")


class TestSiblings:
    def test_who_is_one(self, monkeypatch):
        """Not what a sibling or this process has started, and not another run's."""
        values = {"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "2", "MS_SCHED_HOST": "127.0.0.1", "MS_SCHED_PORT": "1"}
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
        others = ({"MS_NODE_ID": "1"}, {"MS_SCHED_PORT": "2"}, {"MS_ROLE": "MS_SCHED"}, {"MS_ROLE": ""})
        started = [
            subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **other}, stdin=subprocess.PIPE)
            for other in others
        ]
        outsider = subprocess.Popen([sys.executable, "-c", "input()"], env={}, stdin=subprocess.PIPE)
        try:
            while not all(psutil.Process(process.pid).children() for process in started):
                time.sleep(0.01)
            # On behalf of the outsider: this process itself has started all of them.
            found = Guard(outsider.pid, 2)._siblings()
        finally:
            for process in (*started, outsider):
                process.communicate()
        assert found == {started[0].pid: "rank 1", started[2].pid: "the scheduler"}


@pytest.mark.parametrize("port", [99999, 81])
def test_a_port_where_nobody_can_listen(monkeypatch, port):
    def refuse(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    if port == 81:
        monkeypatch.setattr("socket.socket.bind", refuse)
    monkeypatch.setenv("MS_SCHED_HOST", "127.0.0.1")
    monkeypatch.setenv("MS_SCHED_PORT", str(port))
    assert gathering.port_in_use() == (
        f"no scheduler can listen at port {port}: give msrun one of 1024 to 65535 with --master_port"
    )
    assert not gathering.accepts(gathering.scheduler_address())


def test_the_guard_of_a_process_that_is_gone_says_nothing():
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    command = [sys.executable, gathering.__file__, str(gone.pid), "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


SETTINGS = {"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "2", "MS_SCHED_HOST": "127.0.0.1", "MS_SCHED_PORT": "1"}
WATCHED = "from mindrepvgg.runtime import gathering\nwith gathering.watched(2): print('in', flush=True); {}"


def test_the_guard_leaves_no_trace():
    command, environment = [sys.executable, "-c", WATCHED.format("")], {**os.environ, **SETTINGS}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "in\n", "")


def test_the_guard_ends_a_process_that_holds_pythons_lock():
    """As MindSpore does while it waits; a thread of Python's would not run."""
    environment = {**os.environ, **SETTINGS, "MS_NODE_ID": "1"}
    waits = WATCHED.format("import ctypes; ctypes.PyDLL(None).sleep(60)")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with (
        subprocess.Popen([sys.executable, "-c", "input()"], env=environment, **pipes) as other,
        subprocess.Popen([sys.executable, "-c", waits], env=environment, **pipes) as waiting,
    ):
        assert waiting.stdout.readline() == "in\n"
        time.sleep(4)
        other.kill()
        _, said = waiting.communicate(timeout=30)
    assert said.startswith(f"error: rank 1 (process {other.pid}) ended before the 2 processes of this run met")
    assert waiting.returncode < 0


class TestIsAlive:
    def test_this_process(self):
        assert is_alive(os.getpid())

    def test_one_that_ends_and_is_waited_for_later(self):
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
            assert is_alive(child.pid)
            child.kill()
            end = time.monotonic() + 20
            while is_alive(child.pid) and time.monotonic() < end:
                time.sleep(0.01)
            assert psutil.pid_exists(child.pid), "it is a zombie"
            assert not is_alive(child.pid)
        assert not is_alive(child.pid), "and now it is gone"
