"""Where a run stands, written and read back."""

import json
import math
import shutil
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from mindspore import Tensor
from support import FROZEN

from mindrepvgg import create_model
from mindrepvgg.errors import TrainingError, UserError
from mindrepvgg.recipe.provenance import COMMAND_LINE
from mindrepvgg.recipe.sources import load_recipe
from mindrepvgg.training.assemble import build_learning_rates
from mindrepvgg.training.resume import Position, find_run, recipe_of_run, restore
from mindrepvgg.training.schedule import SCHEDULE
from mindrepvgg.training.trainer import Trainer
from mindrepvgg.weights.containers import read_weights, write_weights


class TestPosition:
    def test_a_round_trip_through_json(self):
        position = Position(
            ranks=8,
            images_per_step=256,
            epoch=3,
            step_in_epoch=7,
            skipped=2,
            best_top1=71.25,
            best_epoch=2,
            kept=[[2, 71.25], [3, None]],
            interval_losses=[0.5, None, 0.1],
        )
        text = json.dumps(position.to_dict(), allow_nan=False)
        found = Position.from_dict(json.loads(text), "x.ckpt")
        assert found == position
        assert found.best_ema_top1 == -math.inf
        assert json.loads(text)["best_ema_top1"] is None

    def test_a_fresh_one(self):
        found = Position.from_dict(json.loads(json.dumps(Position().to_dict(), allow_nan=False)), "x.ckpt")
        assert found == Position()
        assert found.best_top1 == -math.inf
        assert found.kept is not Position().kept

    @pytest.mark.parametrize(
        "entry",
        [
            {"epoch": "3"}, {"epoch": 1.0}, {"epoch": -1}, {"epoch": 10**30}, {"epoch": None}, {"ranks": True},
            {"best_top1": "high"}, {"kept": 3}, {"kept": [3]}, {"kept": [[1, "a"]]}, {"kept": [["../x", 1.0]]},
            {"interval_losses": {"a": 1}}, {"interval_losses": [[1]]}, {"bad_images": [0.5]}, {"skipped": "x" * 10**6},
            {"schedule": 0}, {"schedule": 3}, {"schedule": True},
        ],
        ids=lambda entry: str(entry)[:40],
    )  # fmt: skip
    def test_an_entry_that_cannot_be(self, entry):
        (key,) = entry
        with pytest.raises(TrainingError, match=f"^x.ckpt is not described rightly: position's {key} cannot") as caught:
            Position.from_dict({**Position().to_dict(), **entry}, "x.ckpt")
        assert len(str(caught.value)) < 300

    def test_an_entry_of_a_newer_version(self):
        with pytest.raises(TrainingError, match="has the unknown entry 'rng'; resume with the version that wrote it"):
            Position.from_dict({**Position().to_dict(), "rng": [1, 2]}, "x.ckpt")


class TestALyingCheckpoint:
    """Sealed, and of no run all the same."""

    @pytest.fixture(scope="class")
    def run(self, tmp_path_factory):
        """A run before its first step, of the frozen run's recipe."""
        pytest.importorskip("mlxtend")
        folder = tmp_path_factory.mktemp("run")
        return Trainer(load_recipe(FROZEN / "run" / "recipe.yaml", {"ckpt_save_dir": str(folder)}))

    def refusal(self, run, path, description=None, **arrays):
        """The text with which a changed copy of the frozen run is refused; None for an array leaves it out."""
        found = read_weights(FROZEN / "run" / "repvgg_last.ckpt")
        kept = {name: array for name, array in {**found.arrays, **arrays}.items() if array is not None}
        write_weights(path, kept, {**found.description, **(description or {})})
        with pytest.raises(UserError) as caught:
            restore(path, run, Position(run.ranks.size, run.images_per_step, SCHEDULE))
        assert str(path) in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
        return str(caught.value)

    def test_the_honest_one_is_taken(self, run):
        """Negative control of the tests below."""
        found = restore(
            FROZEN / "run" / "repvgg_last.ckpt", run, Position(run.ranks.size, run.images_per_step, SCHEDULE)
        )
        assert (found.epoch, found.step_in_epoch) == (1, 7)

    def test_a_position(self, run, tmp_path):
        own = read_weights(FROZEN / "run" / "repvgg_last.ckpt").description
        for entry, words in (
            ({"epoch": 4}, "its position is epoch 4, step 7, of 3 epochs of 10 steps"),
            ({"epoch": 3}, "its position is epoch 3, step 7, of 3 epochs of 10 steps"),
            ({"step_in_epoch": 11}, "its position is epoch 1, step 11, of 3 epochs of 10 steps"),
            ({"ranks": 0}, "is not described rightly: its position is"),
            ({"rng": 1}, "its position has the unknown entry 'rng'"),
        ):
            assert words in self.refusal(run, tmp_path / "x.ckpt", {"position": {**own["position"], **entry}})
        assert "holds a network but not the state" in self.refusal(run, tmp_path / "x.ckpt", {"step": None})
        assert "unknown key 'momenta'" in self.refusal(
            run, tmp_path / "x.ckpt", {"recipe": {**own["recipe"], "momenta": 1}}
        )

    def test_the_optimizer_s_state(self, run, tmp_path):
        path = tmp_path / "x.ckpt"
        for name, array in (
            ("learning_rate", None),
            ("global_step", None),
            ("global_step", np.array([1, 2], np.int32)),
            ("global_step", np.array([-1], np.int32)),
            ("global_step", np.array([10**6], np.int32)),
        ):
            text = self.refusal(run, path, **{f"training_state.{name}": array})
            assert "lacks the optimizer's state, or tells of more updates than its run has steps" in text
        moment = "training_state.accum.linear.bias"
        assert "1 missing: accum.linear.bias" in self.refusal(run, path, **{moment: None})
        for shape in ((), (3,), (1, 3), (2, 2, 2)):
            text = self.refusal(run, path, **{"training_state.statistics_of_ranks": np.zeros(shape, np.float32)})
            assert f"holds statistics_of_ranks of the impossible shape {shape}" in text


@pytest.mark.parametrize("name", ["run", "bn_run", "qat_run"])
def test_a_run_of_an_older_version_is_taken_up(name, tmp_path):
    """With each array where it belongs; tests/test_frozen.py trains on from there."""
    pytest.importorskip("mlxtend")
    last = shutil.copytree(FROZEN / name, tmp_path / name) / "repvgg_last.ckpt"
    trainer = Trainer(recipe_of_run(last).replace(ckpt_save_dir=str(last.parent)), resume=last)
    found = read_weights(last)
    assert trainer.steps_done == found.description["step"] > 0
    held = {parameter.name: parameter for parameter in trainer.net.get_parameters()}
    for parameter in (*trainer.step.optimizer.get_parameters(), *trainer.step.state.values()):
        held.setdefault(f"training_state.{parameter.name}", parameter)
    for key, array in found.arrays.items():
        np.testing.assert_array_equal(held[key].asnumpy(), array, err_msg=key)


class TestFindRun:
    """Of a run that lies where its recipe does not say, as after a move."""

    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        return shutil.copytree(FROZEN / "run", tmp_path / "moved")

    @pytest.mark.parametrize(
        ("resume", "overrides"),
        [
            ("moved", {}),
            ("moved/", {}),
            (True, {"ckpt_save_dir": "moved"}),
            (True, {"ckpt_save_dir": "moved", "seed": 7}),
        ],
    )
    def test_a_folder_goes_on_with_its_own_recipe(self, folder, resume, overrides):
        recipe, last = find_run(resume, None, overrides, COMMAND_LINE)
        assert last.samefile(folder / "repvgg_last.ckpt")
        assert recipe.ckpt_save_dir.rstrip("/") == "moved"
        own = load_recipe(folder / "recipe.yaml")
        assert recipe == own.replace(ckpt_save_dir=recipe.ckpt_save_dir, seed=overrides.get("seed", own.seed))
        if "seed" in overrides:
            assert recipe.sources["seed"] == COMMAND_LINE

    def test_the_folder_of_the_recipe(self, folder):
        given = load_recipe(folder / "recipe.yaml", {"ckpt_save_dir": "moved"})
        assert find_run(True, given, {}) == (given, folder.relative_to(folder.parent) / "repvgg_last.ckpt")
        assert find_run("moved", given.replace(ckpt_save_dir="elsewhere"), {})[0] == given

    def test_a_checkpoint_goes_on_where_its_recipe_says(self, folder):
        recipe, last = find_run(folder / "repvgg_last.ckpt", None, {})
        assert (recipe.ckpt_save_dir, last) == ("run", folder / "repvgg_last.ckpt")

    def test_of_two_runs_the_model_chooses(self, folder):
        shutil.copy(folder / "repvgg_last.ckpt", folder / "repvgg_a0_last.ckpt")
        with pytest.raises(TrainingError, match="holds 2 runs"):
            find_run("moved", None, {})
        assert find_run("moved", None, {"model": "RepVGG"})[1].name == "repvgg_last.ckpt"

    def test_there_is_none(self, folder):
        for resume in (True, "."):
            with pytest.raises(TrainingError, match=r"_last\.ckpt does not exist: there is no run to resume"):
                find_run(resume, None, {})


class TestScheduleOfAnOlderRun:
    """The run that 0.1 stopped: a cosine whose last step has min_lr, where one of today has its step before that."""

    RUN = FROZEN / "run" / "repvgg_last.ckpt"

    def resumed(self, epochs):
        """Take the run up: the trainer's rates, those of its optimizer, and its position."""
        recipe = recipe_of_run(self.RUN).replace(epoch_size=epochs)
        run = mock.MagicMock(recipe=recipe, steps_per_epoch=10)
        run.net = create_model(recipe.model, recipe.num_classes, recipe.in_channels, **recipe.model_args)
        run.learning_rates = lambda schedule: build_learning_rates(recipe, 10, 400, schedule)
        run.lr = run.learning_rates(SCHEDULE)
        run.step = SimpleNamespace(set_train=lambda: None, optimizer=SimpleNamespace(global_step=Tensor([14])))
        position = restore(self.RUN, run, Position(1, recipe.global_batch(1), SCHEDULE))
        return run.lr, run.state.put_back.call_args.args[0]["learning_rate"], position

    @pytest.mark.parametrize("epochs", [3, 7])
    def test_it_keeps_its_own(self, epochs):
        shown, used, position = self.resumed(epochs)
        assert position.schedule == 1
        assert len(shown) == 10 * epochs
        assert shown[-1] == 0
        assert (used == shown).all()
