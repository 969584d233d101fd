"""Two workers that do not meet, or on hosts of their own: what is said, and that nobody is left behind."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from support.processes import (
    ROOT,
    Started,
    command,
    free_port,
    last_step,
    start_two,
    wait_until,
    write_recipe,
)

pytestmark = pytest.mark.slow


class TestBeforeTheyMet:
    def test_a_port_in_use(self, tmp_path):
        """Found out by the scheduler; MindSpore would try for the whole time-out of ten minutes."""
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = str(other.getsockname()[1])
            program = command(write_recipe(tmp_path / "tiny.yaml"), tmp_path / "run")
            with start_two(program, tmp_path, "--master_port", port) as started:
                assert started.wait(60) != 0
        line = (
            f"error: port {port} of 127.0.0.1 is in use by another program: give msrun another one with --master_port"
        )
        for rank in range(2):
            assert line in started.of_rank(rank).splitlines()

    def test_a_worker_that_is_killed(self, tmp_path):
        with start_two(command(write_recipe(tmp_path / "tiny.yaml"), tmp_path / "run"), tmp_path) as started:
            assert wait_until(lambda: len(started.workers()) == 2, started)
            os.kill(started.workers()[1], signal.SIGKILL)
            assert started.wait(30) != 0

    def test_workers_that_msrun_did_not_start(self, tmp_path):
        """It wants 8 on a machine, and leaves its scheduler behind."""
        program = command(write_recipe(tmp_path / "tiny.yaml"), tmp_path / "run")
        with Started(program, tmp_path, ["--worker_num", "2"]) as started:
            assert started.wait(60) != 0
            end = time.monotonic() + 60
            while "error: " not in started.text() and time.monotonic() < end:
                time.sleep(0.1)
            assert "give --worker_num 2 --local_worker_num 2\n" in started.text()


@pytest.mark.parametrize("victim", [0, 1])
def test_another_host_that_dies(tmp_path, victim):
    """Two hosts by their names: the second's is one that `unshare` lets us choose."""
    aside = ["unshare", "-u", "sh", "-c", 'hostname another-host; exec "$@"', "sh"]
    if subprocess.run([*aside, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let us play another host")
    program = [sys.executable, *map(str, command(write_recipe(tmp_path / "tiny.yaml", mode=1), tmp_path / "run"))]
    cluster = {"MS_WORKER_NUM": "2", "MS_SCHED_HOST": "127.0.0.1", "MS_SCHED_PORT": str(free_port())}
    parts = [("MS_SCHED", "0", []), ("MS_WORKER", "0", []), ("MS_WORKER", "1", aside)]
    with contextlib.ExitStack() as stack:
        processes, logs = [], [tmp_path / f"{number}.log" for number in range(3)]
        for log, (role, rank, before) in zip(logs, parts, strict=True):
            settings = {"MS_ROLE": role, "RANK_ID": rank, "MS_NODE_ID": rank, "PYTHONPATH": str(ROOT)}
            stream = stack.enter_context(log.open("w"))
            environment = {**os.environ, **cluster, **settings}
            process = subprocess.Popen(
                [*before, *program], cwd=tmp_path, env=environment, stdout=stream, stderr=subprocess.STDOUT
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes.append(process)
        end = time.monotonic() + 120
        while last_step(tmp_path / "run") < 2 and time.monotonic() < end:
            time.sleep(0.05)
        processes[1 + victim].kill()
        assert processes[2 - victim].wait(60) == 1
        assert processes[0].wait(60) != 0
    said = logs[2 - victim].read_text(errors="replace")
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: rank {victim} on {('', 'another-host')[victim]}")
    assert (
        f"died, so rank {1 - victim} ends too; its own output tells why. Every checkpoint is whole: start again" in line
    )
    assert "Traceback" not in said
