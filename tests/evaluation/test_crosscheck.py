"""The cross-check with PyTorch: right numbers, a reference that is right on its own, and it fails where it must."""

import functools
import json
import sys

import numpy as np
import pytest
import torch
from mindspore import Tensor
from support import SMALL, images, noise
from support.dialect_names import VARIANTS
from support.foreign import logits_of, official_state, renamed, theirs, torch_network, variant_of, wrapped_file, write
from support.other_projects import other_project

from mindrepvgg import create_model, load_weights, save_checkpoint
from mindrepvgg.data.samples import labelled_photos
from mindrepvgg.evaluation.crosscheck import cross_check, cross_check_file
from mindrepvgg.evaluation.torch_reference import TorchReference
from mindrepvgg.reparam.finding import rep_blocks
from mindrepvgg.reparam.layers import batch_norm

pytestmark = pytest.mark.usefixtures("pynative_mode")


# ------------------------------------------------------------------------------------------------------- the numbers


def looked_up(table):
    """A network that answers image i, whose pixels are all i, with the i-th row."""
    return lambda batch: table[batch[:, 0, 0, 0].astype(int)]


def batches_of(count, size, labels=None):
    """Images that are their own numbers; the last batch is filled up with images that must not count."""
    for start in range(0, count, size):
        numbers = np.arange(start, start + size)
        valid = numbers < count
        x = np.broadcast_to(np.where(valid, numbers, 0)[:, None, None, None], (size, 1, 2, 2)).astype(np.float32)
        yield x, None if labels is None else np.where(valid, np.resize(labels, count + size)[numbers], 0), valid


@pytest.mark.compat
@pytest.mark.parametrize("size", [1, 7, 23, 50])
@pytest.mark.parametrize("classes", [3, 5, 12])
def test_the_numbers(classes, size):
    """Against a loop over the images, whatever the batches."""
    b = noise(23, classes)
    a = b + noise(23, classes, seed=1) * np.repeat([1e-3, 1], [12, 11])[:, None]
    a, labels = a.astype(np.float32), np.random.default_rng(2).integers(0, classes, 23)
    found = cross_check(looked_up(a), looked_up(b), batches_of(23, size, labels), rtol=0.5)

    def top(row, k):
        return sorted(range(classes), key=lambda c: -row[c])[:k]

    first, five = 0, 0
    hits = {"ours": np.zeros(2), "reference": np.zeros(2)}
    for i in range(23):
        first += top(a[i], 1) == top(b[i], 1)
        five += set(top(a[i], 5)) == set(top(b[i], 5))
        for name, row in (("ours", a[i]), ("reference", b[i])):
            hits[name] += [labels[i] in top(row, 1), labels[i] in top(row, 5)]
    difference = np.abs(a.astype(np.float64) - b).max()
    assert found.max_abs == pytest.approx(difference, rel=1e-12)
    assert found.max_rel == pytest.approx(difference / np.abs(b.astype(np.float64)).max(), rel=1e-12)
    assert (found.top1_agreement, found.top5_agreement) == (first / 23, five / 23)
    assert (found.num_images, found.rtol) == (23, 0.5)
    for name, accuracy in (("ours", found.ours), ("reference", found.reference)):
        assert [accuracy["top1"], accuracy["top5"]] == pytest.approx(list(100 * hits[name] / 23))
    shifted = b.astype(np.float64) - b.max(1, keepdims=True)
    loss = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(23), labels]
    assert found.reference["loss"] == pytest.approx(loss.mean(), rel=1e-6)
    assert found.passed is (found.max_rel <= 0.5)


@pytest.mark.compat
@pytest.mark.parametrize(
    ("change", "passed"),
    [(0, True), (0.9e-4, True), (1.1e-4, False), (np.nan, False), (np.inf, False), (-np.inf, False)],
)
@pytest.mark.parametrize("place", [0, 9])
def test_the_verdict(change, passed, place):
    """One logit of one image decides, whichever batch it is in; the largest logit of the reference is 2."""
    b = np.linspace(-2, 2, 60, dtype=np.float64).reshape(10, 6)
    a = b.copy()
    a[place, 3] += 2 * change
    found = cross_check(looked_up(a), looked_up(b), batches_of(10, 4))
    assert found.passed is passed
    assert found.to_dict()["passed"] is passed
    assert found.format().endswith("the two agree" if passed else "the two DIFFER")
    assert (found.ours, found.reference) == (None, None)


def test_a_reference_of_zeros_or_nan_agrees_with_nothing_else():
    zeros = np.zeros((4, 3))
    assert cross_check(looked_up(zeros), looked_up(zeros), batches_of(4, 2)).passed
    for a, b in ((zeros + 1e-9, zeros), (zeros, zeros * np.nan), (zeros * np.nan, zeros * np.nan)):
        assert not cross_check(looked_up(a), looked_up(b), batches_of(4, 2)).passed


def test_what_does_not_compare():
    with pytest.raises(ValueError, match=r"logits of shapes \(2, 3\) and \(2, 4\) do not compare"):
        cross_check(looked_up(np.zeros((4, 3))), looked_up(np.zeros((4, 4))), batches_of(4, 2))
    with pytest.raises(ValueError, match="there was no image to compare on"):
        cross_check(looked_up(np.zeros((4, 3))), looked_up(np.zeros((4, 3))), [])


# ------------------------------------------------------------------------------------- the command, and what fails it


SIZE = ("--image_resize", "64", "--mode", "1")


@pytest.fixture
def source(tmp_path):
    """A function (kind): its file in the official names."""

    def make(kind="d2se", deploy=False, **options):
        dialect = "repvggplus" if kind == "plus" else "official"
        return write(tmp_path / f"{kind}.pth", theirs(dialect, kind, deploy, **options), "legacy")

    return make


@pytest.fixture
def check(call):
    """A function (file, *options): validate.py --cross_check; (status, the report, stderr)."""

    def run(path, *options):
        status, out, err = call("validate", "--ckpt_path", path, "--cross_check", "--json", *SIZE, *options)
        return status, json.loads(out) if out else None, err

    return run


@pytest.mark.compat
@pytest.mark.parametrize("kind", VARIANTS)
def test_right_networks_pass(source, check, kind):
    status, report, err = check(source(kind))
    assert (status, err) == (0, "")
    assert report["passed"] is True
    assert 0 < report["max_rel"] < 1e-5, "two implementations, not one compared with itself"
    assert report["top1_agreement"] == report["top5_agreement"] == 1


def changed_kernel_element(net):
    parameter = net.stage2[0].rbr_dense.conv.weight
    kernel = parameter.asnumpy().copy()
    largest = np.unravel_index(np.abs(kernel).argmax(), kernel.shape)
    kernel[largest] *= -1
    parameter.set_data(Tensor(kernel))


def dropped_bias(net):
    bias = net.stage4[0].rbr_1x1.bn.beta
    bias.set_data(Tensor(np.zeros(bias.shape, np.float32)))


def dropped_head_bias(net):
    net.linear.bias.set_data(Tensor(np.zeros(net.linear.bias.shape, np.float32)))


def swapped_se(net):
    one, other = net.stage3[0].se.up.weight, net.stage3[1].se.up.weight
    first = Tensor(one.asnumpy().copy())
    one.set_data(Tensor(other.asnumpy().copy()))
    other.set_data(first)


def se_after_the_relu(net):
    for block in rep_blocks(net).values():
        block.se_place, block.post_se = "post", block.se


DAMAGES = (changed_kernel_element, dropped_bias, dropped_head_bias, swapped_se, se_after_the_relu)


@pytest.mark.compat
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_wrong_networks_fail(source, check, monkeypatch, damage):
    """Negative controls: what a faulty converter or block would make of the right file."""

    def load_and_damage(*arguments):
        net = load_weights(*arguments)
        damage(net)
        return net

    path = source()
    monkeypatch.setattr("mindrepvgg.weights.load.load_weights", load_and_damage)
    status, report, err = check(path)
    assert (status, err) == (1, "")
    assert report["passed"] is False
    assert report["max_rel"] > 1e-3


@pytest.mark.parametrize("eps", [1e-3, 3e-5])
def test_a_wrong_epsilon_fails(source, eps):
    """BN's epsilon is in no file: another framework's default must not slip in. MindSpore's own 1e-5 passes."""
    path = source("plain")
    options = {"weights": path, **SMALL["plain"]}
    wrong = create_model("repvgg", 7, norm=functools.partial(batch_norm, eps=eps), **options)
    small = {"image_resize": "64"}
    assert cross_check_file(path, create_model("repvgg", 7, **options), small)[0].passed
    checked, _ = cross_check_file(path, wrong, small, rtol=1e-5 if eps < 1e-4 else 1e-4)
    assert not checked.passed


@pytest.mark.compat
def test_a_fused_file_against_its_original(source, check, call, tmp_path):
    original, fused = source(), tmp_path / "fused.ckpt"
    assert call("convert", original, fused)[0] == 0
    status, report, _ = check(fused, "--reference", original)
    assert (status, report["passed"]) == (0, True)
    assert check(fused)[0] == 0, "against itself, which proves less"
    # Negative control: the fusion of another network.
    other = write(tmp_path / "other.pth", theirs("official", "d2se", seed=1))
    status, report, _ = check(fused, "--reference", other)
    assert (status, report["passed"]) == (1, False)
    # A bias lost after fusing.
    net = load_weights(fused)
    net.stage3[0].rbr_reparam.bias.set_data(Tensor(np.zeros(48, np.float32)))
    save_checkpoint(net, tmp_path / "lost.ckpt")
    assert check(tmp_path / "lost.ckpt", "--reference", original)[0] == 1


def test_in_graph_mode(source, call):
    status, out, err = call("validate", "--ckpt_path", source("plain"), "--cross_check", "--image_resize", "64")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("on ")
    assert lines[0].endswith(", as no data set was named:")
    assert lines[1].startswith("logits differ by at most ")
    assert lines[2].startswith("same top-1 on 100.00%, same top-5 on 100.00% of ")
    assert out.endswith("the two agree\n")


def test_the_tolerance_decides(source, check):
    assert check(source(), "--rtol", "1e-9")[0] == 1


def test_averaged_weights(tmp_path, check):
    path = wrapped_file(tmp_path, "mmpretrain")
    for weights in ("raw", "ema"):
        assert check(path, "--weights", weights)[0] == 0
    # Negative control: the averaged weights against the raw ones.
    raw = write(tmp_path / "raw.pth", theirs("mmpretrain", "plain"))
    assert check(path, "--weights", "ema", "--reference", raw)[0] == 1


# --------------------------------------------------------------------------------------------------------- the images


def test_photos_with_labels_where_the_classes_are_imagenet_s(source, check):
    if labelled_photos() is None:
        pytest.skip("the photos are in the package foolbox, which is not installed")
    status, report, _ = check(source("plain", classes=1000))
    assert status == 0
    assert report["images"] == "20 photos of the package foolbox, as no data set was named"
    assert report["num_images"] == 20
    assert report["ours"].keys() == {"top1", "top5", "loss"}
    for key, value in report["reference"].items():
        assert report["ours"][key] == pytest.approx(value, rel=1e-4)
    assert check(source("plain"))[1]["ours"] is None, "7 classes are not ImageNet's"


def test_noise_where_there_are_no_photos(source, check, call, monkeypatch):
    monkeypatch.setattr("mindrepvgg.evaluation.crosscheck.labelled_photos", lambda: None)
    status, report, _ = check(source("plain"))
    assert status == 0
    assert report["images"] == "8 images of seeded noise, as no data set was named"
    assert (report["num_images"], report["ours"], report["reference"]) == (8, None, None)
    assert report == check(source("plain"))[1], "the noise is seeded"
    status, out, _ = call("validate", "--ckpt_path", source("plain"), "--cross_check", *SIZE)
    assert out.startswith("on 8 images of seeded noise, as no data set was named:\n")


def test_noise_for_gray_networks_in_the_size_that_is_asked_for(tmp_path, call, monkeypatch):
    seen = []
    run = TorchReference.__call__
    monkeypatch.setattr(TorchReference, "__call__", lambda self, x: seen.append(x.shape) or run(self, x))
    path = write(tmp_path / "gray.safetensors", theirs("timm", "plain", channels=1))
    for options in (("--image_resize", "48"), ()):
        assert call("validate", "--ckpt_path", path, "--cross_check", "--mode", "1", *options)[0] == 0
    assert seen == [(8, 1, 48, 48), (8, 1, 224, 224)]


def test_a_data_set_that_is_named(tmp_path, call):
    path = write(tmp_path / "gray.safetensors", theirs("timm", "plain", classes=10, channels=1))
    options = ("--dataset", "mnist5k", "--mean", "0.13", "--std", "0.31", "--image_resize", "16", "--mode", "1")
    status, out, err = call("validate", "--ckpt_path", path, "--cross_check", "--json", *options)
    assert (status, err) == (0, "")
    report = json.loads(out)
    assert (report["images"], report["num_images"]) == ("1,000 images of mnist5k", 1000)
    status, out, _ = call("validate", "--ckpt_path", path, "--json", *options)
    assert status == 0
    assert {k: report["ours"][k] for k in ("top1", "top5")} == {k: json.loads(out)[k] for k in ("top1", "top5")}
    status, out, _ = call("validate", "--ckpt_path", path, "--cross_check", *options)
    assert [line.split()[0] for line in out.splitlines()] == ["on", "logits", "same", "ours", "reference", "the"]


def test_our_own_files_are_checked_on_their_own_data(tmp_path, call):
    net = load_weights(write(tmp_path / "gray.safetensors", theirs("timm", "plain", classes=10, channels=1)))
    preprocessing = {"mean": [0.13], "std": [0.31]}
    save_checkpoint(net, tmp_path / "o.ckpt", dataset="mnist5k", image_size=[32, 32], preprocessing=preprocessing)
    status, out, _ = call("validate", "--ckpt_path", tmp_path / "o.ckpt", "--cross_check", "--mode", "1")
    assert status == 0
    assert out.startswith("on 1,000 images of mnist5k:\n")


# ------------------------------------------------------------------------------------------------ what is missing


@pytest.mark.parametrize("module", ["torch", "timm"])
def test_a_missing_package_is_said_in_one_line(source, call, monkeypatch, module):
    path = source("plain")
    monkeypatch.setitem(sys.modules, module, None)
    status, out, err = call("validate", "--ckpt_path", path, "--cross_check", "timm", *SIZE)
    assert (status, out) == (2, "")
    expected = {
        "torch": "error: the cross-check needs the package torch: pip install torch 'numpy<2' (extra: torch)\n",
        "timm": (
            "error: --cross_check timm needs the package timm: pip install timm 'numpy<2' (extra: timm); "
            "plain --cross_check needs PyTorch only\n"
        ),
    }
    assert err == expected[module]


@pytest.mark.parametrize(
    ("at_import", "at_build", "reason"),
    [
        (
            "import no_torchvision",
            "",
            "needs timm, which is installed and cannot be imported: No module named 'no_torch",
        ),
        (
            "raise RuntimeError('operator torchvision::nms\\ndoes not exist')",
            "",
            "cannot be imported: operator torchvision::nms does not exist\n",
        ),
        ("", "import no_torchvision", "timm 1.0 cannot build repvgg"),
    ],
)
def test_a_broken_torchvision_says_what_the_import_said(
    source, call, monkeypatch, tmp_path, at_import, at_build, reason
):
    (tmp_path / "timm.py").write_text(
        f"{at_import}\n__version__ = '1.0'\ndef create_model(*_, **__):\n    {at_build or 'pass'}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "timm", None)  # so that what the test imports is forgotten after it
    monkeypatch.delitem(sys.modules, "timm")
    status, out, err = call("validate", "--ckpt_path", source("plain"), "--cross_check", "timm", *SIZE)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert reason in err


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: None, "does not exist, expected a checkpoint"),
        (lambda path: path.mkdir(), "is a folder, expected a checkpoint"),
        (lambda path: path.write_text("weights"), "is damaged or no checkpoint"),
        (
            lambda path: write(path, {"conv1.weight": torch.ones(2, 3), "fc.bias": torch.ones(2)}),
            "finds 0 RepVGG blocks",
        ),
        (
            lambda path: write(path, theirs("timm", "plain", classes=3)),
            "has 3 classes and 3 input channels, the network",
        ),
        (lambda path: write(path, theirs("timm", "plain", channels=1)), "has 7 classes and 1 input channels, the "),
    ],
    ids=["missing", "folder", "text", "resnet", "classes", "channels"],
)
def test_a_reference_that_does_not_fit(source, check, tmp_path, make, text):
    make(tmp_path / "reference")
    status, report, err = check(source("plain"), "--reference", tmp_path / "reference")
    assert (status, report) == (2, None)
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert text in err
    assert str(tmp_path / "reference") in err


@pytest.mark.slow
@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize("name", ["repvgg_a0", "repvgg_d2se"])
def test_timm_s_own_networks(tmp_path, check, call, name, form):
    timm = other_project("timm")
    net = timm.create_model(name, num_classes=7)
    net.load_state_dict(renamed(official_state(torch_network(name)), "timm", variant_of(name)), strict=True)
    net.eval()
    x = images(2, 3, 64, 48)
    np.testing.assert_allclose(logits_of(net, x), logits_of(torch_network(name), x), rtol=1e-3, atol=1e-3)
    path = write(tmp_path / "net.safetensors", net.state_dict())
    checked = tmp_path / "net.ckpt"
    assert call("convert", path, checked, "--form", form)[0] == 0
    against_timm = ("--cross_check", "timm", "--image_resize", "224")
    assert check(checked, *against_timm)[0] == 0
    assert check(checked, *against_timm, "--reference", path)[0] == 0
