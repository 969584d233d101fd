"""The folder of a run: whose it is, what is written there, and what is left of a run before."""

import math
import os
import re
import shutil

import pytest
from support.processes import records
from support.runs import names, tiny

from mindrepvgg.errors import TrainingError
from mindrepvgg.recipe.sources import load_recipe
from mindrepvgg.training.monitor import Progress
from mindrepvgg.training.resume import find_run
from mindrepvgg.training.run_folder import RunFolder
from mindrepvgg.training.trainer import Trainer
from mindrepvgg.weights.containers import read_weights

pytestmark = pytest.mark.usefixtures("digits_read_once", "no_curves")


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

    @pytest.mark.usefixtures("few_digits")
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
        def refuse(_, path, *__):
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

    @pytest.mark.parametrize("mode", [1, pytest.param(0, marks=pytest.mark.slow)], ids=["pynative", "graph"])
    @pytest.mark.usefixtures("few_digits")
    def test_the_remainder_can_be_used(self, tmp_path, mode):
        """400 = 2 * 150 + 100: a third step of another shape, in graph mode too."""
        changes = {"mode": mode, "batch_size": 150, "drop_remainder": False, "epoch_size": 1, "log_interval": 1}
        Trainer(tiny(tmp_path, val_while_train=False, **changes)).run()
        trained = [record for record in records(tmp_path) if record["event"] == "train"]
        assert [record["step"] for record in trained] == [1, 2, 3]
        assert all(math.isfinite(record["loss"]) for record in trained)
