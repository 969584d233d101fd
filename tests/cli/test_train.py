"""mindrepvgg train: what it tells without training, and what it hands to the trainer."""

import shutil
from pathlib import Path

import pytest
import yaml
from support import FROZEN, TINY_DIGITS

from mindrepvgg import create_model
from mindrepvgg.recipe.mindcv_keys import mindcv_notice
from mindrepvgg.recipe.sources import load_recipe
from mindrepvgg.training.result import RunResult


class TestShow:
    """What train.py tells without training, and without data."""

    def test_the_recipe_with_its_sources(self, files, call):
        status, out, err = call("train", "-c", files / "folder_data.yaml", "--show_config", "--lr_per_batch", "500")
        assert (status, err) == (0, "")
        assert f"batch_size: 250  # {files}/folder_data.yaml\n" in out
        assert "seed: 42  # default\n" in out
        assert out.endswith("# lr 0.1 per 500 -> 0.05 at global batch 250 (1 device x 250)\n")

    def test_the_recipe_of_a_run(self, files, call):
        status, out, _ = call("train", "--resume", files / "run_last.ckpt", "--show_config", "--epoch_size", "7")
        assert status == 0
        assert f"batch_size: 250  # {files}/run_last.ckpt\n" in out
        assert "epoch_size: 7  # command line\n" in out

    def test_the_recipe_of_mindcvs(self, files, call):
        values = {"model": "repvgg_a0", "opt": "momentum", "decay_epochs": 80, "dataset_download": False}
        (files / "mindcv.yaml").write_text(yaml.safe_dump(values))
        status, out, _ = call("train", "-c", files / "mindcv.yaml", "--show_config")
        assert status == 0
        assert f"color_jitter: 0.4  # MindCV's default for {files}/mindcv.yaml\n" in out

    def test_the_weight_decay_of_every_parameter(self, files, call):
        status, out, err = call("train", "-c", files / "folder_data.yaml", "--show_param_groups")
        assert (status, err) == (0, "")
        decays = {
            line.split()[0]: line.split()[-1] for line in out.splitlines() if line.startswith(("stage", "linear"))
        }
        names = [
            parameter.name
            for parameter in create_model("repvgg", 10, 1, **TINY_DIGITS["model_args"]).trainable_params()
        ]
        assert list(decays) == names
        assert float(decays["stage0.rbr_dense.conv.weight"]) == 1e-4
        assert float(decays["stage0.rbr_dense.bn.gamma"]) == float(decays["linear.bias"]) == 0


class TestTrain:
    """What train.py hands to the trainer; the training itself is tested elsewhere."""

    @pytest.fixture
    def asked(self, monkeypatch):
        """What a trainer in place of the real one was asked for."""
        asked = {}

        class Recorder:
            def __init__(self, recipe, resume, overwrite, dry_run):
                asked.update(recipe=recipe, resume=resume, overwrite=overwrite, dry_run=dry_run)

            def run(self, profile=False):
                asked.update(profile=profile)
                path = Path("none.ckpt")
                return None if asked["dry_run"] else RunResult(False, None, 0.0, path, path, path)

        monkeypatch.setattr("mindrepvgg.training.trainer.Trainer", Recorder)
        return asked

    @pytest.mark.parametrize(
        ("flags", "status", "dry_run", "profile"),
        [([], 130, False, False), (["--dry_run"], 0, True, False), (["--profile"], 130, False, True)],
    )
    def test_flags_reach_the_trainer(self, files, call, asked, flags, status, dry_run, profile):
        assert call("train", "-c", files / "tiny.yaml", *flags)[0] == status
        assert (asked["dry_run"], asked["profile"]) == (dry_run, profile)
        assert (asked["resume"], asked["overwrite"], asked["recipe"].model) == (None, False, "repvgg")

    @pytest.mark.parametrize("options", [["--resume", "run"], ["--ckpt_save_dir", "run", "--resume"]])
    def test_resuming_needs_the_folder_only(self, call, asked, options, tmp_path, monkeypatch):
        shutil.copytree(FROZEN / "run", tmp_path / "run")
        monkeypatch.chdir(tmp_path)
        assert call("train", *options, "--log_interval", "3")[0] == 130
        assert asked["resume"] == Path("run/repvgg_last.ckpt")
        assert asked["recipe"] == load_recipe("run/recipe.yaml", {"log_interval": 3})

    def test_an_empty_place_to_resume_from_starts_no_run(self, files, call, asked, tmp_path, monkeypatch):
        """As of a shell's variable that is not set."""
        monkeypatch.chdir(tmp_path)
        status, _, err = call("train", "-c", files / "tiny.yaml", "--resume", "")
        assert (status, asked) == (2, {})
        assert "_last.ckpt does not exist: there is no run to resume" in err

    def test_a_recipe_of_mindcvs_is_announced(self, files, call, asked):
        values = {"model": "repvgg_a0", "opt": "momentum", "decay_epochs": 80, "dataset": "mnist5k", "ckpt_path": ""}
        (files / "mindcv.yaml").write_text(yaml.safe_dump(values))
        status, _, _ = call("train", "-c", files / "mindcv.yaml", "--dry_run")
        assert (status, asked["recipe"].color_jitter) == (0, 0.4)
        assert mindcv_notice(asked["recipe"]).startswith(f"{files}/mindcv.yaml is read as a recipe of MindCV's: ")
