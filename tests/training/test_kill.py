"""A run that is killed without warning, again and again, and started again, is the run that was left alone."""

import os
import random
import signal
import time

import pytest
from support.processes import (
    ROOT,
    Started,
    assert_same_run,
    command,
    last_step,
    run_two,
    start_two,
    wait_until,
    write_recipe,
)

from mindrepvgg import load_checkpoint

EPOCHS, STEPS_PER_EPOCH = 3, 5

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
    assert wait_until(lambda: last_step(folder) >= step, started), f"over before step {step}:\n{started.text()}"
    time.sleep(delay)


@pytest.mark.parametrize(
    ("seed", "often"), [(0, False), *(pytest.param(seed, True, marks=pytest.mark.slow) for seed in (0, 1, 2))]
)
def test_killed_again_and_again(tmp_path, seed, often):
    """While checkpoints are written and in the middle of an epoch; often: before anything is saved and after, too."""
    rng = random.Random(seed)
    yaml = write_recipe(tmp_path / "tiny.yaml", batch_size=400, epoch_size=EPOCHS, mode=1)
    with Started(command(yaml, tmp_path / "whole"), tmp_path) as started:
        assert started.wait() == 0, started.text()
    folder = tmp_path / "killed"

    def in_epoch(epoch):
        step = STEPS_PER_EPOCH * epoch + rng.randrange(1, STEPS_PER_EPOCH)
        with Started(go_on(yaml, folder), tmp_path) as started:
            kill_at(started, folder, step, rng.uniform(0, 0.2))
            assert started.running, "it was to be killed, not to end"
            started.kill()

    def saving(name, count):
        kind = rng.choice(["before", "after"])
        arguments = go_on(yaml, folder)[1:]
        with Started(["-c", DIES_SAVING, name, count, kind, *arguments], tmp_path) as started:
            assert started.wait() == -signal.SIGKILL, started.text()

    if often:
        in_epoch(0)
        assert not list(folder.glob("*.ckpt"))
    saving("_last.ckpt", 1)
    assert_what_is_there_is_whole(folder)
    in_epoch(EPOCHS - 2)
    if often:
        saving(rng.choice([f"-{EPOCHS - 1}.ckpt", "log.jsonl", "curves.png"]), rng.randrange(1))
        assert_what_is_there_is_whole(folder)
        in_epoch(EPOCHS - 1)
    # With MindSpore's threads as users have them; conftest.py has the other runs do one operator after the other.
    with Started(go_on(yaml, folder), tmp_path, MS_DEV_HOST_BLOCKING_RUN="0") as started:
        assert started.wait() == 0, started.text()
    assert_same_run(folder, tmp_path / "whole")


class TestTwoWorkers:
    """A single kill of one of two is in test_distributed.py."""

    pytestmark = pytest.mark.slow

    @pytest.fixture(scope="class")
    def whole(self, tmp_path_factory):
        place = tmp_path_factory.mktemp("whole")
        yaml = write_recipe(place / "tiny.yaml", batch_size=200, epoch_size=EPOCHS)
        run_two(command(yaml, place / "run"), place)
        return yaml, place / "run"

    def test_killed_five_times(self, whole, tmp_path):
        """One of them, either, or both."""
        yaml, expected = whole
        folder, rng = tmp_path / "killed", random.Random(0)
        for epoch in range(EPOCHS):
            step = STEPS_PER_EPOCH * epoch + rng.randrange(1, STEPS_PER_EPOCH)
            with start_two(go_on(yaml, folder), tmp_path / str(epoch)) as started:
                kill_at(started, folder, step, rng.uniform(0, 0.1))
                workers = started.workers()
                assert sorted(workers) == [0, 1], started.text()
                for rank in rng.choice([[0], [1], [0, 1]]):
                    os.kill(workers[rank], signal.SIGKILL)
                assert started.wait() != 0
            assert_what_is_there_is_whole(folder)
        run_two(go_on(yaml, folder), tmp_path / "end")
        assert_same_run(folder, expected)

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
