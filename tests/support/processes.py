"""Programs as a user starts them, alone or two at a time under msrun, whose processes a test may then kill."""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest
import yaml
from filelock import FileLock

from mindrepvgg.weights.containers import read_weights
from support import TINY_DIGITS

ROOT = Path(__file__).parents[2]

# Workers are leaders of their own process groups, so all of a run's processes are found by what they inherited.
_MARK = "MINDREPVGG_TEST_RUN"

# Nothing that is not the same in two runs of one recipe.
_VARIES = ("images_per_second", "data_wait")

# 4000 real digits in 10 steps an epoch; the parts of training that carry something from one step to the next.
TINY = {
    **TINY_DIGITS,
    "scale": [0.7, 1.0],
    "hflip": 0.0,
    "mixup": 0.2,
    "cutmix": 1.0,
    "batch_size": 200,
    "gradient_accumulation_steps": 2,
    "epoch_size": 5,
    "lr": 0.1,
    "warmup_epochs": 1,
    "clip_grad": True,
    "clip_value": 1.0,
    "ema": True,
    "ema_decay": 0.99,
    "loss_scale_type": "dynamic",
    "loss_scale": 1024,
    "loss_scale_window": 7,
    "num_parallel_workers": 1,
    "log_interval": 1,
    "keep_checkpoint_max": 1,
    "device_target": "CPU",
}


def write_recipe(path, **changes):
    """TINY with changes as a yaml file; returns its path."""
    path.write_text(yaml.safe_dump({**TINY, **changes}))
    return path


def command(yaml, folder, *more):
    """train.py with a recipe and its run in a folder."""
    return [ROOT / "train.py", "-c", yaml, "--ckpt_save_dir", folder, *more]


class Printed:
    """What a program that was started in a folder has printed, and under msrun each of its processes."""

    def __init__(self, folder):
        self.output, self.logs = folder / "output.txt", folder / "msrun"

    def text(self) -> str:
        """All of it."""
        files = [self.output, *sorted(self.logs.glob("*.log"))]
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')}" for path in files)

    def of_rank(self, rank) -> str:
        """A single rank's."""
        return (self.logs / f"worker_{rank}.log").read_text(errors="replace")


def once(tmp_path_factory, name, make):
    """A folder filled by make(folder), and what that returned, in JSON's types; by the first to ask in a test session.

    pytest-xdist's workers each have fixtures of their own; these take long.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder, result = base / name, base / f"{name}.json"
    with FileLock(base / f"{name}.lock"):
        if not result.exists():
            shutil.rmtree(folder, ignore_errors=True)  # another worker may have failed in there
            folder.mkdir()
            value = make(folder)
            result.write_text(json.dumps(value))
    return folder, json.loads(result.read_text())


class Started(Printed):
    """A program that was started, with everything it starts itself; all of it is gone when the body is done.

    A context manager. Its output goes to the file `output`. launcher: arguments of msrun, which then starts the program
    and writes its logs to the folder `logs`. settings: of its environment.
    """

    def __init__(self, program, folder, launcher=None, **settings):
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder)
        binaries = os.path.dirname(sys.executable)
        self._mark = uuid.uuid4().hex
        self._since = time.time()
        environment = {
            **os.environ,
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
        }
        environment.update({_MARK: self._mark, **settings})
        command = [sys.executable, *map(str, program)]
        if launcher is not None:
            # msrun starts the `python` it finds on PATH.
            places = ["--master_port", str(free_port()), "--log_dir", str(self.logs), "--join", "True"]
            command = [f"{binaries}/msrun", *places, *launcher, "python", *map(str, program)]
        with self.output.open("w") as stream:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self._own():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    def last_step(self, folder) -> int:
        """The last step in a run's log, if it was this program that wrote it; otherwise 0."""
        with contextlib.suppress(FileNotFoundError):
            if (folder / "log.jsonl").stat().st_mtime >= self._since:
                return last_step(folder)
        return 0

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def wait(self, timeout=400) -> int:
        """The exit status; a run that hangs is a failure."""
        return self._process.wait(timeout)

    def kill(self):
        """SIGKILL to the program itself."""
        self._process.kill()
        self._process.wait()

    @contextlib.contextmanager
    def launcher_stopped(self):
        """While the body runs, msrun itself does nothing."""
        os.kill(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)

    def workers(self) -> dict[int, int]:
        """Process ids by rank, of the workers that msrun has started."""
        own = [process for process in self._own() if process.info["environ"].get("MS_ROLE") == "MS_WORKER"]
        # The `tail` that shows a worker's log carries its environment as well, and so does what watches a worker.
        programs = [process for process in own if (process.info["cmdline"] or [""])[0].endswith("python")]
        workers = [process for process in programs if not process.info["cmdline"][1].endswith("gathering.py")]
        return {int(process.info["environ"]["RANK_ID"]): process.pid for process in workers}

    def _own(self) -> list[psutil.Process]:
        """All processes that carry this run's mark."""
        every = psutil.process_iter(["environ", "cmdline"])
        return [process for process in every if (process.info["environ"] or {}).get(_MARK) == self._mark]


def start_two(program, folder, *more) -> Started:
    """The program as two ranks under msrun; `more`: of its arguments."""
    return Started(program, folder, ["--worker_num", "2", "--local_worker_num", "2", *more])


def run_two(program, folder):
    """Run the program as two ranks to its end, which must be a good one."""
    with start_two(program, folder) as started:
        assert started.wait() == 0, started.text()


def free_port():
    """A port nobody listens at, below those the system gives to clients: they would take it before msrun does."""
    while True:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as server, contextlib.suppress(OSError):
            server.bind(("127.0.0.1", port))
            return port


def wait_until(condition, started, timeout=120):
    """Wait for a condition of a running program; True when it came, False when the program ended before."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if condition():
            return True
        if not started.running:
            return False
        time.sleep(0.01)
    raise AssertionError(f"nothing happened in {timeout} s:\n{started.text()}")


def last_step(folder) -> int:
    """The last step in a run's log; 0 when there is none."""
    with contextlib.suppress(FileNotFoundError):
        lines = (folder / "log.jsonl").read_text().split("\n")[:-1]
        return max((json.loads(line)["step"] for line in lines), default=0)
    return 0


def records(folder):
    """A run's log records without what no two runs share."""
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in _VARIES} for line in lines]


def checkpoints(folder):
    return sorted(path.name for path in folder.glob("*.ckpt"))


def assert_same_run(folder, expected, changed=()):
    """Every parameter, the optimizer's state, the averages, the log and what the checkpoints say agree bit for bit.

    But the training losses in the log, whose last bit depends on the age of the process, see test_loss.py.
    changed: keys of the recipe, besides the folder, that the two runs do not share.
    """
    assert checkpoints(folder) == checkpoints(expected)
    for name in checkpoints(expected):
        found, other = read_weights(folder / name), read_weights(expected / name)
        assert list(found.arrays) == list(other.arrays)
        for key, array in other.arrays.items():
            assert found.arrays[key].tobytes() == array.tobytes(), f"{key} in {name}"
        for description in (found.description, other.description):
            description["metrics"].pop("images_per_second")
            for key in ("ckpt_save_dir", *changed):
                description["recipe"].pop(key)
        assert found.description == other.description
    losses, others = (_train_losses(records(place)) for place in (folder, expected))
    assert losses == {place: pytest.approx(loss, rel=2**-23) for place, loss in others.items()}
    assert [_without_loss(r) for r in records(folder)] == [_without_loss(r) for r in records(expected)]


def _train_losses(lines):
    return {(r["step"], r["epoch"]): r["loss"] for r in lines if r["event"] == "train"}


def _without_loss(record):
    return {key: value for key, value in record.items() if (record["event"], key) != ("train", "loss")}
