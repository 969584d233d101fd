"""The training loop: what it writes, that it repeats itself bit for bit, and every way in which it may end."""

import json
import math
import os
import re
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
from mindrepvgg.training.monitor import Progress
from mindrepvgg.training.resume import find_run, recipe_of_run
from mindrepvgg.training.run_folder import RunFolder, find_last
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


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run from start to end in graph mode; nothing may be changed in its folder."""
    folder = tmp_path_factory.mktemp("run")
    return Trainer(tiny(folder)).run()


@pytest.fixture(scope="module")
def pynative_run(tmp_path_factory):
    """The folder of a run in PyNative mode, from start to end; nothing may be changed there."""
    return Trainer(tiny(tmp_path_factory.mktemp("pynative"), mode=ms.PYNATIVE_MODE)).run().last.parent


@pytest.fixture(params=[pytest.param("graph", marks=pytest.mark.slow), "pynative"])
def whole(request, run, pynative_run):
    """(mode, folder) of a run from start to end in each mode.

    In graph mode the default suite stops and repeats a run in test_ctrl_c_and_the_command_it_prints.
    """
    return {"graph": (ms.GRAPH_MODE, run.last.parent), "pynative": (ms.PYNATIVE_MODE, pynative_run)}[request.param]


@pytest.fixture
def copied(run, tmp_path):
    """A copy of the finished run's folder."""
    return Path(shutil.copytree(run.last.parent, tmp_path / "copy"))


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

    def test_ctrl_c_and_the_command_it_prints(self, run, tmp_path):
        """As a user does it; the folder's name needs quoting."""
        folder = tmp_path / "my first run"
        recipe = tmp_path / "tiny.yaml"
        recipe.write_text(yaml.safe_dump(TINY))
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        process = subprocess.Popen(
            [sys.executable, "train.py", "-c", recipe, "--ckpt_save_dir", folder],
            cwd=ROOT,
            env=environment,
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
        advice = re.search(r"To continue: (mindrepvgg train --resume .+)", out).group(1)
        resumed = subprocess.run(
            advice, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180, check=False
        )
        assert resumed.returncode == 0, resumed.stderr
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


class TestTheFolder:
    def test_a_folder_that_holds_a_run_is_refused(self, copied):
        before = {name: (copied / name).read_bytes() for name in names(copied)}
        for changes in ({}, {"model": "repvgg_nano", "model_args": {}}):
            with pytest.raises(
                TrainingError,
                match=r"copy holds a run already \(repvgg_last\.ckpt\); add --resume to continue it, --overwrite to",
            ):
                Trainer(tiny(copied, **changes))
        assert {name: (copied / name).read_bytes() for name in names(copied)} == before

    def test_a_dry_run_takes_any_folder_and_writes_nothing(self, pynative_run, tmp_path, capsys, monkeypatch):
        bars = []

        class Counted(Progress):
            def __init__(self, total, *arguments, **options):
                bars.append([total, 0])
                super().__init__(total, *arguments, **options)

            def step(self, *arguments):
                bars[-1][1] += 1

        monkeypatch.setattr("mindrepvgg.training.trainer.Progress", Counted)
        folder = shutil.copytree(pynative_run, tmp_path / "copy")
        before = {name: (folder / name).read_bytes() for name in names(folder)}
        with RunFolder(folder, "repvgg").owned():
            assert Trainer(tiny(folder, mode=1, lr=0.05, compile_cache=True), dry_run=True).run() is None
            Trainer(tiny(tmp_path / "new", mode=1), dry_run=True)
        out = capsys.readouterr().out
        assert bars == [[6, 6]], "the bar counts the steps that are run, compilation's too"
        assert re.search(r"ms a step \(median of 5\)", out)
        assert re.search(r"\nabout \d+ s for 20 steps; validation comes on top\ndry run: nothing was written\n$", out)
        data = r"\nmnist5k: 4,000 pictures to train on, 1,000 to validate on, 10 classes, \d+x\d+ pixels\n2 epochs of"
        assert re.search(data, out)
        assert "output" not in out
        assert {name: (folder / name).read_bytes() for name in names(folder)} == before
        assert names(tmp_path) == ["copy"]

    def test_event_files_are_told_with_the_command_that_shows_them(self, copied):
        recipe, last = find_run(copied, None, {"tensorboard": True})
        lines = Trainer(recipe, resume=last).describe().splitlines()
        assert f"to look at the curves: pip install tensorboard; tensorboard --logdir {copied}/tensorboard" in lines

    def test_a_folder_of_a_living_run_is_refused(self, copied, monkeypatch):
        """Before data and network are there, and if it came after that."""
        monkeypatch.setattr("mindrepvgg.training.run_folder._PATIENCE", 0.0)
        last = copied / "repvgg_last.ckpt"
        trainer, under_way = Trainer(tiny(copied), resume=last), f"under way, process {os.getpid()} on "
        with RunFolder(copied, "repvgg").owned():
            before = {name: (copied / name).read_bytes() for name in names(copied)}
            for options in ({"resume": last}, {"overwrite": True}, {}):
                with pytest.raises(TrainingError, match=under_way):
                    Trainer(tiny(copied), **options)
            with pytest.raises(TrainingError, match=under_way):
                trainer.run()
            assert {name: (copied / name).read_bytes() for name in names(copied)} == before

    def test_a_run_that_came_and_went_meanwhile_is_noticed(self, copied, tmp_path):
        trainers = [Trainer(tiny(copied), resume=copied / "repvgg_last.ckpt"), Trainer(tiny(tmp_path / "new"))]
        (tmp_path / "new").mkdir()
        for trainer in trainers:
            shutil.copy(copied / "repvgg_best.ckpt", trainer.folder.last)
            before = names(trainer.folder.path)
            with pytest.raises(TrainingError, match=r"another run wrote to .+ while this one was starting; start this"):
                trainer.run()
            assert names(trainer.folder.path) == before

    def test_overwriting_leaves_nothing_of_the_old_run(self, copied):
        (copied / "repvgg_deploy.ckpt").touch()
        (copied / "repvgg-notes.ckpt").touch()
        before = names(copied)
        changes = {"mode": 1, "epoch_size": 1, "val_while_train": False, "keep_checkpoint_max": 0}
        trainer = Trainer(tiny(copied, **changes), overwrite=True)
        assert names(copied) == before, "before it runs, nothing is lost"
        trainer.run()
        files = [
            "curves.png",
            "log.jsonl",
            "recipe.yaml",
            "repvgg-notes.ckpt",
            "repvgg_deploy.ckpt",
            "repvgg_last.ckpt",
        ]
        assert names(copied) == files
        assert {record["epoch"] for record in records(copied)} == {1}
        assert load_recipe(copied / "recipe.yaml").epoch_size == 1

    def test_nothing_is_removed_before_everything_fits(self, copied):
        before = names(copied)
        with pytest.raises(Exception, match=r"batch_size \(=4001\) is larger than the 4,000 training pictures"):
            Trainer(tiny(copied, batch_size=4001), overwrite=True)
        assert names(copied) == before

    @pytest.mark.usefixtures("few_digits")
    def test_without_validation_and_epoch_checkpoints(self, tmp_path):
        result = Trainer(tiny(tmp_path, mode=1, epoch_size=1, val_while_train=False, keep_checkpoint_max=0)).run()
        assert (result.evaluation, result.best_top1) == (None, -math.inf)
        assert names(tmp_path) == ["log.jsonl", "recipe.yaml", "repvgg_last.ckpt"]
        assert read_weights(result.last).description["position"]["best_top1"] is None

    @pytest.mark.usefixtures("few_digits")
    def test_curves_that_cannot_be_drawn_end_no_run(self, tmp_path, monkeypatch, capsys):
        def refuse(_, path, __):
            raise OSError(28, "No space left on device", str(path))

        monkeypatch.setattr("mindrepvgg.training.loop.draw_curves", refuse)
        changes = {"mode": 1, "epoch_size": 2, "val_while_train": False, "keep_checkpoint_max": 0}
        assert Trainer(tiny(tmp_path, **changes)).run().finished
        warning = f"warning: the curves cannot be drawn: {tmp_path}/curves.png: No space left on device\n"
        assert capsys.readouterr().out.count(warning) == 1

    @pytest.mark.usefixtures("few_digits")
    def test_a_prolonged_run_takes_its_precise_bn_anew(self, tmp_path):
        changes = {"mode": 1, "val_while_train": False, "keep_checkpoint_max": 0, "precise_bn_steps": 1}
        for epochs in (1, 1, 2):
            resume = None if epochs == 1 and not names(tmp_path) else tmp_path / "repvgg_last.ckpt"
            Trainer(tiny(tmp_path, epoch_size=epochs, **changes), resume=resume).run()
        assert [r["epoch"] for r in records(tmp_path) if r["event"] == "precise_bn"] == [1, 2]

    @pytest.mark.usefixtures("few_digits")
    def test_the_newest_epochs_are_kept(self, tmp_path):
        changes = {"mode": 1, "epoch_size": 4, "keep_checkpoint_max": 2, "val_interval": 3}
        Trainer(tiny(tmp_path, **changes)).run()
        assert [name for name in names(tmp_path) if "-" in name] == ["repvgg-3.ckpt", "repvgg-4.ckpt"]
        judged = [record["epoch"] for record in records(tmp_path) if record["event"] == "validate"]
        assert judged == [3, 4], "every third epoch, and the last"

    @pytest.mark.usefixtures("few_digits")
    def test_the_remainder_can_be_used(self, tmp_path):
        """400 = 2 * 150 + 100: a third step of another shape, in graph mode too."""
        changes = {"batch_size": 150, "drop_remainder": False, "epoch_size": 1, "log_interval": 1}
        shape = {**TINY["model_args"], "num_blocks": [1, 1, 1, 1]}
        Trainer(tiny(tmp_path, val_while_train=False, model_args=shape, **changes)).run()
        trained = [record for record in records(tmp_path) if record["event"] == "train"]
        assert [record["step"] for record in trained] == [1, 2, 3]
        assert all(math.isfinite(record["loss"]) for record in trained)
