"""train.py, validate.py and convert.py as a user runs them: answers, exit statuses, and errors of one line."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from mindspore import Tensor
from support import TINY_DIGITS, contents, context_mode, randomise_bn

import mindrepvgg
from mindrepvgg import create_model, load_checkpoint, save_checkpoint, to_deploy
from mindrepvgg.recipe.mindcv_keys import mindcv_notice
from mindrepvgg.recipe.sources import load_recipe
from mindrepvgg.training.result import RunResult
from mindrepvgg.weights.containers import read_weights

ROOT = Path(__file__).parents[2]

RECIPE = {**TINY_DIGITS, "batch_size": 250, "num_parallel_workers": 2}


@pytest.fixture(autouse=True)
def _mode():
    """A command sets the process's mode."""
    with context_mode("graph"):
        yield


def run_script(*arguments):
    """A script in a process of its own."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def trained_net(num_classes=10):
    """A network that tells images apart, as a trained one would; it need not be right."""
    net = randomise_bn(create_model("repvgg", num_classes, 1, **RECIPE["model_args"]))
    rng = np.random.default_rng(0)
    for parameter in (net.linear.weight, net.stage0.rbr_dense.conv.weight, net.stage0.rbr_1x1.conv.weight):
        parameter.set_data(Tensor(rng.normal(size=parameter.shape), parameter.dtype))
    return net


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Checkpoints: train.ckpt, deploy.ckpt, five.ckpt of five classes, and run_last.ckpt of an unfinished run."""
    folder = tmp_path_factory.mktemp("originals")
    recipe = load_recipe(None, RECIPE)
    facts = {
        "image_size": [16, 16],
        "dataset": "mnist5k",
        "class_names": list("0123456789"),
        "recipe": recipe.to_dict(),
        "preprocessing": {"mean": [0.1307], "std": [0.3081], "crop_pct": 1.0, "interpolation": "bilinear"},
    }
    net = trained_net()
    save_checkpoint(net, folder / "train.ckpt", **facts)
    position = {"epoch": 1, "step_in_epoch": 0, "best_top1": None, "best_epoch": 0, "interval_losses": []}
    state = {"moments.linear.bias": np.zeros(10, np.float32)}
    save_checkpoint(net, folder / "run_last.ckpt", training_state=state, position=position, **facts)
    save_checkpoint(to_deploy(net), folder / "deploy.ckpt", **facts)
    save_checkpoint(trained_net(5), folder / "five.ckpt", **{**facts, "class_names": list("01234")})
    return folder


@pytest.fixture
def files(originals, tmp_path):
    """A folder with the checkpoints, damaged ones, recipes and data folders; one for each test."""
    folder = Path(shutil.copytree(originals, tmp_path / "files"))
    content = (folder / "train.ckpt").read_bytes()
    (folder / "cut.ckpt").write_bytes(content[: len(content) // 2])
    (folder / "altered.ckpt").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (folder / "empty.ckpt").touch()
    (folder / "text.ckpt").write_text("not a checkpoint\n")
    for name, text in {
        "tiny": yaml.safe_dump(RECIPE),
        "list": "- 1\n- 2\n",
        "broken": "lr: [0.1\nmodel: x\n",
        "unknown": yaml.safe_dump({**RECIPE, "bach_size": 3}),
        "type": yaml.safe_dump({**RECIPE, "epoch_size": "many"}),
        "folder_data": yaml.safe_dump({**RECIPE, "dataset": "imagenet"}),
        "mindcv_auto": yaml.safe_dump({**RECIPE, "loss_scale_type": "auto", "resume_opt": False}),
    }.items():
        (folder / f"{name}.yaml").write_text(text)
    (folder / "no_data").mkdir()
    (folder / "no_pictures/train/cat").mkdir(parents=True)
    for name in "abcdefghij":
        (folder / "letters/val" / name).mkdir(parents=True)
        cv2.imwrite(str(folder / "letters/val" / name / "1.png"), np.zeros((8, 8), np.uint8))
    return folder


class TestQuickAnswers:
    """Help and mistakes are answered without MindSpore, whose import alone takes seconds."""

    CASES = (
        (["train.py", "--help"], 0, "--batch_size N"),
        (["validate.py", "--help"], 0, "--ckpt_path FILE"),
        (["convert.py", "--help"], 0, "SRC"),
        (["train.py", "--show_config", "--lr", "0.2"], 0, "lr: 0.2  # command line\n"),
        (["train.py", "--lr", "-1"], 2, "error: lr (='-1' on the command line) must be a number above 0\n"),
        (
            ["train.py", "-c", "no.yaml"],
            2,
            "error: recipe no.yaml cannot be read: No such file or directory; check",
        ),
        (["train.py", "--epochs", "3"], 2, "error: unknown option --epochs; did you mean --epoch_size?\n"),
        (["validate.py"], 2, "error: the following arguments are required: CKPT\n"),
        (["validate.py", "--ckpt_path", "x", "--dataset_dir", "y"], 2, "did you mean --data_dir?\n"),
        (["convert.py", "a.ckpt"], 2, "error: give either DST, the file to write, or --inspect\n"),
    )

    @pytest.mark.compat
    @pytest.mark.parametrize(("arguments", "status", "words"), CASES, ids=lambda value: str(value)[:40])
    def test_in_half_a_second(self, arguments, status, words):
        best = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            result = run_script(*arguments)
            best = min(best, time.perf_counter() - start)
            if best < 0.5:
                break
        assert result.returncode == status
        assert words in (result.stdout if status == 0 else result.stderr)
        if status:
            assert result.stdout == ""
            assert len(result.stderr.splitlines()) == 1
        assert best < 0.5, f"{best:.2f} s"

    @pytest.mark.parametrize("arguments", [case[0] for case in CASES[:5]], ids=" ".join)
    def test_mindspore_is_not_imported(self, arguments):
        code = (
            "import runpy, sys; sys.argv = sys.argv[1:]\n"
            "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
            "except SystemExit: pass\n"
            "print('\\nheavy:', sorted({'mindspore', 'numpy', 'cv2'} & set(sys.modules)))"
        )
        result = run_script("-c", code, *arguments)
        assert result.stdout.endswith("heavy: []\n"), result.stderr


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
        names = [parameter.name for parameter in trained_net().trainable_params()]
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
            def __init__(self, recipe, resume, overwrite):
                asked.update(recipe=recipe, resume=resume, overwrite=overwrite)

            def run(self, dry_run=False, profile=False):
                asked.update(dry_run=dry_run, profile=profile)
                path = Path("none.ckpt")
                return None if dry_run else RunResult(False, None, 0.0, path, path, path)

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

    def test_a_recipe_of_mindcvs_is_announced(self, files, call, asked):
        values = {"model": "repvgg_a0", "opt": "momentum", "decay_epochs": 80, "dataset": "mnist5k", "ckpt_path": ""}
        (files / "mindcv.yaml").write_text(yaml.safe_dump(values))
        status, _, _ = call("train", "-c", files / "mindcv.yaml", "--dry_run")
        assert (status, asked["recipe"].color_jitter) == (0, 0.4)
        assert mindcv_notice(asked["recipe"]).startswith(f"{files}/mindcv.yaml is read as a recipe of MindCV's: ")


class TestValidate:
    @pytest.mark.compat
    def test_both_forms_judge_alike(self, files, call):
        """Converted to either container, the network gets the same images right."""
        facts = {}
        for name in ("fused.ckpt", "fused.safetensors"):
            status, out, err = call("convert", files / "train.ckpt", files / name)
            assert (status, err) == (0, ""), err
            assert f"written: {files / name} (deploy form, " in out
        for name in ("train.ckpt", "fused.ckpt", "fused.safetensors"):
            status, out, err = call("validate", "--ckpt_path", files / name, "--json")
            assert (status, err) == (0, ""), err
            facts[name] = json.loads(out)
        train, *fused = facts.values()
        assert (train["form"], [f["form"] for f in fused]) == ("train", ["deploy", "deploy"])
        assert len({f["correct"] for f in facts.values()}) == 1
        assert 0 < train["correct"] < train["num_images"] == 1000
        assert all(f["loss"] == pytest.approx(train["loss"], rel=1e-5) for f in fused)
        assert set(train) == {
            *("model", "form", "dataset", "device", "processes", "engine", "amp_level", "flip", "split_images"),
            *("top1", "top5", "loss", "num_images", "correct", "images_per_second", "unreadable"),
        }

    def test_for_people(self, files, call):
        status, out, err = call("validate", "--ckpt_path", files / "train.ckpt", "--batch_size", "999", "--mode", "1")
        assert (status, err) == (0, "")
        lines = out.splitlines()
        assert lines[0] == "repvgg in train form on mnist5k: 1000 images"
        assert lines[1].startswith("top-1 ")
        assert lines[2].endswith(" images/s on CPU")

    def test_the_command_line_changes_how_it_is_judged(self, files, call):
        _, out, _ = call("validate", "--ckpt_path", files / "train.ckpt", "--json")
        status, other, _ = call("validate", "--ckpt_path", files / "train.ckpt", "--json", "--image_resize", "32")
        assert status == 0
        assert json.loads(other)["loss"] != json.loads(out)["loss"]

    def test_as_a_process(self, files):
        """What is in-process elsewhere, once for real: standard output is the JSON alone."""
        result = run_script("validate.py", "--ckpt_path", files / "train.ckpt", "--json")
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout)["num_images"] == 1000
        result = run_script("validate.py", "--ckpt_path", files / "cut.ckpt")
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr.startswith("error: ")
        assert len(result.stderr.splitlines()) == 1


class TestConvert:
    def test_what_is_written(self, files, call):
        status, out, _ = call("convert", files / "run_last.ckpt", files / "new/fused.ckpt")
        assert status == 0
        assert "equivalent (tolerance 0.0001 of the largest output)" in out
        assert out.count("stage") == 6, "a line a block"
        net = load_checkpoint(files / "new/fused.ckpt", form="deploy")
        known = net.metadata
        assert known["converted_from"] == "run_last.ckpt"
        assert known["class_names"] == list("0123456789")
        assert known["versions"]["mindrepvgg"] == mindrepvgg.__version__
        assert 0 <= known["equivalence"]["max_rel"] <= known["equivalence"]["rtol"] == 1e-4
        names = set(read_weights(files / "new/fused.ckpt").arrays)
        assert names == {p.name for p in net.get_parameters()}, "nothing of the optimizer goes along"

    def test_a_deploy_checkpoint_only_changes_its_container(self, files, call):
        status, out, err = call("convert", files / "deploy.ckpt", files / "again.safetensors")
        assert (status, err) == (0, "")
        assert "equivalent" not in out, "nothing was fused, so nothing was proven"
        found, expected = (read_weights(files / name).arrays for name in ("again.safetensors", "deploy.ckpt"))
        assert {k: a.tobytes() for k, a in found.items()} == {k: a.tobytes() for k, a in expected.items()}

    def test_converting_again_replaces_the_result(self, files, call):
        (files / "fused.ckpt").write_text("an older result")
        assert call("convert", files / "train.ckpt", files / "fused.ckpt")[0] == 0
        load_checkpoint(files / "fused.ckpt", form="deploy")

    @pytest.mark.compat
    @pytest.mark.parametrize("existing", [False, True])
    def test_a_difference_writes_nothing(self, files, call, monkeypatch, existing):
        def damaged(net):
            deployed = to_deploy(net)
            bias = deployed.stage2[0].rbr_reparam.bias
            bias.set_data(bias + 0.1)
            return deployed

        if existing:
            (files / "fused.ckpt").write_text("an older result")
        before = contents(files)
        monkeypatch.setattr("mindrepvgg.weights.convert.to_deploy", damaged)
        status, out, err = call("convert", files / "train.ckpt", files / "fused.ckpt")
        assert status == 1
        assert err.startswith("error: the two forms differ: stage2.0: the weights differ from the fused branches by ")
        assert err.count("\n") == 1
        assert "NOT equivalent" in out
        assert "written" not in out
        assert contents(files) == before
        # Undamaged, the same command works.
        monkeypatch.undo()
        assert call("convert", files / "train.ckpt", files / "fused.ckpt")[0] == 0

    def test_a_tolerance_of_nothing_is_not_met(self, files, call):
        before = contents(files)
        status, _, err = call("convert", files / "train.ckpt", files / "fused.ckpt", "--rtol", "0")
        assert (status, contents(files)) == (1, before)
        assert err.startswith("error: the two forms differ: ")

    @pytest.mark.parametrize("name", ["train.ckpt", "../files/train.ckpt", "link.ckpt"])
    def test_onto_itself(self, files, call, name):
        (files / "link.ckpt").symlink_to("train.ckpt")
        before = contents(files)
        status, _, err = call("convert", files / "train.ckpt", files / name)
        assert status == 2
        assert err == f"error: {files / name} is the source itself; give the result another name\n"
        assert contents(files) == before


# (command, arguments, what the error says); {f} is the folder of `files`, {t} train.py's recipe and output folder.
TRAIN = "-c {f}/tiny.yaml --ckpt_save_dir {f}/out"
BAD_INPUT = [
    ("validate", "--ckpt_path {f}/none.ckpt", "none.ckpt does not exist"),
    ("validate", "--ckpt_path {f}", "is a folder, expected a checkpoint file"),
    ("validate", "--ckpt_path {f}/train.ckpt/x.ckpt", "cannot be read: Not a directory"),
    ("validate", "--ckpt_path {f}/cut.ckpt", "cut.ckpt is damaged or no checkpoint: it is cut short"),
    ("validate", "--ckpt_path {f}/altered.ckpt", "altered.ckpt was altered after it was written"),
    ("validate", "--ckpt_path {f}/empty.ckpt", "empty.ckpt is empty: it was never written to the end"),
    ("validate", "--ckpt_path {f}/text.ckpt", "text.ckpt is damaged or no checkpoint"),
    (
        "validate",
        "--ckpt_path {f}/five.ckpt",
        "num_classes (=5) differs from the 10 classes of the val split",
    ),
    ("validate", "--ckpt_path {f}/train.ckpt --batch_size 0", "batch_size (='0' on the command line) must be"),
    ("validate", "--ckpt_path {f}/train.ckpt --dataset imagenet", "data_dir is not given"),
    ("validate", "--ckpt_path {f}/train.ckpt --dataset imagenet --data_dir {f}/none", "none does not exist"),
    ("validate", "--ckpt_path {f}/train.ckpt --dataset imagenet --data_dir {f}/text.ckpt", "text.ckpt is a file"),
    ("validate", "--ckpt_path {f}/train.ckpt --dataset imagenet --data_dir {f}/no_data", "no class folders in"),
    (
        "validate",
        "--ckpt_path {f}/train.ckpt --dataset imagenet --data_dir {f}/letters",
        "missing ['0', '1', '2', '3',",
    ),
    (
        "validate",
        "--ckpt_path {f}/train.ckpt --dataset cifar",
        "dataset (='cifar' on the command line) must be imagenet",
    ),
    ("validate", "--ckpt_path {f}/train.ckpt --mode 2", "argument --mode: invalid choice"),
    ("convert", "{f}/none.ckpt {f}/fused.ckpt", "none.ckpt does not exist"),
    ("convert", "{f}/cut.ckpt {f}/fused.ckpt", "cut.ckpt is damaged or no checkpoint"),
    ("convert", "{f}/altered.ckpt {f}/fused.ckpt", "altered.ckpt was altered after it was written"),
    (
        "convert",
        "{f}/deploy.ckpt {f}/again.ckpt --form train",
        "is in deploy form: its branches are fused and cannot be recovered",
    ),
    ("convert", "{f}/train.ckpt {f}/fused.onnx", "fused.onnx must end in one of .ckpt, .safetensors, "),
    ("convert", "{f}/train.ckpt {f}/text.ckpt/fused.ckpt", "text.ckpt: File exists"),
    ("convert", "{f}/train.ckpt {f}/fused.ckpt --rtol few", "argument --rtol: invalid float value"),
    ("train", "-c {f}/none.yaml", "none.yaml cannot be read: No such file or directory; check the path"),
    ("train", "-c {f}", "cannot be read: Is a directory"),
    ("train", "-c {f}/list.yaml", "list.yaml must hold lines `key: value`, it holds a list"),
    ("train", "-c {f}/broken.yaml", "broken.yaml, line 2: "),
    ("train", "-c {f}/train.ckpt", "train.ckpt is not yaml text: "),
    ("train", "-c {f}/unknown.yaml", "unknown key 'bach_size' in {f}/unknown.yaml; did you mean 'batch_size'?"),
    ("train", "-c {f}/type.yaml", "epoch_size (='many' in {f}/type.yaml) must be a whole number of at least 1"),
    (
        "train",
        "-c {f}/mindcv_auto.yaml",
        "loss_scale_type (='auto' in {f}/mindcv_auto.yaml) would leave the loss scale",
    ),
    ("train", f"{TRAIN} --bach_size 3", "unknown option --bach_size; did you mean --batch_size?"),
    ("train", f"{TRAIN} --num_classes 5", "num_classes (=5) differs from the 10 classes of the train split of mnist5k"),
    ("train", f"{TRAIN} --batch_size 4001", "batch_size (=4001) is larger than the 4000 training pictures"),
    ("train", "-c {f}/folder_data.yaml --ckpt_save_dir {f}/out", "data_dir is not given"),
    ("train", "-c {f}/folder_data.yaml --ckpt_save_dir {f}/out --data_dir {f}/no_data", "no folder train in"),
    ("train", "-c {f}/folder_data.yaml --ckpt_save_dir {f}/out --data_dir {f}/no_pictures", "no pictures in"),
    ("train", "-c {f}/folder_data.yaml --ckpt_save_dir {f}/out --data_dir {f}/tiny.yaml", "tiny.yaml is a file"),
    ("train", "-c {f}/tiny.yaml --ckpt_save_dir {f}/text.ckpt", "text.ckpt: File exists"),
    ("train", "-c {f}/tiny.yaml --ckpt_save_dir {f}/text.ckpt/out", "Not a directory"),
    ("train", "-c {f}/tiny.yaml --ckpt_save_dir /proc/nothing/out", "/proc/nothing"),
    ("train", f"{TRAIN} --resume", "out/repvgg_last.ckpt does not exist: there is no run to resume; start one without"),
    ("train", f"{TRAIN} --resume {{f}}/none.ckpt", "none.ckpt does not exist"),
    ("train", f"{TRAIN} --resume {{f}}/train.ckpt", "train.ckpt holds a network but not the state of a run"),
    ("train", "--resume {f}/none.ckpt", "none.ckpt does not exist"),
    ("train", "--resume {f}/cut.ckpt", "cut.ckpt is damaged or no checkpoint"),
    ("train", "--resume {f}/train.ckpt", "train.ckpt holds a network but not the state of a run"),
    ("train", f"{TRAIN} --resume {{f}}/run_last.ckpt --lr 0.5", "lr was 0.1 and is now 0.5"),
    (
        "train",
        f"{TRAIN} --resume --overwrite",
        "--resume continues a run and --overwrite discards it; give one",
    ),
    (
        "train",
        "-c {f}/tiny.yaml --ckpt_save_dir {f}",
        "holds a run already (run_last.ckpt); add --resume",
    ),
]


@pytest.mark.parametrize(("command", "arguments", "words"), BAD_INPUT, ids=[f"{c} {a}" for c, a, _ in BAD_INPUT])
def test_bad_input(files, call, command, arguments, words):
    """One line on stderr, exit status 2, nothing written or overwritten."""
    before = contents(files)
    status, out, err = call(command, *(argument.format(f=files) for argument in arguments.split()))
    assert status == 2
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert words.format(f=files) in err
    assert "Traceback" not in out + err
    assert contents(files) == before


def test_a_good_input_passes_where_the_bad_ones_fail(files, call):
    """Negative control for the table above: the same recipe and folder, without the mistake."""
    status, out, err = call("train", *(TRAIN + " --epoch_size 1 --mode 1").format(f=files).split())
    assert (status, err) == (0, "")
    out_folder = files / "out"
    assert f"validate it: mindrepvgg validate {out_folder / 'repvgg_best.ckpt'}\n" in out
    assert (
        f"fuse it:     mindrepvgg convert {out_folder / 'repvgg_best.ckpt'} {out_folder / 'repvgg_deploy.ckpt'}" in out
    )
