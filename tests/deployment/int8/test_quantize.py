"""INT8 files: their integers by NumPy, their accuracy counted by hand, and what is refused."""

import functools
import json
import re
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from mindspore import Tensor
from support import ROOT, context_mode, relative_difference
from support.int8 import FACTS, LAYERS, digits
from support.onnx_files import initializers, session

from mindrepvgg import load_checkpoint, save_checkpoint
from mindrepvgg.deployment.int8 import repairs
from mindrepvgg.deployment.int8.equalize import equalize
from mindrepvgg.deployment.int8.noise import KernelNoise
from mindrepvgg.deployment.int8.prepare import QuantizeOptions
from mindrepvgg.deployment.int8.quantize import quantize_checkpoint
from mindrepvgg.errors import EquivalenceError


@pytest.fixture
def call(call):
    """A function of the command's arguments: (status, stdout, stderr without MindSpore's own lines)."""
    return functools.partial(call, "quantize")


def test_accuracy_is_that_of_the_written_file(written, float_path):
    x, labels = digits("val")
    classes = [session(path)(x).argmax(1) for path in (float_path, written.destination)]
    top1 = [100 * (found == labels).mean() for found in classes]
    assert top1[0] > 75, "the network reads digits"
    assert [written.float32.top1, written.int8.top1] == pytest.approx(top1, abs=0.101)  # the resizers round otherwise
    assert written.agreement == pytest.approx((classes[0] == classes[1]).mean(), abs=0.002)
    assert written.images == 1000
    assert written.int8.bytes == written.destination.stat().st_size < 0.6 * written.float32.bytes


def test_integers_are_the_rounded_weights(written, float_path):
    integer, real = initializers(written.destination), initializers(float_path)
    for layer in LAYERS:
        name = f"{layer}.rbr_reparam.weight" if layer != "linear" else "linear.weight"
        weights, rounded = real[name], integer[f"{name}_quantized"]
        largest = np.abs(weights).reshape(len(weights), -1).max(1)
        scale = largest / 64  # 7 bits: -64 ... 64 of int8
        assert rounded.dtype == np.int8
        assert name not in integer, "the float weights are gone"
        np.testing.assert_allclose(integer[f"{name}_scale"], scale, rtol=1e-5)
        assert not integer[f"{name}_zero_point"].any()
        expected = weights / scale.reshape(-1, *[1] * (weights.ndim - 1))
        assert np.abs(rounded - expected).max() <= 0.5 + 1e-4
    assert {array.dtype for name, array in integer.items() if name.endswith("relu_zero_point")} == {np.dtype("uint8")}


def test_nothing_but_the_logits_and_the_pooling_is_in_float(written):
    graph = onnx.load(str(written.destination)).graph
    counts = {node.op_type: 0 for node in graph.node}
    for node in graph.node:
        counts[node.op_type] += 1
    # 6 convolutions and a Gemm read and write integers; their 14 weights and biases are integers too.
    assert counts == {
        "Conv": 6,
        "Gemm": 1,
        "GlobalAveragePool": 1,
        "Flatten": 1,
        "QuantizeLinear": 8,
        "DequantizeLinear": 8 + 14,
    }
    assert [output.name for output in graph.output] == ["logits"]


def test_metadata_are_the_float_files_and_the_facts(written, float_path):
    def read(path):
        found = onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map
        return {key: json.loads(text) for key, text in found.items()}

    found, before = read(written.destination), read(float_path)
    facts = found.pop("quantization")
    assert found == {**before, "precision": "int8"}
    assert facts == written.facts
    assert facts["weights"] == "int8, per channel, 7 bits"
    assert facts["calibration"] == "100 training images of mnist5k"
    assert (facts["method"], facts["float_layers"], facts["equalized"]) == ("minmax", [], False)


def test_the_report_is_json_and_text(written):
    found = json.loads(written.destination.with_suffix(".json").read_text(encoding="utf-8"))
    assert found == json.loads(json.dumps(written.to_dict()))
    assert [layer["name"] for layer in found["layers"]] == list(LAYERS)
    assert found["worst_layers"] == [layer["name"] for layer in sorted(found["layers"], key=lambda x: x["alone"])[:3]]
    text = written.format()
    assert f"int8     {written.int8.top1:.2f}%" in text
    assert re.search(r"^stage3\.1 +\d\d\.\d +\d\d\.\d +\d\d\.\d$", text, re.MULTILINE)
    assert f"worst alone: {', '.join(found['worst_layers'])}" in text


def test_pixels_may_go_in(checkpoint, written, tmp_path):
    options = QuantizeOptions(weight_bits=7, calibration_images=100, keep_float=(), preprocess=True, target_drop=2)
    found = quantize_checkpoint(checkpoint, tmp_path / "pixels.onnx", options)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 1), np.uint8)
    normalised = ((pixels / 255 - 0.1307) / 0.3081).transpose(0, 3, 1, 2).astype(np.float32)
    outputs = session(found.destination)(pixels), session(written.destination)(normalised)
    assert relative_difference(*outputs) < 0.02
    assert found.int8.top1 == pytest.approx(written.int8.top1, abs=0.3)


def test_saturating_kernels_get_seven_bits(checkpoint, tmp_path, monkeypatch):
    answers = iter([KernelNoise(20.0, 30.0), KernelNoise(60.0, 25.0)])
    monkeypatch.setattr(repairs, "kernel_noise", lambda *_: next(answers))
    options = QuantizeOptions(calibration_images=50, keep_float=(), target_drop=5, limit=100)
    found = quantize_checkpoint(checkpoint, tmp_path / "seven.onnx", options)
    assert found.to_dict()["kernels"]["7"] == {"kernels": 60.0, "rounding": 25.0}
    assert found.kernels[8] == (20.0, 30.0)
    assert found.facts["weights"].endswith("7 bits")
    assert "8 bits saturate in the int8 kernels of this CPU (20.0 dB, rounding 30.0 dB)" in found.format()
    integers = [array for name, array in initializers(found.destination).items() if name.endswith("weight_quantized")]
    assert max(np.abs(array.astype(int)).max() for array in integers) == 64


@pytest.fixture(scope="module")
def bad_layer(checkpoint, tmp_path_factory):
    """The digits' checkpoint with one layer that per-tensor INT8 ruins: two channels a thousand times the others."""
    net = load_checkpoint(checkpoint)
    kernel = {parameter.name: parameter for parameter in net.get_parameters()}
    scale = np.ones(64, np.float32)
    scale[:2] = 1000
    for leaf in ("weight", "bias"):
        parameter = kernel[f"stage4.0.rbr_reparam.{leaf}"]
        array = parameter.asnumpy()
        parameter.set_data(Tensor(array * scale.reshape(-1, *[1] * (array.ndim - 1))))
    net.linear.weight.set_data(Tensor(net.linear.weight.asnumpy() / scale))
    path = tmp_path_factory.mktemp("bad") / "bad.ckpt"
    save_checkpoint(net, path, **FACTS)
    return path


def options_for(**given):
    base = {"per_channel": False, "weight_bits": 7, "calibration_images": 50, "limit": 300, "target_drop": 1.5}
    return QuantizeOptions(**{**base, **given})


def test_as_few_layers_as_needed_stay_in_float(bad_layer, tmp_path):
    found = quantize_checkpoint(bad_layer, tmp_path / "mixed.onnx", options_for())
    kept = found.facts["float_layers"]
    assert 0 < len(kept) < len(LAYERS) / 2
    assert "stage4.0" in kept
    assert found.drop <= 1.5
    tried = {len(attempt.kept): attempt for attempt in found.attempts}
    assert tried[0].drop > 20, "all in INT8 it is ruined"
    assert tried[len(kept) - 1].drop > 1.5, "one layer fewer does not do"
    order = sorted(LAYERS, key=lambda name: next(layer.alone for layer in found.layers if layer.name == name))
    assert kept == order[: len(kept)]
    integer = initializers(found.destination)
    for name in LAYERS:
        weight = f"{name}.rbr_reparam.weight" if name != "linear" else "linear.weight"
        assert (weight in integer) == (name in kept)
    assert f"in float: {', '.join(kept)}" in found.format()


def test_equalising_spares_it_all(bad_layer, tmp_path):
    found = quantize_checkpoint(bad_layer, tmp_path / "equal.onnx", options_for(equalize=True))
    assert found.facts["float_layers"] == []
    assert found.facts["equalized"]
    assert found.largest_scale > 10


def test_layers_can_be_named_or_counted(bad_layer, tmp_path):
    named = quantize_checkpoint(bad_layer, tmp_path / "a.onnx", options_for(keep_float=("linear", "stage4.0")))
    assert named.facts["float_layers"] == ["linear", "stage4.0"]
    assert [layer.name for layer in named.layers if layer.kept] == ["stage4.0", "linear"]
    assert {layer.name for layer in named.layers if layer.weights is None} == {"stage4.0", "linear"}
    assert len(named.attempts) == 1
    counted = quantize_checkpoint(bad_layer, tmp_path / "b.onnx", options_for(keep_float=2, allow_drop=True))
    assert counted.facts["float_layers"] == [layer.name for layer in sorted(named.layers, key=lambda x: x.alone)[:2]]


def test_a_target_that_is_not_kept_writes_nothing(bad_layer, tmp_path, call):
    arguments = [bad_layer, tmp_path / "no.onnx", "--per_tensor", "--keep_float", "0", "--limit", "200"]
    arguments += ["--calibration_images", "50", "--report", tmp_path / "report.json"]
    status, out, err = call(*arguments)
    assert (status, out) == (1, "")
    assert re.fullmatch(
        r"error: .*no\.onnx was not written: INT8 lost \d+\.\d\d points of top-1 at best \(with every layer in INT8\), "
        r"more than target_drop \(0\.5\).*--allow_drop writes it all the same\n",
        err,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["written"] is False
    status, out, err = call(*arguments, "--allow_drop", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["drop"] > 10
    assert (tmp_path / "no.onnx").exists()


def test_equalising_that_changes_the_logits_is_refused(checkpoint, tmp_path, monkeypatch):
    (tmp_path / "old.onnx").write_bytes(b"old")

    def wrong(variant, arrays):
        found = equalize(variant, arrays)
        found.arrays["stage1.0.rbr_reparam.bias"] += 0.01
        return found

    monkeypatch.setattr(repairs, "equalize", wrong)
    with pytest.raises(
        EquivalenceError, match=r"a repair \(equalised\) changed the float logits by \S+ of the largest, "
    ):
        quantize_checkpoint(checkpoint, tmp_path / "old.onnx", QuantizeOptions(equalize=True))
    assert (tmp_path / "old.onnx").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--form", "train"], "only the deploy form is quantised"),
        (["--keep_float", "stage9.0,linear"], "there is no layer 'stage9.0'; did you mean stage4.0"),
        (["--keep_float", "7"], "keep_float (=7) must be from 0 to 6"),
        (["--keep_float", ",".join(LAYERS)], "keep_float names every layer"),
        (["--target_drop", "-1"], "target_drop (=-1.0) must be from 0 to 100 points"),
        (["--target_drop", "nan"], "target_drop (=nan) must be from 0 to 100 points"),
        (["--calibration_images", "0"], "calibration_images (=0) must be at least 1"),
        (["--percentile", "3"], "percentile (=3.0) must be above 50 and at most 100"),
        (["--limit", "0"], "limit (=0) must be at least 1"),
        (["--per_channel", "--per_tensor"], "not allowed with argument"),
        (["--calibration", "{root}/empty"], "no pictures in {root}/empty"),
        (["--calibration", "{root}/nowhere"], "is neither a folder nor a data set: folder"),
        (
            ["--dataset", "imagenet", "--data_dir", "{root}", "--calibration", "{root}/val"],
            "calibration and accuracy share 20 pictures, ",
        ),
        (["--dataset", "imagenet", "--data_dir", "{root}/val"], "no folder train in {root}/val"),
    ],
)
def test_wrong_use_is_answered_in_one_line(arguments, message, checkpoint, folders, tmp_path, call):
    arguments = [argument.format(root=folders) for argument in arguments]
    status, out, err = call(checkpoint, tmp_path / "out.onnx", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message.format(root=folders) in err
    assert list(tmp_path.iterdir()) == []


def test_other_destinations_are_refused(checkpoint, tmp_path, call):
    status, _, err = call(checkpoint, tmp_path / "out.mindir")
    assert status == 2
    assert "must end in .onnx: INT8 is written in no other format" in err


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named(package, checkpoint, tmp_path, call, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    status, _, err = call(checkpoint, tmp_path / "out.onnx")
    assert status == 2
    assert re.fullmatch(
        rf"error: .* needs the package {package}: pip install {package} 'numpy<2' \(extra: onnx\)\n", err
    )


def test_help_needs_no_package():
    """It answers without MindSpore, onnx and onnxruntime."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('mindspore', 'onnx', 'onnxruntime'))); "
        "from mindrepvgg.cli import verbs; sys.exit(verbs.main(['quantize', '--help']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--bias_correction" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_the_quick_start_keeps_its_accuracy(method, trained, tmp_path, call):
    status, out, _ = call(trained, tmp_path / "int8.onnx", "--method", method, "--keep_float", "0", "--json")
    assert status == 0
    found = json.loads(out)
    assert found["images"] == 1000
    assert found["drop"] <= 0.5


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The quick start's network, really trained."""
    from mindrepvgg.recipe.sources import load_recipe
    from mindrepvgg.training.trainer import Trainer

    folder = tmp_path_factory.mktemp("quickstart")
    with context_mode("graph"):
        result = Trainer(load_recipe(ROOT / "configs" / "quickstart.yaml", {"ckpt_save_dir": str(folder)})).run()
    return result.best
