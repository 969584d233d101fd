"""Files of every project, as PyTorch and MindSpore write them, give the logits of an independent PyTorch network.

The networks are those of `torch_reference`, their names are spelled out in `test_dialects`, and each file is written by
the framework it belongs to: nothing of the package takes part in making a file or the truth to compare with.
"""

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor
from support import BOTH_FORMS, SMALL, TINY_DIGITS, images, paired, relative_difference, weights
from support.dialect_names import NAMES, VARIANTS, knows, names_alike
from support.foreign import (
    CONTAINERS,
    PROJECTS,
    SUFFIXES,
    official_state,
    renamed,
    same_logits,
    theirs,
    torch_network,
    variant_of,
    without_aux,
    wrapped,
    wrapped_file,
    write,
)
from support.golden import FAMILY
from support.torch_reference import Network
from torch import nn

from mindrepvgg import create_model, load_checkpoint, load_weights, save_checkpoint
from mindrepvgg.errors import CheckpointError
from mindrepvgg.recipe.sources import load_recipe
from mindrepvgg.training.trainer import Trainer
from mindrepvgg.weights.load import import_weights

pytestmark = pytest.mark.usefixtures("pynative_mode")  # each network runs once: a graph is not worth compiling

# The default suite loads one network of the family, besides small ones of every kind in every dialect.
QUICK = [("repvgg_a0", True, "timm")]
# And of the small ones those forms: groups are the same in both, SE's names differ most in train form.
QUICK_FORMS = [("g4", True), ("d2se", False), ("plus", False), ("plus", True)]


def check_every_container(folder, dialect, name, deploy):
    """The file is recognised and gives PyTorch's logits; another container gives the same arrays, bit for bit."""
    variant, tensors = variant_of(name), theirs(dialect, name, deploy)
    first, *others = (
        write(folder / f"{i}{SUFFIXES[container]}", tensors, container)
        for i, container in enumerate(CONTAINERS[dialect])
    )
    imported = import_weights(first)
    found = imported.recognised
    assert found.dialect == names_alike(dialect, variant, deploy)
    assert (found.variant, found.deploy, found.num_classes) == (variant, deploy, 7)
    for other in others:
        again = import_weights(other).recognised
        assert {n: a.tobytes() for n, a in again.arrays.items()} == {n: a.tobytes() for n, a in found.arrays.items()}
    del found, imported
    net = load_weights(first)
    assert (net.deploy, net.num_classes, net.training) == (deploy, 7, False)
    assert same_logits(net, torch_network(name, deploy))


@pytest.mark.parametrize(
    ("kind", "dialect", "deploy"),
    [
        pytest.param(k, d, deploy, marks=() if (k, deploy) in QUICK_FORMS else pytest.mark.slow)
        for k in ("g4", "d2se", "plus")
        for d in NAMES
        if knows(d, VARIANTS[k])
        for deploy in (False, True)
    ],
)
def test_small_networks(tmp_path, dialect, kind, deploy):
    check_every_container(tmp_path, dialect, kind, deploy)


def test_mindspores_own_copies_of_a_loaded_parameter_have_its_values(tmp_path):
    net = load_weights(write(tmp_path / "w.pth", theirs("official", "g4", False), "zip"))
    for parameter in net.get_parameters():
        np.testing.assert_array_equal(parameter.clone().asnumpy(), parameter.asnumpy())


CASES = [(name, deploy, d) for name in FAMILY for deploy in (False, True) for d in NAMES if knows(d, variant_of(name))]


@pytest.mark.parametrize(
    ("name", "deploy", "dialect"),
    [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES],
    ids=[f"{name}-{'deploy' if deploy else 'train'}-{dialect}" for name, deploy, dialect in CASES],
)
def test_the_family(tmp_path, dialect, name, deploy):
    path = write(tmp_path / "weights", theirs(dialect, name, deploy), CONTAINERS[dialect][0])
    net = load_weights(path)
    path.unlink()
    assert (net.variant.name, net.deploy, net.num_classes) == (name, deploy, 7)
    assert same_logits(net, torch_network(name, deploy))


def test_the_comparison_sees_one_kernel_element(tmp_path):
    """Negative control of every comparison above: a single changed value of the file tells."""
    tensors = {name: tensor.clone() for name, tensor in theirs("official", "plain").items()}
    tensors["stage3.1.rbr_dense.conv.weight"][0, 0, 1, 1] += 0.5
    assert not same_logits(load_weights(write(tmp_path / "changed.pth", tensors)), torch_network("plain"))


# ------------------------------------------------------------------------------------ wrappers, prefixes, containers


@pytest.mark.parametrize("project", PROJECTS)
def test_training_files_of_other_projects(tmp_path, project):
    path = wrapped_file(tmp_path, project)
    assert same_logits(load_weights(path), torch_network("plain"))
    if project == "pth.tar":
        with pytest.raises(CheckpointError, match=r"holds no averaged \(EMA\) weights; take the others with --weights"):
            load_weights(path, weights="ema")
    else:
        averaged = load_weights(path, weights="ema")
        assert same_logits(averaged, torch_network("plain", seed=1))
        assert not same_logits(averaged, torch_network("plain")), "the two copies differ"


def test_averaged_weights_alone_are_asked_for_by_name(tmp_path):
    path = write(tmp_path / "ema.pth", {"state_dict_ema": theirs("timm", "plain")})
    with pytest.raises(CheckpointError, match=r"holds no raw weights; take the others with --weights ema$"):
        load_weights(path)
    assert same_logits(load_weights(path, weights="ema"), torch_network("plain"))


@pytest.mark.parametrize(
    ("container", "file_name"),
    [("zip", "weights.ckpt"), ("legacy", "weights.safetensors"), ("safetensors", "weights.pth"), ("ckpt", "weights.pt"),
     ("zip", "repvgg_b3.deploy"), ("safetensors", "no_suffix"), ("ckpt", "repvgg-A2-train.pth.tar")],
)  # fmt: skip
def test_a_file_s_name_means_nothing(tmp_path, container, file_name):
    path = write(tmp_path / file_name, theirs("timm", "plain"), container)
    assert same_logits(load_weights(path), torch_network("plain"))


@pytest.mark.parametrize(
    ("dtype", "container"), paired(["bfloat16", "float16", "float64"], ["zip", "legacy", "safetensors", "ckpt"])
)
def test_other_types_of_numbers_become_float32(tmp_path, dtype, container):
    net = Network(VARIANTS["plain"], 7).to(getattr(torch, dtype)).eval()
    net.load_state_dict(torch_network("plain").state_dict())
    tensors = official_state(net)
    net.float()
    if container == "ckpt":  # through float32: NumPy, between the two, knows no bfloat16
        tensors = {name: Tensor(t.float().numpy()).astype(getattr(ms, dtype)) for name, t in tensors.items()}
        tensors = renamed(tensors, "mindcv", VARIANTS["plain"])
    loaded = load_weights(write(tmp_path / "weights", tensors, container))
    assert {parameter.dtype for parameter in loaded.get_parameters()} == {ms.float32}
    assert same_logits(loaded, net)


def test_kernels_saved_in_another_memory_order(tmp_path):
    """As after `net.to(memory_format=torch.channels_last)`, and parameters that are no plain tensors."""
    tensors = {
        name: nn.Parameter(tensor.contiguous(memory_format=torch.channels_last)) if tensor.ndim == 4 else tensor
        for name, tensor in theirs("official", "g4").items()
    }
    assert not tensors["stage1.0.rbr_dense.conv.weight"].is_contiguous()
    assert same_logits(load_weights(write(tmp_path / "weights.pth", tensors)), torch_network("g4"))


# --------------------------------------------------------------------------------------------- what a file must be


@pytest.mark.compat
@pytest.mark.parametrize(
    ("deploy", "form", "text"),
    [
        (True, "train", "is in deploy form: its branches are fused and cannot be recovered; give the train-form "),
        (False, "deploy", "is in train form, a deploy checkpoint is needed; make one with mindrepvgg convert"),
    ],
)
def test_the_form_can_be_demanded(tmp_path, deploy, form, text):
    path = write(tmp_path / "weights.safetensors", theirs("timm", "plain", deploy))
    with pytest.raises(CheckpointError) as caught:
        load_weights(path, form=form)
    assert str(caught.value).startswith(f"{path} {text}")
    assert load_weights(path, form="train" if form == "deploy" else "deploy").deploy is deploy


@pytest.mark.compat
@pytest.mark.parametrize("container", ["zip", "safetensors", "ckpt"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_are_refused_unless_allowed(tmp_path, value, container):
    tensors = {name: tensor.clone() for name, tensor in theirs("timm", "plain").items()}
    tensors["stages.1.0.conv_kxk.conv.weight"][1, 2, 0, 0] = value
    tensors["head.fc.bias"][:2] = value
    path = write(tmp_path / "weights", tensors, container)
    with pytest.raises(CheckpointError) as caught:
        load_weights(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: 2 of {len(tensors)} tensors hold NaN or infinite values: ")
    assert "stages.1.0.conv_kxk.conv.weight (1 of 1152)" in message
    assert "head.fc.bias (2 of 7)" in message
    assert message.endswith("diverged, or the file is damaged: take an earlier checkpoint")
    bias = load_weights(path, allow_nonfinite=True).linear.bias.asnumpy()
    assert np.array_equal(bias, tensors["head.fc.bias"].numpy(), equal_nan=True)


def test_numbers_that_are_none_count_only_in_the_weights_that_are_used(tmp_path):
    raw, averaged = (official_state(torch_network("plain", seed=seed)) for seed in (0, 1))
    raw = {**raw, "linear.bias": torch.full((7,), torch.nan)}
    path = write(tmp_path / "diverged.pth", wrapped("main.py", raw, averaged))
    assert same_logits(load_weights(path, weights="ema"), torch_network("plain", seed=1))
    with pytest.raises(CheckpointError, match=r"tensors hold NaN or infinite values: linear.bias \(7 of 7\)"):
        load_weights(path)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is a folder, expected a checkpoint"),
        (lambda path: write(path, {"conv1.weight": torch.ones(3, 3), "fc.weight": torch.ones(2, 3)}), "not a RepVGG: "),
        (lambda path: write(path, {"fc.weight": torch.ones(2, 3)}, "ckpt"), "not a RepVGG: of 1 tensors, 1 have no"),
        (lambda path: write(path, nn.Linear(2, 2)), "holds a pickled network (torch.nn.modules.linear.Linear), which "),
        (lambda path: write(path, [torch.ones(3)]), "holds a list, expected weights by name"),
    ],
    ids=["missing", "folder", "resnet", "resnet.ckpt", "pickled", "list"],
)
def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path, make, text):
    path = tmp_path / "weights"
    make(path)
    with pytest.raises(CheckpointError) as caught:
        load_weights(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert text in message
    assert "\n" not in message


def test_an_array_that_is_no_weight(tmp_path):
    """What optimizers keep beside the weights is left out, and told; bytes are refused."""
    state = theirs("mindcv", "plain")
    kept = {"global_step": torch.tensor([3]), "learning_rate": torch.linspace(0, 1, 9), "scale_sense": torch.tensor(2)}
    found = import_weights(write(tmp_path / "a.ckpt", {**state, **kept}))
    assert set(found.ignored) == set(kept)
    note = torch.tensor(list(b'{"model": "repvgg_nano"}'), dtype=torch.uint8)
    for name in ("a.ckpt", "a.safetensors"):
        with pytest.raises(CheckpointError) as caught:
            import_weights(write(tmp_path / name, {**state, "note": note}))
        assert str(caught.value).endswith(f"{name} holds note (uint8 (24,)), which is no weight; get a fresh copy")


# ------------------------------------------------------------------------------------------- our own files, and plus


@pytest.mark.compat
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_our_own_files_tell_what_they_know(tmp_path, suffix):
    net = load_weights(write(tmp_path / "theirs.pth", theirs("official", "plain")))
    assert net.metadata == {}
    path = tmp_path / f"ours{suffix}"
    state = {"moments.linear.bias": np.ones(7, np.float32)}
    save_checkpoint(net, path, training_state=state, epoch=3, class_names=list("abcdefg"), image_size=[64, 48])
    loaded = load_weights(path)
    assert loaded.metadata == load_checkpoint(path).metadata
    assert (loaded.metadata["epoch"], loaded.metadata["class_names"]) == (3, list("abcdefg"))
    assert same_logits(loaded, torch_network("plain"))
    # What was read can be saved again, with its history.
    save_checkpoint(loaded, tmp_path / "again.ckpt")
    assert load_weights(tmp_path / "again.ckpt").metadata["image_size"] == [64, 48]


def test_our_file_of_an_altered_bit_is_refused(tmp_path):
    path = tmp_path / "ours.safetensors"
    save_checkpoint(load_weights(write(tmp_path / "theirs.pth", theirs("official", "plain"))), path)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="was altered after it was written: its content does not match its SHA"):
        load_weights(path)


def test_plus_without_its_auxiliary_heads(tmp_path, caplog):
    path = write(tmp_path / "plus.pth", without_aux(theirs("repvggplus", "plus")))
    net = load_weights(path)
    assert caplog.messages == [f"{path} has no auxiliary heads; the network is built without them"]
    assert not any("_aux" in name for name in weights(net))
    assert same_logits(net, torch_network("plus"))
    caplog.clear()
    net = create_model("repvgg", 7, weights=path, **SMALL["plus"])
    (message,) = caplog.messages
    assert message.endswith("fresh weights for stage1_aux.*, stage2_aux.*, stage3_first_aux.*")
    answers = net.set_train(True)(Tensor(images()))
    assert [answer.shape for answer in answers] == [(2, 7)] * 4


def test_plus_trains_on_with_the_heads_of_the_file(tmp_path):
    path = write(tmp_path / "plus.pth", theirs("repvggplus", "plus"))
    net = create_model("repvgg", 7, weights=path, **SMALL["plus"])
    reference = Network(VARIANTS["plus"], 7)
    reference.load_state_dict(torch_network("plus").state_dict())
    x = images(4, 3, 64, 64)
    with torch.no_grad():
        expected = reference.train()(torch.from_numpy(x))
    for answer, truth in zip(net.set_train(True)(Tensor(x)), expected, strict=True):
        assert relative_difference(answer, truth) < 1e-3  # float32 statistics of a batch


# -------------------------------------------------------------------------------------------- create_model(weights=)


@pytest.mark.compat
@BOTH_FORMS
def test_create_model_with_weights(tmp_path, deploy, caplog):
    path = write(tmp_path / "weights.safetensors", theirs("timm", "d2se", deploy))
    net = create_model("repvgg", 7, deploy=deploy, weights=path, **SMALL["d2se"])
    assert net.deploy is deploy
    assert same_logits(net.set_train(False), torch_network("d2se", deploy))
    assert not caplog.messages


@pytest.mark.compat
def test_a_train_file_fills_a_deploy_network_through_fusion(tmp_path):
    path = write(tmp_path / "weights.pth", theirs("official", "g4"))
    net = create_model("repvgg", 7, deploy=True, weights=path, **SMALL["g4"])
    assert net.deploy
    assert all(".rbr_reparam." in name or name.startswith("linear.") for name in weights(net))
    assert same_logits(net.set_train(False), torch_network("g4"))


@pytest.mark.compat
def test_another_class_count_leaves_the_head_fresh_and_says_so(tmp_path, caplog):
    path = write(tmp_path / "weights.pth", theirs("official", "plain"))
    net = create_model("repvgg", 3, weights=path, **SMALL["plain"])
    assert caplog.messages == [f"{path} is for 7 classes, the network for 3: fresh weights for linear.*"]
    found, expected = weights(net), weights(load_weights(path))
    assert found["linear.weight"].shape == (3, 32)
    assert 0 < np.abs(found["linear.weight"]).max() < 1
    body = [name for name in expected if not name.startswith("linear.")]
    assert all(np.array_equal(found[name], expected[name]) for name in body)
    assert found.keys() == expected.keys()


def test_another_class_count_leaves_the_auxiliary_classifiers_fresh_too(tmp_path, caplog):
    path = write(tmp_path / "weights.pth", theirs("repvggplus", "plus"))
    net = create_model("repvgg", 3, weights=path, **SMALL["plus"])
    (message,) = caplog.messages
    heads = "linear.*, stage1_aux.linear.*, stage2_aux.linear.*, stage3_first_aux.linear.*"
    assert message == f"{path} is for 7 classes, the network for 3: fresh weights for {heads}"
    found, expected = weights(net), weights(load_weights(path))
    changed = {name for name in found if not np.array_equal(found[name], expected[name])}
    assert changed == {name for name in found if name.rpartition(".")[0].endswith("linear")}


@pytest.mark.compat
@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("RepVGG-A0", {}, "holds a repvgg, not a repvgg_a0: num_blocks [2, 1, 2, 1], expected [2, 4, 14, "),
        ("repvgg", SMALL["g4"], "holds a repvgg of another shape: group_size 1, expected 4"),
        ("repvgg", {**SMALL["plain"], "in_channels": 1}, "holds a repvgg of another shape: in_channels 3, expected 1"),
    ],
)
def test_another_network_is_refused(tmp_path, name, options, text):
    path = write(tmp_path / "weights.pth", theirs("official", "plain"))
    with pytest.raises(CheckpointError) as caught:
        create_model(name, 7, weights=path, **options)
    assert text in str(caught.value)


def test_a_deploy_file_does_not_fill_a_train_network(tmp_path):
    path = write(tmp_path / "weights.pth", theirs("official", "plain", deploy=True))
    with pytest.raises(CheckpointError, match="is in deploy form: its branches are fused and cannot be recovered"):
        create_model("repvgg", 7, weights=path, **SMALL["plain"])


def test_training_starts_from_the_weights_of_another_project(tmp_path, caplog):
    """The recipe's `pretrained`, which is `train.py --pretrained`; the digits' ten classes get a fresh head."""
    file = write(tmp_path / "timm.safetensors", theirs("timm", "plain", channels=1))
    shape = {"num_blocks": list(SMALL["plain"]["num_blocks"]), "widths": list(SMALL["plain"]["widths"])}
    recipe = {
        **TINY_DIGITS,
        "model_args": shape,
        "ckpt_save_dir": str(tmp_path / "run"),
    }
    trainer = Trainer(load_recipe(None, {**recipe, "pretrained": str(file)}))
    assert f"{file} is for 7 classes, the network for 10: fresh weights for linear.*" in caplog.messages
    given, found = weights(load_weights(file)), weights(trainer.net)
    changed = {name for name in found if not np.array_equal(found[name], given[name])}
    assert changed == {"linear.weight", "linear.bias"}
    other = weights(Trainer(load_recipe(None, {**recipe, "ckpt_save_dir": str(tmp_path / "fresh")})).net)
    assert not np.array_equal(other["stage1.0.rbr_dense.conv.weight"], given["stage1.0.rbr_dense.conv.weight"])
