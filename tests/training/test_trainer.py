"""The training loop: what it writes, that it repeats itself bit for bit, and every way in which it may end."""

import json
import math
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import yaml
from PIL import Image
from support.processes import assert_same_run, records
from support.runs import STEPS, STEPS_PER_EPOCH, TINY, each_step, names, run_until, tiny

from mindrepvgg import load_checkpoint
from mindrepvgg.errors import TrainingError
from mindrepvgg.recipe.sources import load_recipe, recipe_from_dict
from mindrepvgg.training.resume import find_run, recipe_of_run
from mindrepvgg.training.run_folder import find_last
from mindrepvgg.training.trainer import Trainer
from mindrepvgg.weights.containers import read_weights, write_weights

ROOT = Path(__file__).parents[2]


pytestmark = pytest.mark.usefixtures("digits_read_once", "no_curves")

TRAIN_KEYS = {"event", "epoch", "step", "progress", "loss", "lr", "images_per_second", "data_wait"}


VALIDATE_KEYS = {
    "event",
    "epoch",
    "step",
    "top1",
    "top5",
    "loss",
    "num_images",
    "correct",
    "unreadable",
    "images_per_second",
}


@pytest.fixture(params=[pytest.param("graph", marks=pytest.mark.slow), "pynative"])
def whole(request, run, pynative_run):
    """(mode, folder) of a run from start to end in each mode.

    In graph mode the default suite stops and repeats a run in test_ctrl_c_and_the_command_it_prints.
    """
    return {"graph": (ms.GRAPH_MODE, run.last.parent), "pynative": (ms.PYNATIVE_MODE, pynative_run)}[request.param]


class TestAWholeRun:
    def test_it_learns(self, run):
        losses = [record["loss"] for record in records(run.last.parent) if record["event"] == "train"]
        assert losses[0] > 1.8
        assert losses[-1] < losses[0] - 0.3
        assert run.finished
        assert run.best_top1 == max(r["top1"] for r in records(run.last.parent) if r["event"] == "validate")
        assert run.best_top1 > 20, "ten classes: guessing gives 10"

    def test_the_files(self, run):
        assert names(run.last.parent) == [
            "curves.png",
            "log.jsonl",
            "recipe.yaml",
            "repvgg-2.ckpt",  # keep_checkpoint_max is 1
            "repvgg_best.ckpt",
            "repvgg_last.ckpt",
        ]
        with Image.open(run.curves) as picture:
            assert picture.format == "PNG"

    def test_the_log(self, run):
        lines = [json.loads(line) for line in (run.last.parent / "log.jsonl").read_text().splitlines()]
        assert [(r["event"], r["epoch"], r["step"]) for r in lines] == [
            *[("train", 1, step) for step in (4, 8, 10)],
            ("validate", 1, 10),
            *[("train", 2, step) for step in (12, 16, 20)],
            ("validate", 2, 20),
        ]
        for record in lines:
            assert set(record) == (TRAIN_KEYS if record["event"] == "train" else VALIDATE_KEYS)
            assert all(math.isfinite(value) for key, value in record.items() if key != "event")
            assert record["images_per_second"] > 0
        trained = [record for record in lines if record["event"] == "train"]
        assert [record["progress"] for record in trained] == [0.4, 0.8, 1.0, 1.2, 1.6, 2.0]
        rates = [0.05 * (1 + math.cos(math.pi * (record["step"] - 1) / STEPS)) for record in trained]
        np.testing.assert_allclose([record["lr"] for record in trained], rates, atol=1e-7)
        judged = [record for record in lines if record["event"] == "validate"]
        assert all(r["num_images"] == 1000 and r["correct"] == round(10 * r["top1"]) for r in judged)

    def test_the_recipe_loads_back(self, run):
        expected = tiny(run.last.parent)
        assert load_recipe(run.last.parent / "recipe.yaml") == expected
        assert recipe_from_dict(read_weights(run.last).description["recipe"]) == expected

    def test_the_checkpoints_say_what_they_are(self, run):
        last, best = (read_weights(path).description for path in (run.last, run.best))
        assert (last["epoch"], last["step"], last["dataset"], last["image_size"]) == (2, STEPS, "mnist5k", [16, 16])
        assert last["class_names"] == list("0123456789")
        expected = {"mean": [0.1307], "std": [0.3081], "crop_pct": 1.0, "interpolation": "bilinear"}
        assert last["preprocessing"] == expected
        assert last["position"]["best_top1"] == run.best_top1 == best["metrics"]["top1"]
        assert "position" not in best

    def test_only_the_last_holds_the_optimizer(self, run):
        state = [name for name in read_weights(run.last).arrays if name.startswith("training_state.")]
        assert "training_state.moments.linear.weight" in state
        assert not [name for name in read_weights(run.best).arrays if name.startswith("training_state.")]
        assert set(read_weights(run.best).arrays) == {p.name for p in load_checkpoint(run.last).get_parameters()}

    def test_another_seed_starts_elsewhere(self, tmp_path):
        one, other = (Trainer(tiny(tmp_path, seed=seed)).net.linear.weight.asnumpy() for seed in (1, 2))
        assert (one != other).all()

    @pytest.mark.compat
    def test_pynative_mode_trains_the_same(self, run, pynative_run):
        found, expected = (records(folder)[:4] for folder in (pynative_run, run.last.parent))
        assert [record["step"] for record in found] == [4, 8, 10, 10]
        np.testing.assert_allclose([r["loss"] for r in found[:3]], [r["loss"] for r in expected[:3]], rtol=0, atol=1e-4)
        assert found[3]["top1"] == pytest.approx(expected[3]["top1"], abs=0.5)


class TestResuming:
    @pytest.mark.compat
    def test_a_run_that_was_stopped_is_the_run_that_was_not(self, whole, tmp_path):
        """Stopped in the middle of a log interval, in the last step of an epoch, and by a file; with fewer threads."""
        mode, expected = whole
        recipe = tiny(tmp_path, mode=mode, num_parallel_workers=1)
        stopped = run_until(Trainer(recipe), 6)
        assert read_weights(stopped.last).description["position"]["step_in_epoch"] == 6
        assert [record["step"] for record in records(tmp_path)] == [4]
        stopped = run_until(Trainer(recipe, resume=stopped.last), STEPS_PER_EPOCH)
        assert read_weights(stopped.last).description["position"]["step_in_epoch"] == 0
        trainer = Trainer(recipe, resume=stopped.last)
        stopped = each_step(trainer, lambda now, _: (tmp_path / "stop").touch() if now == 13 else None).run()
        assert not stopped.finished
        assert trainer.steps_done == 16, "the file is taken up where the log is written"
        assert "stop" not in names(tmp_path)
        (tmp_path / "stop").touch()  # too late for that session, and not meant for the next
        result = Trainer(recipe_of_run(stopped.last), resume=stopped.last).run()
        assert result.finished
        best = read_weights(expected / "repvgg_last.ckpt").description["position"]["best_top1"]
        assert result.best_top1 == best
        assert_same_run(tmp_path, expected, changed=["num_parallel_workers"])

    @pytest.mark.slow
    def test_a_run_with_blocks_of_another_kind(self, tmp_path):
        """The compiled step of diverse branch blocks, stopped within an epoch."""
        blocks = {"block": "dbb", "block_where": ["stage1.*", "stage3.*"], "epoch_size": 1}
        assert Trainer(tiny(tmp_path / "whole", **blocks)).run().finished
        stopped = run_until(Trainer(tiny(tmp_path / "stopped", **blocks)), 6)
        assert Trainer(recipe_of_run(stopped.last), resume=stopped.last).run().finished
        assert_same_run(tmp_path / "stopped", tmp_path / "whole")

    def test_ctrl_c_and_the_command_it_prints(self, run, tmp_path, call):
        """As a user does it, but that the command runs in this process; the folder's name needs quoting."""
        folder = tmp_path / "my first run"
        recipe = tmp_path / "tiny.yaml"
        recipe.write_text(yaml.safe_dump(TINY))
        process = subprocess.Popen(
            [sys.executable, "train.py", "-c", recipe, "--ckpt_save_dir", folder],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            deadline = time.monotonic() + 120
            log = folder / "log.jsonl"
            while not (log.exists() and '"step": 4' in log.read_text()):
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline, "no step was logged"
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == 130, err
        assert "stopping soon" in err
        position = read_weights(folder / "repvgg_last.ckpt").description["position"]
        assert position["step_in_epoch"] > 0, "the signal was to arrive in the middle of an epoch"
        program, *advice = shlex.split(re.search(r"To continue: (.+)", out).group(1))
        status, _, err = call(*advice)
        assert (program, status) == ("mindrepvgg", 0), err
        assert_same_run(folder, run.last.parent)

    def test_a_finished_run_has_nothing_to_do(self, copied, capsys):
        recipe, last = find_run(copied, None, {})
        assert recipe.ckpt_save_dir == str(copied)
        before = last.read_bytes()
        result = Trainer(recipe, resume=last).run()
        assert result.finished
        assert last.read_bytes() == before
        assert len(records(copied)) == 8
        assert f"the run in {copied} was finished before, with 2 epochs; to" in capsys.readouterr().out

    def test_a_dry_run_of_a_finished_run(self, copied, capsys):
        before = {name: (copied / name).read_bytes() for name in names(copied)}
        recipe, last = find_run(copied, None, {})
        assert Trainer(recipe, resume=last, dry_run=True).run() is None
        assert "was finished before, with 2 epochs" in capsys.readouterr().out
        assert {name: (copied / name).read_bytes() for name in names(copied)} == before

    def test_a_finished_run_is_prolonged(self, pynative_run, tmp_path, caplog):
        """Beyond its end, with the learning rates that a run of so many epochs has, and the state it had."""
        folder = shutil.copytree(pynative_run, tmp_path / "copy")
        before = records(folder)
        recipe, last = find_run(folder, None, {"epoch_size": 3, "precise_bn_steps": 0})
        trainer = Trainer(recipe, resume=last)
        expected = [0.05 * (1 + math.cos(math.pi * step / (STEPS + STEPS_PER_EPOCH))) for step in range(STEPS, 30)]
        rate = 0.05 * (1 + math.cos(math.pi * (STEPS - 1) / STEPS))
        (told,) = caplog.messages
        assert told.endswith(
            f"_last.ckpt is prolonged from 2 to 3 epochs: the learning rate was {rate:.4g} in the last step and is "
            f"{expected[0]:.4g} in the next, as cosine_decay has it over 3 epochs"
        )
        state = read_weights(last).arrays
        for moment in trainer.step.optimizer.moments:
            np.testing.assert_array_equal(moment.asnumpy(), state[f"training_state.{moment.name}"])
        assert trainer.run().finished
        after = records(folder)
        assert after[: len(before)] == before
        assert [(r["event"], r["step"]) for r in after[len(before) :]] == [
            *[("train", step) for step in (24, 28, 30)],
            ("validate", 30),
        ]
        logged = [r["lr"] for r in after[len(before) :] if r["event"] == "train"]
        np.testing.assert_allclose(logged, [expected[3], expected[7], expected[9]], atol=1e-7)
        assert recipe_of_run(last).epoch_size == 3
        with pytest.raises(TrainingError, match="epoch_size was 3 and is now 2; epoch_size can only grow"):
            Trainer(tiny(folder, mode=1), resume=last)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"lr": 0.05}, ["lr was 0.1 and is now 0.05"]),
            ({"seed": 1, "epoch_size": 1}, ["epoch_size was 2 and is now 1", "seed was 42 and is now 1"]),
            ({"seed": 1, "epoch_size": 3}, ["seed was 42 and is now 1"]),
            ({"batch_size": 200}, ["batch_size was 400 and is now 200"]),
            ({"mode": 1}, ["mode was 0 and is now 1"]),
        ],
    )
    def test_another_recipe_is_refused(self, copied, changes, words):
        log = (copied / "log.jsonl").read_bytes()
        with pytest.raises(TrainingError) as caught:
            Trainer(tiny(copied, **changes), resume=copied / "repvgg_last.ckpt")
        text = str(caught.value)
        assert "cannot be continued exactly: " in text
        assert all(word in text for word in words)
        assert text.count(" was ") == len(words), "no other key is blamed"
        weights = copied / "repvgg_last.ckpt"
        assert text.endswith(
            f"a new run from its weights in another folder: --pretrained {weights} --ckpt_save_dir FOLDER"
        )
        assert (copied / "log.jsonl").read_bytes() == log

    def test_on_another_number_of_images_a_step(self, pynative_run, tmp_path, caplog):
        """From the start of the epoch, with the learning rates of its own steps."""
        found = read_weights(pynative_run / "repvgg_last.ckpt")
        found.description["position"] |= {"ranks": 2, "images_per_step": 800, "epoch": 1, "step_in_epoch": 2}
        found.arrays["training_state.learning_rate"] = found.arrays["training_state.learning_rate"][::2]
        found.arrays["training_state.global_step"] = np.array([7], np.int32)
        write_weights(tmp_path / "repvgg_last.ckpt", found.arrays, found.description)
        trainer = Trainer(tiny(tmp_path, mode=1), resume=tmp_path / "repvgg_last.ckpt")
        assert "epoch 2 is started again: its steps are others now" in caplog.messages
        assert trainer.steps_done == trainer.step.optimizer.global_step.asnumpy().item() == STEPS_PER_EPOCH
        (rates,) = (p for p in trainer.step.optimizer.get_parameters() if p.name == "learning_rate")
        np.testing.assert_array_equal(rates.asnumpy(), trainer.lr)

    def test_where_things_lie_may_change(self, copied, tmp_path):
        changes = {"keep_checkpoint_max": 5, "num_parallel_workers": 1, "device_target": "CPU"}
        recipe = tiny(tmp_path / "moved", **changes).replace("moved.yaml", data_dir="elsewhere")
        trainer = Trainer(recipe, resume=copied / "repvgg_last.ckpt")
        assert trainer.steps_done == STEPS

    def test_the_optimizer_is_filled(self, copied):
        trainer = Trainer(tiny(copied), resume=copied / "repvgg_last.ckpt")
        state = read_weights(copied / "repvgg_last.ckpt").arrays
        assert int(trainer.step.optimizer.global_step.asnumpy().item()) == STEPS
        for moment in trainer.step.optimizer.moments:
            np.testing.assert_array_equal(moment.asnumpy(), state[f"training_state.{moment.name}"])
            assert moment.asnumpy().any()

    def test_a_network_without_a_run_is_refused(self, copied, tmp_path):
        with pytest.raises(TrainingError, match=r"_best\.ckpt holds a network but not the state of a run; resume from"):
            Trainer(tiny(tmp_path / "new"), resume=copied / "repvgg_best.ckpt")
        with pytest.raises(TrainingError, match="holds a network but not the state of a run"):
            recipe_of_run(copied / "repvgg_best.ckpt")

    def test_there_is_no_run(self, tmp_path):
        with pytest.raises(TrainingError, match=r"repvgg_last\.ckpt does not exist: there is no run to resume;"):
            find_last(tmp_path, "repvgg")

    def test_another_runs_folder_is_refused(self, run, copied):
        """Going on there would write over the run that the folder holds."""
        before = {name: (copied / name).read_bytes() for name in names(copied)}
        with pytest.raises(TrainingError, match=r"holds another run \(repvgg_last\.ckpt\) than .*; give another"):
            Trainer(tiny(copied), resume=run.last)
        assert {name: (copied / name).read_bytes() for name in names(copied)} == before
