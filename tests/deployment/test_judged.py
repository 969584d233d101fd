"""Exported files under `validate`, `predict` and `validate --against`: the checkpoint's figures, one-line errors."""

import json
import shutil

import numpy as np
import onnx
import pytest
from mindspore import Tensor
from PIL import Image
from support import ROOT, SMALL, context_mode, randomise_bn

import mindrepvgg
from mindrepvgg import create_model, save_checkpoint
from mindrepvgg.data.datasets import open_source

openvino = pytest.importorskip("openvino")

DIGITS = {
    "dataset": "mnist5k",
    "image_size": [16, 16],
    "class_names": [str(digit) for digit in range(10)],
    "preprocessing": {"mean": [0.1307], "std": [0.3081], "crop_pct": 1.0, "interpolation": "bilinear"},
}
# What is exported: its file, and the options.
KINDS = {
    "plain.onnx": {},
    "half.onnx": {"precision": "float16"},
    "soft.onnx": {"softmax": True},
    "pixels.onnx": {"preprocess": True, "softmax": True, "batch_size": 3},
    "folded.onnx": {"fold_normalisation": True, "batch_size": 3},
    "plain.mindir": {},
    "open.mindir": {"image_size": "dynamic"},
    "pixels.mindir": {"preprocess": True, "batch_size": 8},
}
FROZEN = ROOT / "tests" / "artefacts" / "frozen_0_1"
LOST = ("--dataset", "mnist5k", "--crop_pct", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, exported files of every kind, and two that have lost their description."""
    place = tmp_path_factory.mktemp("judged")
    with context_mode("pynative"):
        net = randomise_bn(create_model("repvgg", 10, 1, **SMALL["plain"]))
        rng = np.random.default_rng(0)
        for parameter in (net.linear.weight, net.stage0.rbr_dense.conv.weight, net.stage0.rbr_1x1.conv.weight):
            parameter.set_data(Tensor(rng.normal(size=parameter.shape), parameter.dtype))
        save_checkpoint(net, place / "net.ckpt", **DIGITS)
        for name, options in KINDS.items():
            mindrepvgg.export(place / "net.ckpt", place / name, **options)
    read = openvino.Core().read_model(str(place / "plain.onnx"))
    openvino.save_model(read, place / "plain.xml", compress_to_fp16=False)
    for name in ("plain", "pixels", "folded"):
        model = onnx.load(str(place / f"{name}.onnx"))
        model.ClearField("metadata_props")
        onnx.save(model, str(place / f"lost_{name}.onnx"))
    shutil.copy(place / "open.mindir", place / "lost.mindir")
    return place


@pytest.fixture
def run(call, folder, monkeypatch):
    """A function (verb and arguments): exit status, stdout and stderr, in the files' folder."""
    monkeypatch.chdir(folder)

    def in_folder(line, *more):
        with context_mode("pynative"):
            return call(*line.split(), *more)

    return in_folder


@pytest.fixture(scope="module")
def truth(folder):
    """What the checkpoint's branches make of 300 digits under MindSpore."""
    with context_mode("pynative"):
        return mindrepvgg.validate(folder / "net.ckpt", limit=300, mode=1)


@pytest.mark.parametrize(
    "name",
    [*KINDS, "plain.xml", "net.ckpt --engine openvino", "soft.onnx --engine openvino", "folded.onnx --engine openvino"],
)
def test_a_file_is_judged_as_its_checkpoint(run, truth, name):
    status, out, err = run(f"validate {name} --limit 300 --json")
    found = json.loads(out)
    assert (status, err) == (0, "")
    assert found["num_images"] == 300
    assert found["loss"] == pytest.approx(truth.evaluation.loss, rel=1e-3 if "half" in name else 1e-5)
    assert abs(found["correct"] - truth.evaluation.correct) <= ("half" in name)
    assert found["form"] == ("train" if "ckpt" in name else "deploy")


def test_classes_and_mirror_images(run, tmp_path, folder):
    """What a report of the checkpoint has, one of a file with a softmax has too; logits that are logarithms average
    as logits do, but for a shift.
    """
    tables = []
    for name in ("net.ckpt --mode 1", "soft.onnx"):
        status, _, _ = run(f"validate {name} --limit 200 --flip", "--per_class", tmp_path / "classes.csv")
        assert status == 0
        tables.append((tmp_path / "classes.csv").read_text())
    assert tables[0] == tables[1]


@pytest.fixture(scope="module")
def digit(folder):
    Image.fromarray(open_source("mnist5k", None, "val").images[5].squeeze()).save(folder / "digit.png")
    return "digit.png"


@pytest.mark.parametrize(
    "name", ["plain.onnx", "pixels.onnx", "folded.onnx", "plain.xml", "plain.mindir", "pixels.mindir"]
)
def test_pictures_are_predicted_as_by_the_checkpoint(run, digit, name):
    found = []
    for file in ("net.ckpt", name):
        status, out, err = run(f"predict {file} {digit} --json")
        assert (status, err) == (0, "")
        found.append(json.loads(out)[0]["top"])
    for own, expected in zip(*found, strict=True):
        assert own["class"] == expected["class"]
        assert own["probability"] == pytest.approx(expected["probability"], rel=1e-4)


# --------------------------------------------------------------------------------------------------- lost descriptions


def test_a_folded_file_without_a_description(run, truth):
    """It takes pixels of 0 to 255, which these numbers leave as they are."""
    status, out, _ = run("validate lost_folded.onnx --limit 300 --json --mean 0 --std 0.00392157", *LOST)
    assert status == 0
    assert json.loads(out)["loss"] == pytest.approx(truth.evaluation.loss, rel=1e-4)


@pytest.mark.parametrize("name", ["lost_plain.onnx", "lost.mindir"])
def test_a_file_without_a_description_asks_for_what_it_lacks(run, caplog, truth, name):
    status, out, err = run(f"validate {name} --limit 300", *LOST)
    size = "--image_resize, " if name == "lost.mindir" else ""
    assert (status, out) == (2, "")
    assert err == (
        f"error: {name} has lost its description (another program wrote it, or removed it): give {size}--mean, --std\n"
    )
    values = ("--mean", "0.1307", "--std", "0.3081", "--image_resize", "16", "--json")
    status, out, _ = run(f"validate {name} --limit 300", *LOST, *values)
    found = json.loads(out)
    assert (status, found["model"], found["correct"]) == (0, name, truth.evaluation.correct)
    assert found["loss"] == pytest.approx(truth.evaluation.loss, rel=1e-5)
    assert [record.message for record in caplog.records if "lost" in record.message] == [
        f"{name} has lost its description: pictures are prepared as the options say: 16x16, crop_pct 1, bilinear, "
        "mean 0.1307, std 0.3081"
    ]


def test_a_softmax_is_noticed_without_a_description(run, truth):
    status, out, _ = run("validate lost_pixels.onnx --limit 300 --json", *LOST)
    assert status == 0
    assert json.loads(out)["loss"] == pytest.approx(truth.evaluation.loss, rel=1e-5)


def test_a_lost_description_is_taken_from_the_other_side(run, caplog):
    status, out, _ = run("validate lost_plain.onnx --against net.ckpt --limit 100 --json --mode 1")
    found = json.loads(out)
    assert (status, found["same_class"], found["outputs"], found["sides"][0]["precision"]) == (0, 1, "logits", "")
    assert "prepared as the other file's are: 16x16, crop_pct 1" in caplog.text


# ------------------------------------------------------------------------------------------------------------ --against


@pytest.mark.parametrize(
    ("files", "outputs", "rtol"),
    [
        ("plain.onnx --against net.ckpt --mode 1", "logits", 1e-4),
        ("net.ckpt --against plain.mindir --mode 1", "logits", 1e-4),
        ("half.onnx --against plain.xml", "logits", 1e-2),
        ("soft.onnx --against net.ckpt --mode 1", "probabilities", 1e-4),
        ("pixels.onnx --against pixels.mindir", "probabilities", 1e-4),
        ("plain.onnx --engine openvino --against plain.onnx", "logits", 1e-4),
    ],
)
def test_two_files_on_the_same_images(run, truth, files, outputs, rtol):
    status, out, err = run(f"validate {files} --limit 300 --json")
    found = json.loads(out)
    assert (status, err, found["passed"]) == (0, "", True)
    assert (found["outputs"], found["rtol"], found["num_images"]) == (outputs, rtol, 300)
    assert found["max_rel"] <= rtol / 2
    for side in found["sides"]:
        assert side["loss"] == pytest.approx(truth.evaluation.loss, rel=1e-3)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_int8_is_judged_by_its_accuracy(run, engine):
    """Of a file that 0.1.0 wrote; the difference is told, and passes whatever it is."""
    line = f"validate {FROZEN / 'int8.onnx'} --engine {engine} --against {FROZEN / 'deploy.ckpt'} --mode 1 --limit 300"
    status, out, _ = run(f"{line} --json")
    found = json.loads(out)
    assert (status, found["passed"], found["rtol"], found["sides"][0]["precision"]) == (0, True, None, "int8")
    assert 1e-3 < found["max_rel"] < 1
    assert run(f"{line} --rtol 1e-3")[0] == 1


def test_the_table_and_the_status_of_two_that_differ(run, folder):
    """The negative control: one weight of the linear layer is another, and what is reported is worked out by hand."""
    model = onnx.load(str(folder / "plain.onnx"))
    bias = next(one for one in model.graph.initializer if one.name == "linear.bias")
    changed = onnx.numpy_helper.to_array(bias).copy()
    changed[3] += 50
    bias.CopyFrom(onnx.numpy_helper.from_array(changed, "linear.bias"))
    onnx.save(model, str(folder / "other.onnx"))
    status, out, _ = run("validate other.onnx --against plain.onnx --limit 300 --json")
    found = json.loads(out)
    assert (status, found["passed"]) == (1, False)
    assert found["max_abs"] == pytest.approx(50, rel=1e-5)
    assert found["same_class"] < 1
    status, out, _ = run("validate other.onnx --against plain.onnx --limit 300")
    lines = out.splitlines()
    assert status == 1
    assert lines[0] == "on 300 images of mnist5k:"
    assert lines[1].split() == ["precision", "engine", "top-1", "top-5", "loss"]
    assert [line.split()[0] for line in lines[2:5]] == ["other.onnx", "plain.onnx", "difference"]
    assert lines[-1] == "the two DIFFER"
    assert run("validate other.onnx --against plain.onnx --limit 300 --rtol 1000")[0] == 0


def test_bfloat16_tells_how_far_it_is(run, caplog):
    status, out, err = run("validate plain.onnx --engine openvino --precision bfloat16 --limit 100 --json")
    if "this CPU has no bfloat16" in err:
        pytest.skip("this CPU has no bfloat16")
    assert (status, json.loads(out)["precision"]) == (0, "bfloat16")
    (line,) = (record.message for record in caplog.records)
    assert line.startswith("bfloat16 differs from float32 by at most ")
    assert line.endswith(" of the first 100 images")


# ------------------------------------------------------------------------------------------------------------ wrong use


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            "validate plain.onnx --weights ema",
            "--weights ema is for checkpoints; plain.onnx computes as it was exported",
        ),
        ("validate plain.onnx --amp_level O2", "--amp_level O2 is for checkpoints; plain.onnx"),
        ("validate plain.mindir --mode 1", "--mode 1 is for checkpoints; plain.mindir"),
        ("validate plain.onnx --grouped split", "--grouped is for checkpoints; plain.onnx"),
        (
            "validate plain.onnx --device_target Ascend",
            "--engine onnxruntime computes on the CPU; leave out --amp_level",
        ),
        ("validate plain.onnx --engine mindspore", "--engine mindspore does not run plain.onnx; leave it out for onnx"),
        (
            "validate plain.xml --engine onnxruntime",
            "--engine onnxruntime does not run plain.xml; leave it out for open",
        ),
        (
            "validate plain.onnx --precision bfloat16",
            "--precision bfloat16 is for --engine openvino; the engine here is",
        ),
        ("validate net.ckpt --num_threads 2", "--num_threads is for the engines onnxruntime and openvino"),
        ("validate pixels.onnx --mean 0.5", "--mean has no effect: pixels.onnx normalises by itself; leave it out"),
        ("validate plain.onnx --image_resize 20", "plain.onnx takes float32 (any, 1, 16, 16), not float32 ("),
        ("validate none.onnx", "none.onnx does not exist, expected an ONNX file"),
        ("validate none.xml", "none.xml does not exist, expected an OpenVINO IR"),
        ("validate none.mindir", "none.mindir does not exist, expected a MindIR file"),
        (
            "validate plain.onnx --against plain.onnx --flip",
            "--against compares two files and takes no --flip; give one",
        ),
        ("validate plain.onnx --against plain.onnx --cross_check", "--against and --cross_check are two comparisons"),
        (
            "validate plain.onnx --against soft.onnx --weights ema",
            "--weights ema is for checkpoints; plain.onnx",
        ),
        (
            "validate plain.onnx --against soft.onnx --grouped split",
            "--grouped is for checkpoints; plain.onnx computes",
        ),
        ("predict plain.onnx digit.png --weights ema", "--weights ema is for checkpoints; plain.onnx"),
        ("predict plain.onnx digit.png --grouped split", "--grouped is for checkpoints; plain.onnx"),
    ],
)
def test_what_means_nothing_for_an_exported_file(run, digit, line, problem):
    status, out, err = run(line)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {problem}")
    assert err.count("\n") == 1


def test_two_that_do_not_compare(run, folder):
    with context_mode("pynative"):
        facts = {**DIGITS, "class_names": list("abc")}
        save_checkpoint(create_model("repvgg", 3, 1, **SMALL["plain"]), folder / "three.ckpt", **facts)
        other = {**DIGITS, "preprocessing": {**DIGITS["preprocessing"], "crop_pct": 0.8}}
        save_checkpoint(mindrepvgg.load_checkpoint(folder / "net.ckpt"), folder / "cropped.ckpt", **other)
    status, _, err = run("validate plain.onnx --against three.ckpt")
    assert (status, err) == (2, "error: plain.onnx has num_classes 10, three.ckpt 3: they do not compare\n")
    status, _, err = run("validate plain.onnx --against cropped.ckpt")
    assert status == 2
    assert err == (
        "error: the two prepare pictures differently: crop_pct is 1.0 and 0.8 (plain.onnx's first); give --crop_pct\n"
    )
    assert run("validate plain.onnx --against cropped.ckpt --crop_pct 1 --limit 20")[0] == 0


def test_a_features_file_has_no_classes(run, folder):
    with context_mode("pynative"):
        net = create_model("repvgg", in_channels=1, features_only=True, out_indices=(1, 2), **SMALL["plain"])
        save_checkpoint(net, folder / "maps.ckpt", image_size=[32, 32], preprocessing=DIGITS["preprocessing"])
        mindrepvgg.export(folder / "maps.ckpt", folder / "maps.onnx")
    status, _, err = run("validate maps.onnx")
    assert status == 2
    assert "gives maps and has no classes; give one that classifies" in err
