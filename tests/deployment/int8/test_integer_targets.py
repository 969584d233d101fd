"""INT8 files for Ascend and OpenVINO, from the checkpoint to the commands."""

import json
import shlex

import numpy as np
import onnx
import pytest
from support.int8 import digits
from support.onnx_files import session

import mindrepvgg
from mindrepvgg.cli import verbs
from mindrepvgg.deployment.int8 import integer_targets, quantize
from mindrepvgg.deployment.int8.amct_check import NOT_RUN, check_int8, check_model
from mindrepvgg.deployment.int8.ascend_form import OPSET
from mindrepvgg.deployment.int8.prepare import QuantizeOptions
from mindrepvgg.errors import EquivalenceError, UserError

KEPT = {"weight_bits": 7, "calibration_images": 100, "target_drop": 2}


@pytest.fixture(scope="module")
def for_ascend(checkpoint, tmp_path_factory):
    """What `quantize --for ascend` found, with a layer in float and corrected biases."""
    path = tmp_path_factory.mktemp("for ascend") / "digits.int8.onnx"  # a folder with a space
    settings = {"keep_float": ("stage1.0",), "bias_correction": True, "soc_version": "Ascend910B4", **KEPT}
    return mindrepvgg.quantize(checkpoint, path, target="ascend", report=path.with_suffix(".json"), **settings)


def test_the_file_for_ascend_keeps_the_rules_and_is_judged_itself(for_ascend):
    path = for_ascend.destination
    found = check_int8(path)
    assert found.passed
    assert (found.layers, found.name) == (6, str(path))
    model = onnx.load(str(path))
    assert [given.version for given in model.opset_import] == [OPSET]
    x, labels = digits("val")
    assert for_ascend.int8.top1 == pytest.approx(100 * (session(path)(x).argmax(1) == labels).mean(), abs=0.101)
    facts = json.loads({p.key: p.value for p in model.metadata_props}["quantization"])
    assert facts == for_ascend.facts
    assert facts["weights"] == "int8, per channel, the linear layer per tensor, 7 bits"
    assert (facts["activations"], facts["target"], facts["float_layers"]) == ("int8", "ascend", ["stage1.0"])


def test_its_report_says_what_was_not_run_and_gives_the_commands(for_ascend):
    told = json.loads(for_ascend.destination.with_suffix(".json").read_text(encoding="utf-8"))
    assert told["not_run"] == NOT_RUN
    assert told["check"] == json.loads(json.dumps(check_int8(for_ascend.destination).to_dict()))
    amct, atc = (shlex.split(command) for command in told["commands"].values())
    prefix = str(for_ascend.destination.with_suffix(""))
    path = str(for_ascend.destination)
    assert amct[:2] == ["python3", "-c"]
    assert amct[2] == f'import amct_onnx; amct_onnx.convert_qat_model("{path}", "{prefix}")'
    assert atc == [
        "atc",
        f"--model={prefix}_deploy_model.onnx",
        "--framework=5",
        f"--output={prefix}_deploy_model",
        "--soc_version=Ascend910B4",
        "--input_format=NCHW",
        "--input_shape=images:-1,1,16,16",
        "--dynamic_batch_size=1,2,4,8,16",
    ]
    lines = for_ascend.format().splitlines()
    assert "keeps all 14 rules of Ascend's AMCT" in lines
    assert lines[-6] == NOT_RUN
    assert [lines[-3], lines[-1]] == list(told["commands"].values())


def test_the_default_has_no_rules_and_no_commands(written):
    assert (written.check, written.commands, written.not_run) == (None, (), None)
    assert written.facts["target"] == "onnxruntime"
    assert "judged on 1,000 validation images of mnist5k" in written.format()


@pytest.mark.slow
def test_a_file_that_breaks_a_rule_is_not_written(checkpoint, tmp_path, monkeypatch):
    """The form is left out, so that the file is the one that onnxruntime takes."""
    broken = integer_targets.IntegerTarget("ascend", check=check_model)
    monkeypatch.setitem(integer_targets.INTEGER_TARGETS, "ascend", broken)
    options = QuantizeOptions(target="ascend", keep_float=(), limit=20, allow_drop=True, **KEPT)
    with pytest.raises(EquivalenceError, match="was not written: images_QuantizeLinear: its zero point is uint8"):
        quantize.quantize_checkpoint(checkpoint, tmp_path / "broken.onnx", options)
    assert not list(tmp_path.iterdir())


def test_an_unknown_target_is_one_line(checkpoint, tmp_path):
    with pytest.raises(UserError, match=r"^target \(='ascent'\) must be one of onnxruntime, openvino, ascend; did you"):
        mindrepvgg.quantize(checkpoint, tmp_path / "x.onnx", target="ascent")


def test_openvino_that_is_missing_is_said_at_once(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="--for openvino needs the package openvino"):
        quantize.quantize_checkpoint(checkpoint, tmp_path / "x.onnx", QuantizeOptions(target="openvino"))


@pytest.mark.slow
def test_openvino_takes_the_default_file_and_judges_it(checkpoint, written, tmp_path, capsys):
    openvino = pytest.importorskip("openvino")
    path = tmp_path / "openvino.onnx"
    arguments = ["--weight_bits", "7", "--calibration_images", "100", "--keep_float", "0", "--target_drop", "2"]
    assert verbs.main(["quantize", str(checkpoint), str(path), "--for", "openvino", "--json", *arguments]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["engine"], told["facts"]["target"]) == ("openvino", "openvino")
    old, new = (onnx.load(str(file)).graph.SerializeToString() for file in (written.destination, path))
    assert old == new
    compiled = openvino.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    x, labels = digits("val")
    classes = np.concatenate([compiled(part)[0] for part in np.split(x, 10)]).argmax(1)
    assert told["int8"]["top1"] == pytest.approx(100 * (classes == labels).mean(), abs=0.101)
