"""A run that is killed without warning, again and again, and started again, is the run that was left alone."""

import os
import random
import re
import signal
import socket
import time

import pytest
from support import context_mode
from support.processes import (
    ROOT,
    Started,
    assert_same_run,
    command,
    run_two,
    start_two,
    wait_until,
    write_recipe,
)

from mindrepvgg import load_checkpoint, train
from mindrepvgg.errors import TrainingError
from mindrepvgg.training.run_folder import RunFolder

EPOCHS, STEPS_PER_EPOCH = 3, 5  # of batches of 400

# train.py that kills itself while it saves: at the first checkpoint of that name after COUNT others, once it is
# written (kind 'before') or has its name ('after').
DIES_SAVING = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
name, count, kind, *arguments = sys.argv[1:]
replace, left = os.replace, int(count)
def replace_or_die(source, target):
    global left
    if str(target).endswith(name):
        left -= 1
        if left < 0:
            if kind == "after":
                replace(source, target)
            os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = replace_or_die
import train
train.main(arguments)
"""


def go_on(yaml, folder):
    """The command that starts a run or, once it has saved something, takes it up again."""
    return command(yaml, folder, "--resume" if list(folder.glob("*_last.ckpt")) else "--overwrite")


def assert_what_is_there_is_whole(folder):
    for path in folder.glob("*.ckpt"):
        load_checkpoint(path)


def kill_at(started, folder, step, delay):
    """SIGKILL some seconds after a step is in the log."""
    came = wait_until(lambda: started.last_step(folder) >= step, started, 400)
    assert came, f"over before step {step}:\n{started.text()}"
    time.sleep(delay)


def kill_saving(yaml, folder, name, count, kind):
    """Go on until the run kills itself, see DIES_SAVING."""
    arguments = go_on(yaml, folder)[1:]
    with Started(["-c", DIES_SAVING, name, count, kind, *arguments], folder.parent) as started:
        assert started.wait() == -signal.SIGKILL, started.text()
    assert_what_is_there_is_whole(folder)


def kill_in_epoch(yaml, folder, step, delay):
    """Go on, and kill the run some seconds after a step; until then nobody else may use the folder."""
    with Started(go_on(yaml, folder), folder.parent) as started:
        kill_at(started, folder, step, delay)
        assert started.running, "it was to be killed, not to end"
        assert_owned_by(folder, started.pid)
        started.kill()
    assert_what_is_there_is_whole(folder)


def assert_owned_by(folder, pid):
    with pytest.raises(TrainingError, match=f"under way, process {pid} on {re.escape(socket.gethostname())};"):
        RunFolder(folder, "repvgg").check_free()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Nobody waits here for the end of a run that lives; the runs themselves wait as ever."""
    monkeypatch.setattr("mindrepvgg.training.run_folder._PATIENCE", 0.0)


def assert_the_run_left_alone(yaml, folder):
    """Go on to the end, and compare with a run of the same recipe that nobody killed."""
    whole = folder.with_name("whole")
    with context_mode("pynative"):  # a run sets the mode for the process
        assert train(yaml, ckpt_save_dir=whole).finished
    # With MindSpore's threads as users have them; conftest.py has the other runs do one operator after the other.
    with Started(go_on(yaml, folder), folder.parent, MS_DEV_HOST_BLOCKING_RUN="0") as started:
        assert started.wait() == 0, started.text()
    assert_same_run(folder, whole)
    assert not list(folder.glob(".*.partial"))


@pytest.mark.processes
def test_killed_while_it_saves(tmp_path):
    """While the last checkpoint is written, of two epochs of 3 steps."""
    yaml, folder = write_recipe(tmp_path / "tiny.yaml", batch_size=600, epoch_size=2, mode=1), tmp_path / "killed"
    kill_saving(yaml, folder, "_last.ckpt", 0, "before")
    assert_the_run_left_alone(yaml, folder)


# Of 4 epochs of 10 steps.
TEN_MOMENTS = [
    (kill_in_epoch, 3, 0.05),
    (kill_saving, "_last.ckpt", 0, "before"),
    (kill_in_epoch, 7, 0.0),
    (kill_saving, "_best.ckpt", 0, "after"),
    (kill_saving, "_last.ckpt", 0, "after"),
    (kill_in_epoch, 14, 0.02),
    (kill_saving, "curves.png", 0, "before"),
    (kill_saving, "log.jsonl", 0, "before"),
    (kill_in_epoch, 27, 0.1),
    (kill_saving, "-3.ckpt", 0, "after"),
]


@pytest.mark.slow
def test_killed_at_ten_moments(tmp_path):
    yaml, folder = write_recipe(tmp_path / "tiny.yaml", epoch_size=4, mode=1), tmp_path / "killed"
    for kill, *moment in TEN_MOMENTS:
        kill(yaml, folder, *moment)
    assert_the_run_left_alone(yaml, folder)


class TestTwoWorkers:
    """A single kill of one of two is in test_distributed.py."""

    pytestmark = pytest.mark.slow

    @pytest.fixture(scope="class")
    def whole(self, tmp_path_factory):
        place = tmp_path_factory.mktemp("whole")
        yaml = write_recipe(place / "tiny.yaml", batch_size=200, epoch_size=EPOCHS)
        run_two(command(yaml, place / "run"), place)
        return yaml, place / "run"

    def test_killed_at_ten_moments(self, tmp_path):
        """One of them, either, or both."""
        yaml, rng = write_recipe(tmp_path / "tiny.yaml", batch_size=100, epoch_size=4), random.Random(0)
        run_two(command(yaml, tmp_path / "whole"), tmp_path / "alone")
        folder = tmp_path / "killed"
        for step in (2, 5, 9, 12, 16, 19, 23, 26, 29, 33):
            with start_two(go_on(yaml, folder), tmp_path / str(step)) as started:
                kill_at(started, folder, step, rng.uniform(0, 0.1))
                workers = started.workers()
                assert sorted(workers) == [0, 1], started.text()
                assert_owned_by(folder, workers[0])
                for rank in rng.choice([[0], [1], [0, 1]]):
                    os.kill(workers[rank], signal.SIGKILL)
                assert started.wait() != 0
            assert_what_is_there_is_whole(folder)
        run_two(go_on(yaml, folder), tmp_path / "end")
        assert_same_run(folder, tmp_path / "whole")
        assert not list(folder.glob(".*.partial"))

    @pytest.mark.parametrize("told", [(0, 1), (1,)])
    def test_told_to_stop_in_the_middle_of_an_epoch(self, whole, tmp_path, told):
        """Every rank's own BN statistics are in the checkpoint."""
        yaml, expected = whole
        folder = tmp_path / "stopped"
        with start_two(command(yaml, folder), tmp_path) as started:
            kill_at(started, folder, STEPS_PER_EPOCH + 2, 0)
            workers = started.workers()
            for rank in told:
                os.kill(workers[rank], signal.SIGTERM)
            assert started.wait() != 0, "130 of train.py makes msrun fail"
        assert "stopped; the state is saved" in started.of_rank(0)
        position = load_checkpoint(folder / "repvgg_last.ckpt").metadata["position"]
        assert (position["epoch"], position["ranks"]) == (1, 2)
        assert position["step_in_epoch"] >= 2
        run_two(go_on(yaml, folder), tmp_path / "end")
        assert_same_run(folder, expected)
