"""What validation reports under each of its options; test_commands.py has the plain use of the command."""

import csv
import functools
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor
from support import SMALL, TINY_DIGITS, VALIDATION_KEYS, randomise_bn
from support.processes import Printed, run_two

from mindrepvgg import create_model, load_checkpoint, save_checkpoint, to_deploy
from mindrepvgg.data.loaders import loader_of, open_split
from mindrepvgg.data.samples import labelled_photos
from mindrepvgg.data.source import spread
from mindrepvgg.evaluation.loop import evaluate
from mindrepvgg.evaluation.torch_reference import TorchReference, read_tensors
from mindrepvgg.recipe.network import recipe_of
from mindrepvgg.runtime.ranks import Ranks

DIGITS = {
    "dataset": "mnist5k",
    "image_size": [16, 16],
    "class_names": list("0123456789"),
    "preprocessing": {"mean": [0.1307], "std": [0.3081], "crop_pct": 1.0, "interpolation": "bilinear"},
}


@pytest.fixture
def call(call):
    """A function (*arguments): validate.py in this process; (exit status, stdout, stderr)."""
    return functools.partial(call, "validate")


@pytest.fixture
def judge(call):
    """A function (*arguments): the JSON of a validation that succeeds, in PyNative mode."""

    def run(*arguments):
        status, out, err = call("--mode", "1", "--json", "--ckpt_path", *arguments)
        assert (status, err) == (0, "")
        return json.loads(out)

    return run


def telling(net):
    """A network that tells images apart; it need not be right."""
    randomise_bn(net)
    rng = np.random.default_rng(0)
    for parameter in (net.linear.weight, net.stage0.rbr_dense.conv.weight, net.stage0.rbr_1x1.conv.weight):
        parameter.set_data(Tensor(rng.normal(size=parameter.shape), parameter.dtype))
    return net


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder with a network of the built-in digits, train.ckpt and deploy.ckpt."""
    folder = tmp_path_factory.mktemp("digits")
    net = telling(create_model("repvgg", 10, 1, **TINY_DIGITS["model_args"]))
    save_checkpoint(net, folder / "train.ckpt", **DIGITS)
    save_checkpoint(to_deploy(net), folder / "deploy.ckpt", **DIGITS)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Folders of real photos, good and damaged: one picture of the second is cut in the middle. And their classes."""
    found = labelled_photos()
    if found is None:
        pytest.skip("the photos are in the package foolbox, which is not installed")
    folder = tmp_path_factory.mktemp("photos")
    for place in ("good", "damaged"):
        for path, label in zip(found.files.paths, found.labels, strict=True):
            target = folder / place / f"{label:03d}" / Path(path).name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    victim = sorted((folder / "damaged").rglob("*.jpg"))[7]
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    return folder, sorted(path.name for path in (folder / "good").iterdir())


@pytest.fixture(scope="module")
def coloured(photos, tmp_path_factory):
    """A function (kind): a checkpoint of a small network for the photos."""
    _, names = photos
    made = {}

    def make(kind):
        if kind not in made:
            net = telling(create_model("repvgg", len(names), **SMALL[kind]))
            made[kind] = tmp_path_factory.mktemp(kind) / f"{kind}.ckpt"
            save_checkpoint(net, made[kind], image_size=[64, 64], class_names=names)
        return made[kind]

    return make


def table(path):
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def matrix(path):
    with open(path, newline="") as stream:
        return np.array([row[1:] for row in csv.reader(stream)][1:], int)


# ---------------------------------------------------------------------------------------------- classes, and the output


def test_files_and_lines_agree(digits, call, tmp_path):
    options = ("--limit", "203", "--flip", "--per_class", tmp_path / "c.csv", "--confusion", tmp_path / "new" / "m.csv")
    status, out, err = call("--ckpt_path", digits / "train.ckpt", *options)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "repvgg in train form on mnist5k: 203 of 1,000 images, spread over all classes"
    assert lines[1] == "logits averaged over each image and its mirror image"
    counts, classes = matrix(tmp_path / "new" / "m.csv"), table(tmp_path / "c.csv")
    assert counts.sum() == 203
    assert set(counts.sum(axis=1)) == {20, 21}
    assert [row["class"] for row in classes] == DIGITS["class_names"]
    assert [int(row["images"]) for row in classes] == counts.sum(axis=1).tolist()
    assert [int(row["correct"]) for row in classes] == counts.diagonal().tolist()
    assert lines[2].startswith(f"top-1 {100 * counts.trace() / 203:.2f}%  top-5 ")
    top5 = sum(float(row["top5"]) * int(row["images"]) / 100 for row in classes)
    assert f"top-5 {100 * round(top5) / 203:.2f}%" in lines[2]
    assert lines[3].endswith(" images/s on CPU")
    worst = sorted(classes, key=lambda row: float(row["top1"]))[:3]
    assert lines[4].startswith("worst classes: ")
    assert [lines[4].count(f"{row['class']!r} {float(row['top1']):.1f}%") for row in worst] == [1, 1, 1]
    assert lines[5:] == [f"written: {tmp_path / 'c.csv'}, {tmp_path / 'new' / 'm.csv'}"]


def test_what_programs_get(digits, judge, tmp_path):
    found = judge(digits / "train.ckpt", "--limit", "100", "--confusion", tmp_path / "m.png")
    assert list(found) == [*VALIDATION_KEYS, "worst_classes"]
    assert (found["num_images"], found["split_images"], found["unreadable"]) == (100, 1000, 0)
    assert (found["processes"], found["engine"], found["amp_level"], found["flip"]) == (1, "mindspore", "O0", False)
    assert [list(row) for row in found["worst_classes"]] == [
        ["name", "images", "correct", "top1", "top5", "taken_for", "times"]
    ] * 3
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")


def test_all_images_where_the_limit_is_above(digits, judge):
    whole = judge(digits / "train.ckpt")
    found = judge(digits / "train.ckpt", "--limit", "1001")
    assert "worst_classes" not in whole
    assert (found.pop("images_per_second"), whole.pop("images_per_second")) > (0, 0)
    assert found == whole
    assert whole["num_images"] == whole["split_images"] == 1000


@pytest.mark.parametrize("form", ["train", "deploy"])
def test_half_precision(digits, call, judge, form):
    single = judge(digits / f"{form}.ckpt", "--limit", "200")
    half = judge(digits / f"{form}.ckpt", "--limit", "200", "--amp_level", "O2")
    assert half["amp_level"] == "O2"
    assert half["loss"] == pytest.approx(single["loss"], rel=5e-3)
    assert half["loss"] != single["loss"]
    _, out, _ = call("--mode", "1", "--ckpt_path", digits / f"{form}.ckpt", "--limit", "10", "--amp_level", "O2")
    assert out.splitlines()[1] == "computed in float16 (O2)"


# ------------------------------------------------------------------------------------------------------- real photos


@pytest.mark.parametrize("policy", ["skip", "replace"])
def test_a_truncated_photo_is_counted_nowhere(photos, coloured, call, judge, tmp_path, policy):
    folder, _ = photos
    net, options = coloured("plain"), ("--on_bad_image", policy, "--bad_image_limit", "0.05", "--batch_size", "8")
    files = ("--per_class", tmp_path / "c.csv", "--confusion", tmp_path / "m.csv")
    found = judge(net, "--data_dir", folder / "damaged", *options, *files)
    assert (found["num_images"], found["unreadable"], found["split_images"]) == (19, 1, 20)
    assert matrix(tmp_path / "m.csv").sum() == sum(int(row["images"]) for row in table(tmp_path / "c.csv")) == 19
    assert found["top1"] == pytest.approx(100 * found["correct"] / 19)
    whole = judge(net, "--data_dir", folder / "good", *options, "--confusion", tmp_path / "whole.csv")
    assert (whole["num_images"], whole["unreadable"]) == (20, 0)
    assert np.abs(matrix(tmp_path / "whole.csv") - matrix(tmp_path / "m.csv")).sum() == 1, "the others as before"
    _, out, _ = call("--mode", "1", "--ckpt_path", net, "--data_dir", folder / "damaged", *options)
    assert out.splitlines()[0] == "repvgg in train form on damaged: 19 images (1 unreadable image not counted)"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--on_bad_image", "error"), ".jpg"),
        (
            ("--bad_image_limit", "0"),
            "1 of 20 pictures could not be read, more than the 0 that bad_image_limit (=0) allows: ",
        ),
    ],
)
def test_a_truncated_photo_that_is_too_much(photos, coloured, call, tmp_path, options, words):
    arguments = ("--ckpt_path", coloured("plain"), "--data_dir", photos[0] / "damaged", *options)
    status, out, err = call("--mode", "1", *arguments, "--per_class", tmp_path / "c.csv")
    assert (status, out) == (2, "")
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert words in line
    assert list(tmp_path.iterdir()) == []


def test_the_other_resizers(photos, coloured, judge):
    options = (coloured("plain"), "--data_dir", photos[0] / "good", "--limit", "4", "--image_resize", "48")
    losses = {name: judge(*options, "--resize_backend", name)["loss"] for name in ("pillow", "opencv", "mindspore")}
    assert len(set(losses.values())) == 3
    assert judge(*options)["loss"] == losses["pillow"]


@pytest.mark.parametrize("kind", ["d2se", "plus"])
def test_another_resolution(photos, coloured, judge, kind):
    """Against PyTorch's functions, over the same images."""
    pytest.importorskip("torch")
    path, few = coloured(kind), 3

    def reference(side):
        recipe = recipe_of(load_checkpoint(path), {"data_dir": str(photos[0] / "good"), "image_resize": side})
        loader = loader_of(recipe, spread(open_split(recipe, "val"), few))
        return evaluate(TorchReference(read_tensors(path, False)), loader)

    found = judge(path, "--data_dir", photos[0] / "good", "--image_resize", "96", "--limit", few)
    expected = reference("96")
    assert (found["num_images"], found["correct"]) == (few, expected.correct)
    assert found["loss"] == pytest.approx(expected.loss, rel=1e-5)
    assert reference("64").loss != pytest.approx(expected.loss, rel=1e-3), "the resolution matters"


# ------------------------------------------------------------------------------------------------------- onnxruntime


@pytest.mark.parametrize("form", ["train", "deploy"])
def test_onnxruntime_judges_alike(digits, judge, call, tmp_path, form):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    options = ("--limit", "300", "--batch_size", "64", "--flip")
    own = judge(digits / f"{form}.ckpt", *options, "--confusion", tmp_path / "own.csv")
    found = judge(digits / f"{form}.ckpt", *options, "--engine", "onnxruntime", "--confusion", tmp_path / "m.csv")
    assert (found["engine"], found["form"]) == ("onnxruntime", form)
    assert found["loss"] == pytest.approx(own["loss"], rel=1e-5)
    np.testing.assert_array_equal(matrix(tmp_path / "m.csv"), matrix(tmp_path / "own.csv"))
    _, out, _ = call("--ckpt_path", digits / f"{form}.ckpt", "--engine", "onnxruntime", "--limit", "10")
    fused = ", fused to deploy form" if form == "train" else ""
    assert out.splitlines()[:2] == [
        f"repvgg in {form} form on mnist5k: 10 of 1,000 images, spread over all classes",
        f"computed by onnxruntime{fused}",
    ]


def test_without_onnxruntime(digits, call, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    status, out, err = call("--ckpt_path", digits / "train.ckpt", "--engine", "onnxruntime")
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert "(extra: onnx)" in err
    assert err.count("\n") == 1


# --------------------------------------------------------------------------------------------------- several processes


class Double(Ranks):
    """A rank of two that is told its own arrays as the other's."""

    def gather(self, array):
        return np.stack([array, array])


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_rank_alone_speaks(digits, call, monkeypatch, tmp_path, rank):
    for name in ("start", "joined"):
        monkeypatch.setattr(f"mindrepvgg.runtime.ranks.{name}", lambda *_: Double(rank, 2))
    files = ("--per_class", tmp_path / "c.csv", "--confusion", tmp_path / "m.csv")
    status, out, err = call("--mode", "1", "--ckpt_path", digits / "train.ckpt", "--limit", "21", *files)
    assert (status, err) == (0, "")
    if rank:
        assert (out, list(tmp_path.iterdir())) == ("", [])
    else:
        assert out.splitlines()[2].endswith(" images/s on CPU, 2 processes")
        assert matrix(tmp_path / "m.csv").sum() == 2 * 11, "11 of the 21 are the first one's"


def test_a_cross_check_is_done_alone(digits, call, monkeypatch):
    monkeypatch.setattr("mindrepvgg.runtime.ranks.start", lambda *_: Double(0, 2))
    status, out, err = call("--ckpt_path", digits / "train.ckpt", "--cross_check")
    assert (status, out) == (2, "")
    assert err == "error: --cross_check is done in one process; start it without msrun\n"


@pytest.mark.slow  # building a cluster alone takes 20 s
def test_two_processes_count_what_one_counts(digits, judge, tmp_path):
    """203 images: the second rank has one less, and the last batch of both is not full."""
    options = (digits / "train.ckpt", "--limit", "203", "--batch_size", "16")
    files = {
        name: ("--per_class", tmp_path / f"{name}.csv", "--confusion", tmp_path / f"{name}_m.csv") for name in "ab"
    }
    alone = judge(*options, *files["a"])
    run_two(["-m", "mindrepvgg", "validate", "--ckpt_path", *options, *files["b"], "--json", "--mode", "1"], tmp_path)
    said = [
        [line for line in Printed(tmp_path).of_rank(rank).splitlines() if line.startswith("{")] for rank in range(2)
    ]
    assert said[1] == []
    together = json.loads(said[0][0])
    assert (together.pop("processes"), alone.pop("processes")) == (2, 1)
    assert together.pop("loss") == pytest.approx(alone.pop("loss"), rel=1e-12)
    assert (together.pop("images_per_second"), alone.pop("images_per_second")) > (0, 0)
    assert together == alone
    for name in ("", "_m"):
        assert (tmp_path / f"a{name}.csv").read_bytes() == (tmp_path / f"b{name}.csv").read_bytes()


# ------------------------------------------------------------------------------------------------------ wrong use


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--per_class c.png", "c.png must end in .csv\n"),
        ("--confusion m.pdf", "m.pdf must end in .csv or .png\n"),
        ("--confusion m", "m must end in .csv or .png\n"),
        ("--limit 0", "--limit (=0) must be at least 1\n"),
        ("--limit -3", "--limit (=-3) must be at least 1\n"),
        ("--limit few", "argument --limit: invalid int value: 'few'\n"),
        ("--amp_level O1", "argument --amp_level: invalid choice: 'O1'"),
        ("--engine tensorrt", "argument --engine: invalid choice: 'tensorrt'"),
        ("--engine onnxruntime --amp_level O2", "--engine onnxruntime computes on the CPU; leave out"),
        ("--engine onnxruntime --device_target Ascend", "--engine onnxruntime computes on the CPU; leave"),
        ("--cross_check --flip", "--cross_check compares logits with PyTorch's and takes no --flip; give one of"),
        ("--cross_check --limit 5", "and takes no --limit;"),
        ("--cross_check --per_class c.csv", "and takes no --per_class;"),
    ],
)
def test_wrong_use_is_answered_before_any_work(call, monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mindrepvgg.runtime.device.setup", lambda *_: pytest.fail("the work has begun"))
    status, out, err = call("--ckpt_path", "none.ckpt", *arguments.split())
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert words in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--resize_backend cv2", "resize_backend (='cv2') must be pillow, opencv or mindspore"),
        ("--on_bad_image ignore", "on_bad_image (='ignore') must be error, skip or replace"),
        ("--bad_image_limit 2", "bad_image_limit (='2') must be a number of at least 0 and at"),
    ],
)
def test_overrides_that_cannot_be(digits, call, arguments, words):
    status, out, err = call("--mode", "1", "--ckpt_path", digits / "train.ckpt", *arguments.split())
    assert (status, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


def test_a_file_that_cannot_be_written_comes_after_the_figures(digits, call, tmp_path):
    (tmp_path / "taken").touch()
    options = ("--limit", "10", "--per_class", tmp_path / "taken" / "c.csv")
    status, out, err = call("--mode", "1", "--ckpt_path", digits / "train.ckpt", *options)
    assert status == 2
    assert "top-1 " in out
    assert err.count("\n") == 1
    assert str(tmp_path / "taken") in err
