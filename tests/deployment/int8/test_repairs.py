"""A network that INT8 ruins: what it is diagnosed with, and what the search finds within its budget."""

import json
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from support import randomise_bn
from support.int8 import digits
from support.onnx_files import initializers, session

from mindrepvgg import create_model, diagnose
from mindrepvgg.deployment.int8.diagnose import identity_gains
from mindrepvgg.deployment.int8.prepare import QuantizeOptions
from mindrepvgg.deployment.int8.progress import Progress
from mindrepvgg.deployment.int8.quantize import quantize_checkpoint
from mindrepvgg.errors import EquivalenceError
from mindrepvgg.reparam.deploy import to_deploy

OPTIONS = {"per_channel": False, "weight_bits": 8, "calibration_images": 100, "limit": 400}


def quantize(sick, path, **given):
    return quantize_checkpoint(sick, path, QuantizeOptions(**{**OPTIONS, **given}))


@pytest.fixture(scope="module")
def plain(sick, tmp_path_factory):
    return quantize(sick, tmp_path_factory.mktemp("plain") / "plain.onnx", keep_float=(), allow_drop=True)


def test_it_is_ruined_and_zeroing_dead_channels_repairs_it(plain, sick, tmp_path):
    assert plain.drop > 20
    found = quantize(sick, tmp_path / "zeroed.onnx", keep_float=(), zero_dead=True, target_drop=3)
    assert found.drop < 0.1 * plain.drop
    assert found.facts["dead_channels"]["stage3.1"] >= 4
    assert "dead channels zeroed" in found.format()


@pytest.mark.slow
def test_splitting_the_centre_repairs_it_too_and_is_an_int8_convolution_more(plain, sick, tmp_path):
    found = quantize(sick, tmp_path / "split.onnx", keep_float=(), split="auto", target_drop=100)
    assert found.facts["split_layers"] == ["stage3.1"]
    assert found.drop < 0.1 * plain.drop
    assert 0 < found.facts["extra_multiplications"] < 1 / 9
    arrays = initializers(found.destination)
    coarse = arrays["stage3.1.rbr_reparam.coarse.weight_quantized"]
    assert (coarse.dtype, coarse.shape) == (np.int8, (24, 24, 1, 1))
    assert np.abs(coarse).max() == 127
    model = onnx.load(str(found.destination))
    onnx.checker.check_model(model, full_check=True)
    nodes = {node.name: node for node in model.graph.node}
    assert nodes["stage3.1.sum"].op_type == "Add"
    assert nodes["stage3.1.coarse"].input[0] == nodes["stage3.1.conv"].input[0]
    x, labels = digits("val")
    top1 = 100 * (session(found.destination)(x).argmax(1) == labels).mean()
    assert top1 == pytest.approx(found.int8.top1, abs=5), "of all digits, not of every second one"


@pytest.fixture
def work(monkeypatch):
    """Pictures that the bar was told of: `expect` before the work, `step` after it."""
    counts = {"expect": 0.0, "step": 0.0}

    def counted(kind):
        def count(_, pictures):
            counts[kind] += pictures

        return count

    for kind in counts:
        monkeypatch.setattr(Progress, kind, counted(kind))
    return counts


def test_the_search_tells_what_each_step_brought_and_keeps_its_budget(plain, sick, work, tmp_path):
    found = quantize(sick, tmp_path / "searched.onnx", search=4, target_drop=0.5, allow_drop=True)
    assert work["step"] == pytest.approx(work["expect"], rel=0.15), "the bar knows what comes"
    first, second, *_ = found.attempts
    assert (first.step, first.top1) == ("as it is", plain.int8.top1)
    assert second.step.endswith("zeroed")
    assert second.drop < 0.1 * first.drop
    assert 2 <= len(found.attempts) <= 4
    assert found.attempts[found.chosen].drop == found.drop == min(attempt.drop for attempt in found.attempts)
    text = found.format()
    assert f"search, {len(found.attempts)} of 4 evaluations" in text
    assert all(attempt.step in text for attempt in found.attempts)
    with pytest.raises(EquivalenceError, match=r"INT8 lost \d+.* points of top-1 at best \(with every layer in INT8\)"):
        quantize(sick, tmp_path / "one.onnx", search=1)
    assert not (tmp_path / "one.onnx").exists()


def test_a_diagnosis_names_the_layer_the_cause_and_the_repair(sick, tmp_path):
    found = diagnose(sick, tmp_path / "layers.png", report=tmp_path / "found.json", **OPTIONS)
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "found.json").read_text(encoding="utf-8")) == json.loads(json.dumps(found.to_dict()))
    layers = {layer.name: layer for layer in found.layers}
    worst = min(found.layers, key=lambda layer: layer.noise.alone)
    assert worst.name == "stage3.1"
    assert worst.dead >= 4
    assert worst.weight_largest == 300
    assert layers["stage0"].dead == 0
    assert found.dead == sum(layer.dead for layer in found.layers)
    effects = {effect.option: effect for effect in found.effects}
    assert effects["--zero_dead"].logits > effects[""].logits + 10
    assert effects["--zero_dead"].agreement > effects[""].agreement
    text = found.format()
    assert f"stage3.1 {worst.dead} of 24" in text
    assert "--zero_dead takes them out" in text
    assert "noisiest by their weights: stage3.1" in text
    assert "best of what was tried: --" in text


@pytest.mark.slow
def test_a_healthy_network_is_called_so(checkpoint):
    found = diagnose(checkpoint, calibration_images=50)
    assert "no repair is needed" in found.advice()[0]
    assert not any("fine-tune" in line or "--keep_float" in line for line in found.advice())


def test_identity_gains_are_those_of_the_bn():
    net = randomise_bn(create_model("repvgg", 10, 3, num_blocks=[2, 1, 1, 1], widths=[8, 8, 8, 8, 8]))
    gains = identity_gains(net)
    assert set(gains) == {"stage1.1"}
    bn = {p.name.rpartition(".")[2]: p.asnumpy() for p in net.get_parameters() if "stage1.1.rbr_identity" in p.name}
    expected = np.abs(bn["gamma"]) / np.sqrt(bn["moving_variance"] + 1e-5)
    assert gains["stage1.1"] == pytest.approx(expected.max())
    assert identity_gains(to_deploy(net)) == {}
    outer = identity_gains(randomise_bn(create_model("qarepvgg", 10, 3, num_blocks=[2, 1, 1, 1], widths=[8] * 5)))
    assert set(outer) == {"stage1.1"}
    net = create_model("repvgg", 10, 3, block="mobileone", num_blocks=[2, 1, 1, 1], widths=[8] * 5)
    assert set(identity_gains(randomise_bn(net))) == {"stage1.1"}


def test_every_option_of_the_search_is_checked():
    from mindrepvgg.errors import UserError

    with pytest.raises(UserError, match=r"search \(=0\) must be at least 1"):
        QuantizeOptions(search=0)


def test_the_files_of_a_diagnosis_are_named_on_the_terminal(call, monkeypatch):
    monkeypatch.setattr("mindrepvgg.diagnose", lambda *files, **settings: SimpleNamespace(format=lambda: "a table"))
    assert call("quantize", "a.ckpt", "layers.png", "--diagnose")[:2] == (0, "a table\nwritten: layers.png\n")
    assert call("quantize", "a.ckpt", "--diagnose")[:2] == (0, "a table\n"), "no file was asked for"
