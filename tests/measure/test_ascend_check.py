"""The self-check on a CPU: networks against the reference."""

import json

import mindspore as ms
import numpy as np
import pytest
from support import context_mode

from mindrepvgg.cli import ascend_check as verb
from mindrepvgg.cli import entry
from mindrepvgg.errors import UserError
from mindrepvgg.measure import ascend_check, ascend_check_report, checked_networks
from mindrepvgg.models import synthetic
from mindrepvgg.models.variants import PLAIN_FORMS
from mindrepvgg.reparam import to_deploy
from mindrepvgg.reparam.layers import GROUPED
from mindrepvgg.reparam.named_blocks import BLOCKS
from mindrepvgg.runtime.ranks import Ranks


@pytest.fixture(autouse=True)
def _mode():
    """Graph mode, which a command also sets."""
    with context_mode("graph"):
        yield


@pytest.fixture(scope="module")
def reference():
    """What the repository holds the devices against."""
    return ascend_check.read_reference(ascend_check.REFERENCE)


def test_the_reference_is_complete_and_small(reference):
    assert ascend_check.REFERENCE.stat().st_size < 200_000
    assert set(reference["networks"]) == {*ascend_check.ON_ASCEND, *ascend_check.ON_CPU}
    assert len(ascend_check.NETWORKS) == 15 + 2 + 2
    kinds = {name.removeprefix("block_") for name in ascend_check.BLOCK_NETWORKS} - {"inserted_dbb"}
    assert kinds == set(BLOCKS) - {"repvgg", "repopt_vgg"}, "RepVGG's networks, and one convolution under other names"
    assert reference["made_by"]["device"] == "CPU"
    assert reference["made_by"]["mindspore"] == "2.10.0"
    for name, forms in reference["networks"].items():
        assert list(forms) == list(PLAIN_FORMS)
        assert forms["train"]["loss"][1] < forms["train"]["loss"][0], f"{name}: an update lowers the loss"
        for label, numbers in (item for form in forms.values() for item in form.items()):
            assert np.isfinite(numbers).all(), f"{name} {label}"
            assert np.abs(numbers).max() > 0, f"{name} {label}"
        if name in ascend_check.BLOCK_NETWORKS:
            folded, unfolded = (np.array(forms["deploy"][label]) for label in ("logits", "unfolded logits"))
            assert 0 < np.abs(folded - unfolded).max() < 1e-5 * np.abs(folded).max()


@pytest.mark.processes
@pytest.mark.parametrize("precision", ["float32", pytest.param("float16", marks=pytest.mark.slow)])
def test_a_cpu_passes_and_its_report_says_so(tmp_path, capfd, reference, precision):
    report = tmp_path / "report.md"
    arguments = ["--device_target", "CPU", "--precision", precision, "--report", str(report), "--json"]
    assert entry.run(verb.main, arguments) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("SKIP  processes meet: one process; for the collectives: msrun --worker_num 8 ")
    text, figures = report.read_text("utf-8"), json.loads(report.with_suffix(".json").read_text("utf-8"))
    results = {result["name"]: result for result in figures["results"]}
    for name, result in results.items():
        assert f"| {result['status']} | {name} | {result['detail']} |" in text
        assert f"{result['status']}  {name}: {result['detail']}" in lines
    assert [name for name, result in results.items() if result["status"] == "PASS"] == [
        "overflow in float16",
        *(f"convolution of {groups} groups, {how}" for groups in (2, 4) for how in GROUPED),
        *(f"RepOptimizer's update, {opt}" for opt in ("momentum", "adamw")),
        "QAT per tensor with distillation",
        "fusion in float16",
        *(f"{model} {form} {precision}" for model in ascend_check.ON_CPU for form in PLAIN_FORMS),
    ]
    assert "13 PASS, 0 FAIL, 10 SKIP" in text
    assert "Unfinished" not in text
    assert f"| mindspore | {ms.__version__} |" in text
    assert f"report: {report}" in lines
    measured = results[f"repvgg_nano train {precision}"]["figures"]["measured"]
    assert ascend_check.relative_differences(reference["networks"]["repvgg_nano"]["train"], measured)["loss"] < 1e-3


def nano(reference):
    return {form: dict(labels) for form, labels in reference["networks"]["repvgg_nano"].items()}


@pytest.mark.parametrize(
    ("label", "change", "message"),
    [
        ("logits", lambda x: x * 1.01, r"most in logits, by 1\.0e-02, .* as float16 or HF32 would$"),
        (
            "gradients stage2",
            lambda x: x * 1.6,
            r"in gradients stage2, by 6\.0e-01, in all logits by 0\.0e\+00: too much$",
        ),
        ("all statistics stage4", lambda x: -x, r"in all statistics stage4, by 2\.0e\+00, .*: too much$"),
        ("loss", lambda x: x * np.nan, r"in loss, by nan, .*: too much$"),
    ],
)
def test_a_device_that_computes_something_else_fails(monkeypatch, reference, label, change, message):
    actual = nano(reference)["train"]
    actual[label] = change(np.array(actual[label])).tolist()
    monkeypatch.setattr(ascend_check, "network_figures", lambda *_: actual)
    with pytest.raises(ascend_check_report.CheckFailed, match=message) as failed:
        ascend_check.check_network("repvgg_nano", "train", "float32", reference)
    assert failed.value.figures["measured"] is actual


def test_coarse_float32_passes_where_it_was_let(monkeypatch, reference):
    actual = nano(reference)["train"]
    actual["logits"] = [1.01 * value for value in actual["logits"]]
    monkeypatch.setattr(ascend_check, "network_figures", lambda *_: actual)
    options = ("repvgg_nano", "train", "float32", reference)
    line, _ = ascend_check.check_network(*options, coarse_float32=True)
    assert line.endswith(", as float16 or HF32 would")
    actual["logits"] = [2 * value for value in actual["logits"]]
    with pytest.raises(ascend_check_report.CheckFailed, match="too much"):
        ascend_check.check_network(*options, coarse_float32=True)
    names = [dict(ascend_check.checks("CPU", Ranks(), (), (), {}, coarse)) for coarse in (False, True)]
    assert set(names[0]) - set(names[1]) == {"float32 is asked for"}


def test_one_wrong_kernel_fails(monkeypatch, reference):
    rule = synthetic.parameter_value

    def wrong(name, shape):
        return rule(name, shape) * (0.9 if name == "stage2.1.rbr_reparam.weight" else 1)

    monkeypatch.setattr(synthetic, "parameter_value", wrong)
    for precision in ascend_check.PRECISIONS:
        result = ascend_check_report.run_check(
            "x", lambda p=precision: ascend_check.check_network("repvgg_nano", "deploy", p, reference)
        )
        assert result.status == "FAIL", precision


def test_a_block_that_folds_into_something_else_fails(monkeypatch, reference):
    def wrong(net, **options):
        deployed = to_deploy(net, **options)
        kernel = deployed.second.conv.dbb_reparam.weight
        kernel.set_data(kernel * 0.9)
        return deployed

    monkeypatch.setattr(checked_networks.reparam, "to_deploy", wrong)
    with pytest.raises(ascend_check_report.CheckFailed, match=r"in (all )?logits, by"):
        ascend_check.check_network("inserted_dbb", "deploy", "float32", reference)


@pytest.mark.slow
@pytest.mark.parametrize("model", [name for name in ascend_check.BLOCK_NETWORKS if name not in ascend_check.ON_CPU])
def test_every_block_passes_on_a_cpu(reference, model):
    for precision in ascend_check.PRECISIONS:
        for form in PLAIN_FORMS:
            ascend_check.check_network(model, form, precision, reference)


def test_names_of_networks():
    assert checked_networks.names(["RepVGG-A0", "block_dbb"]) == ["repvgg_a0", "block_dbb"]
    assert checked_networks.names(["blocks"]) == list(ascend_check.BLOCK_NETWORKS)
    with pytest.raises(UserError, match=r"models \(='block_dbc'\) must be one of block_plain, .*, or blocks"):
        checked_networks.names(["block_dbc"])


def test_what_is_missing_is_told_apart(monkeypatch, reference):
    monkeypatch.setattr(ascend_check, "network_figures", lambda *_: {"logits": [1.0]})
    with pytest.raises(ascend_check_report.CheckFailed, match="the quantities differ: all logits"):
        ascend_check.check_network("repvgg_nano", "deploy", "float32", reference)
    with pytest.raises(ascend_check_report.CheckSkipped, match="no numbers of repvgg_a9 in train form"):
        ascend_check.check_network("repvgg_a9", "train", "float32", reference)


@pytest.fixture
def no_convolutions(monkeypatch):
    """Grouped convolutions, which are compiled and checked elsewhere, pass at once."""
    monkeypatch.setattr(ascend_check, "check_grouped", lambda *_: ("not looked at", None))


@pytest.mark.usefixtures("no_convolutions")
def test_a_failing_check_stops_no_other(tmp_path, monkeypatch, capfd):
    def breaks(*_):
        raise RuntimeError("\n----------\nThe device is in an error state.\n- C++ Call Stack: ...")

    monkeypatch.setattr(ascend_check, "network_figures", breaks)
    report = tmp_path / "report.md"
    arguments = ["--device_target", "CPU", "--precision", "float32", "--report", str(report)]
    assert entry.run(verb.main, arguments) == 1
    message = "RuntimeError: The device is in an error state."
    assert f"FAIL  repvgg_nano train float32: {message}" in capfd.readouterr().out
    assert f"| FAIL | repvgg_nano deploy float32 | {message} |" in report.read_text("utf-8")
    assert "9 PASS, 4 FAIL, 10 SKIP" in report.read_text("utf-8")


@pytest.mark.usefixtures("no_convolutions")
def test_what_ran_when_the_process_died_is_in_the_report(tmp_path, monkeypatch):
    report = tmp_path / "report.md"

    def dies(*_):
        assert "Unfinished: repvgg_nano train float32 was running when this was written." in report.read_text("utf-8")
        raise KeyboardInterrupt

    monkeypatch.setattr(ascend_check, "network_figures", dies)
    assert entry.run(verb.main, ["--device_target", "CPU", "--report", str(report)]) == 130
    assert "| PASS | convolution of 4 groups, split |" in report.read_text("utf-8")


def test_a_reference_can_be_recorded_and_a_wrong_one_is_refused(tmp_path, monkeypatch, capsys):
    path = tmp_path / "new.json"
    monkeypatch.setattr(ascend_check, "network_figures", lambda model, form: {"logits": [1.0]})
    assert entry.run(verb.main, ["--record", str(path), "--models", "RepVGG-A0"]) == 0
    written = ascend_check.read_reference(path)
    assert written["networks"] == {"repvgg_a0": {form: {"logits": [1.0]} for form in PLAIN_FORMS}}
    assert written["made_by"]["mindspore"] == ms.__version__
    for text, message in (
        ("{", "is not JSON"),
        ("{}", "is no reference file"),
        ('{"networks": {}}', "made by rule None"),
    ):
        path.write_text(text)
        assert entry.run(verb.main, ["--reference", str(path), "--device_target", "CPU"]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(UserError, match="repvgg_a9"):
        verb.main(["--models", "repvgg_a9"])
